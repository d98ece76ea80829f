//! What a reward network sees of a segment: one row of features per step.
//!
//! A row is the observation, then the action: as it is if it is continuous, as a one-hot vector if it is an index.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use steadfast_agents::nn::{RunningNorm, RunningNormState};
use steadfast_agents::{AgentError, StateDict};
use steadfast_envs::{EnvSpec, Space};

use crate::error::{Result, RewardError};
use crate::preference::{Segment, SegmentPair, SegmentPreference};

/// Normalised features are limited to this many deviations.
const CLIP: f32 = 10.0;

/// What actions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    /// One of `n` numbered choices.
    Discrete {
        /// Number of choices.
        n: usize,
    },
    /// A vector.
    Continuous {
        /// Its length.
        width: usize,
    },
}

impl ActionKind {
    /// The kind of an action space.
    pub fn of(space: &Space) -> Self {
        match space {
            Space::Discrete { n } => Self::Discrete { n: *n },
            // Refused by `SegmentSpec::of`: a segment has no texts.
            Space::Tokens { max_tokens, .. } => Self::Continuous { width: *max_tokens },
            Space::Box { low, .. } => Self::Continuous { width: low.len() },
        }
    }

    /// Numbers per action in a [`Segment`].
    pub fn width(&self) -> usize {
        match self {
            Self::Discrete { .. } => 1,
            Self::Continuous { width } => *width,
        }
    }
}

/// The shape of a step in segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentSpec {
    /// Numbers per observation.
    pub observation_width: usize,
    /// What actions are.
    pub action: ActionKind,
}

impl SegmentSpec {
    /// The shape of the steps of an environment's agents.
    ///
    /// # Errors
    /// [`RewardError::Data`] if the agents differ in their spaces: one reward cannot be learned for all of them; or if their
    /// actions are texts.
    pub fn of(env: &EnvSpec) -> Result<Self> {
        let Some(first) = env.agents.first() else { return Err(RewardError::Data(format!("`{}` has no agents", env.name))) };
        if let Some(other) = env.agents.iter().find(|a| a.observation != first.observation || a.action != first.action) {
            return Err(RewardError::Data(format!(
                "the agents of `{}` must have equal spaces to share a learned reward: `{}` observes {} and does {}, `{}` observes {} and does {}",
                env.name, first.name, first.observation, first.action, other.name, other.observation, other.action
            )));
        }
        if first.action.is_tokens() {
            return Err(RewardError::Data(format!("`{}` is a world of text: its preferences compare completions, not segments", env.name)));
        }
        Ok(Self { observation_width: first.observation.width(), action: ActionKind::of(&first.action) })
    }

    /// Why a segment cannot be used, if it cannot: no steps, arrays of other lengths, numbers that are not finite, an
    /// index that is none.
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self, segment: &Segment) -> Result<(), String> {
        let Segment { steps, observations, actions, .. } = segment;
        if *steps == 0 {
            return Err("it has no steps".to_string());
        }
        self.check_shape(*steps, observations, actions)?;
        for (name, values, width) in [("observations", observations, self.observation_width), ("actions", actions, self.action.width())] {
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(format!("its {name} contain {} at step {}", values[at], at / width.max(1)));
            }
        }
        Ok(())
    }

    /// Why steps cannot be turned into rows of features, if they cannot: arrays of other lengths, an index that is none.
    /// What the other numbers are is not looked at.
    pub(super) fn check_shape(&self, steps: usize, observations: &[f32], actions: &[f32]) -> Result<(), String> {
        for (name, values, width) in [("observations", observations, self.observation_width), ("actions", actions, self.action.width())] {
            if values.len() != steps * width {
                return Err(format!("{steps} steps of {width} numbers need {} {name}, found {}", steps * width, values.len()));
            }
        }
        if let ActionKind::Discrete { n } = self.action
            && let Some(at) = actions.iter().position(|&a| choice(a, n).is_none())
        {
            return Err(format!("the action at step {at} must be an index below {n}, found {}", actions[at]));
        }
        Ok(())
    }

    /// Why a pair cannot be used, if it cannot: one of its segments cannot, or they have different numbers of steps
    /// although the task did not end with the shorter one. (Where it ended, the missing steps count as reward 0.)
    ///
    /// # Errors
    /// The reason.
    pub fn check_pair(&self, pair: &SegmentPair) -> Result<(), String> {
        self.check(&pair.chosen).map_err(|reason| format!("chosen segment: {reason}"))?;
        self.check(&pair.rejected).map_err(|reason| format!("rejected segment: {reason}"))?;
        let (chosen, rejected) = (&pair.chosen, &pair.rejected);
        let shorter = if chosen.steps < rejected.steps { chosen } else { rejected };
        if chosen.steps != rejected.steps && !shorter.terminated {
            return Err(format!(
                "segments of {} and {} steps cannot be compared unless the task ended with the shorter one",
                chosen.steps, rejected.steps
            ));
        }
        Ok(())
    }

    /// Checks all pairs of a data set, and that no identifier occurs twice.
    ///
    /// # Errors
    /// [`RewardError::Data`] naming the first pair that cannot be used.
    pub fn check_pairs(&self, pairs: &[SegmentPreference]) -> Result<()> {
        let mut ids = BTreeSet::new();
        for preference in pairs {
            let id = &preference.id;
            self.check_pair(&preference.pair).map_err(|reason| RewardError::Data(format!("pair `{id}`: {reason}")))?;
            if !ids.insert(id) {
                return Err(RewardError::Data(format!("pair `{id}`: its identifier occurs twice")));
            }
        }
        Ok(())
    }
}

/// The index that a number stands for.
fn choice(action: f32, n: usize) -> Option<usize> {
    let index = action as usize;
    (index < n && index as f32 == action).then_some(index)
}

/// Turns steps into rows of features.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    spec: SegmentSpec,
    uses_actions: bool,
    norm: Option<RunningNorm>,
    plain: Vec<f32>,
}

impl Encoder {
    pub fn new(spec: SegmentSpec, uses_actions: bool, normalizes: bool) -> Self {
        let mut encoder = Self { spec, uses_actions, norm: None, plain: Vec::new() };
        encoder.norm = normalizes.then(|| RunningNorm::new(encoder.width()));
        encoder
    }

    pub fn spec(&self) -> SegmentSpec {
        self.spec
    }

    /// Features per row.
    pub fn width(&self) -> usize {
        let action = match self.spec.action {
            ActionKind::Discrete { n } => n,
            ActionKind::Continuous { width } => width,
        };
        self.spec.observation_width + if self.uses_actions { action } else { 0 }
    }

    /// Columns that are measured on a scale: all but one-hot actions.
    fn scaled(&self) -> usize {
        match self.spec.action {
            ActionKind::Discrete { .. } => self.spec.observation_width,
            ActionKind::Continuous { .. } => self.width(),
        }
    }

    /// Forgets the scales.
    pub fn reset(&mut self) {
        self.norm = self.norm.as_ref().map(|_| RunningNorm::new(self.width()));
    }

    /// Takes the scales from the steps of some segments, unless there are scales already.
    ///
    /// One update of a [`RunningNorm`] with all steps, to the bit, but with the rows of one segment in memory at a time:
    /// updates with parts would round differently, so means are summed up first and squares in a second pass.
    pub fn fit_scales<'a>(&mut self, segments: impl Iterator<Item = &'a Segment> + Clone) {
        let (width, scaled) = (self.width(), self.scaled());
        if self.norm.as_ref().is_none_or(|norm| norm.count() > 0.0) {
            return;
        }
        let count = segments.clone().map(|segment| segment.steps).sum::<usize>() as f64;
        if count == 0.0 {
            return;
        }
        let mut rows = Vec::new();
        let mut mean_over_steps = |term: &dyn Fn(usize, f64) -> f64| {
            let mut sums = vec![0.0; width];
            for segment in segments.clone() {
                rows.clear();
                self.append_plain(&segment.observations, &segment.actions, segment.steps, &mut rows);
                for row in rows.chunks_exact(width) {
                    sums.iter_mut().zip(row).enumerate().for_each(|(j, (sum, value))| *sum += term(j, f64::from(*value)));
                }
            }
            sums.iter_mut().for_each(|sum| *sum /= count);
            sums
        };
        let mut mean = mean_over_steps(&|_, value| value);
        let mut var = mean_over_steps(&|j, value| (value - mean[j]) * (value - mean[j]));
        // The update's own rounding, which goes through the sum of squares.
        var.iter_mut().for_each(|var| *var = *var * count / count);
        mean[scaled..].fill(0.0);
        var[scaled..].fill(1.0);
        let mut norm = RunningNorm::new(width);
        norm.load_state(&RunningNormState { mean, var, count }).expect("finite statistics of the same width");
        self.norm = Some(norm);
    }

    /// Appends the rows of `steps` steps, whose shapes and indices the caller has checked.
    pub fn append(&mut self, observations: &[f32], actions: &[f32], steps: usize, rows: &mut Vec<f32>) {
        if self.norm.is_none() {
            return self.append_plain(observations, actions, steps, rows);
        }
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        self.append_plain(observations, actions, steps, &mut plain);
        let start = rows.len();
        rows.resize(start + plain.len(), 0.0);
        if let Some(norm) = &self.norm {
            norm.normalize(&plain, &mut rows[start..], CLIP);
        }
        self.plain = plain;
    }

    fn append_plain(&self, observations: &[f32], actions: &[f32], steps: usize, rows: &mut Vec<f32>) {
        if !self.uses_actions {
            return rows.extend_from_slice(observations);
        }
        let (seen, width) = (self.spec.observation_width, self.spec.action.width());
        for step in 0..steps {
            rows.extend_from_slice(&observations[step * seen..(step + 1) * seen]);
            let action = &actions[step * width..(step + 1) * width];
            match self.spec.action {
                ActionKind::Continuous { .. } => rows.extend_from_slice(action),
                ActionKind::Discrete { n } => {
                    let chosen = choice(action[0], n);
                    rows.extend((0..n).map(|i| f32::from(u8::from(Some(i) == chosen))));
                }
            }
        }
    }

    pub fn save(&self, state: &mut StateDict) {
        if let Some(norm) = &self.norm {
            let RunningNormState { mean, var, count } = norm.state();
            state.put_f64("inputs.mean", &[mean.len()], &mean);
            state.put_f64("inputs.variance", &[var.len()], &var);
            state.put_f64("inputs.count", &[1], &[count]);
        }
    }

    pub fn load(&mut self, state: &StateDict) -> Result<(), AgentError> {
        let width = self.width();
        let Some(norm) = &mut self.norm else { return Ok(()) };
        norm.load_state(&RunningNormState {
            mean: state.f64("inputs.mean", width)?.to_vec(),
            var: state.f64("inputs.variance", width)?.to_vec(),
            count: state.f64("inputs.count", 1)?[0],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steadfast_envs::{EnvConfig, SeedTree};

    const DISCRETE: SegmentSpec = SegmentSpec { observation_width: 2, action: ActionKind::Discrete { n: 3 } };

    fn segment(steps: usize, terminated: bool) -> Segment {
        Segment { steps, observations: vec![0.5; 2 * steps], actions: vec![2.0; steps], terminated, ..Segment::default() }
    }

    fn pair(chosen: Segment, rejected: Segment) -> SegmentPair {
        SegmentPair { chosen, rejected }
    }

    #[test]
    fn unequal_lengths_need_the_end_of_the_task() {
        assert_eq!(DISCRETE.check_pair(&pair(segment(3, false), segment(3, false))), Ok(()));
        assert_eq!(DISCRETE.check_pair(&pair(segment(2, true), segment(3, false))), Ok(()));
        assert_eq!(DISCRETE.check_pair(&pair(segment(3, false), segment(2, true))), Ok(()));
        let reason = DISCRETE.check_pair(&pair(segment(2, false), segment(3, true))).unwrap_err();
        assert!(reason.contains("2 and 3 steps"), "{reason}");
    }

    #[test]
    fn bad_segments_are_named_with_the_reason() {
        type Change = fn(&mut Segment);
        let change = |f: Change| {
            let mut bad = segment(3, false);
            f(&mut bad);
            let data = [
                SegmentPreference { id: "good".into(), pair: pair(segment(3, false), segment(3, false)), ..Default::default() },
                SegmentPreference { id: "bad".into(), pair: pair(segment(3, false), bad), ..Default::default() },
            ];
            DISCRETE.check_pairs(&data).unwrap_err().to_string()
        };
        let cases: [(Change, &str); 6] = [
            (|s| *s = segment(0, true), "no steps"),
            (|s| s.observations.push(0.0), "found 7"),
            (|s| s.actions.clear(), "found 0"),
            (|s| s.observations[3] = f32::NAN, "NaN at step 1"),
            (|s| s.actions[1] = 3.0, "index below 3, found 3"),
            (|s| s.actions[2] = 0.5, "index below 3, found 0.5"),
        ];
        for (change_it, words) in cases {
            let message = change(change_it);
            assert!(message.contains("pair `bad`: rejected segment") && message.contains(words), "{message}");
        }
        let twice = vec![SegmentPreference { pair: pair(segment(1, false), segment(1, false)), ..Default::default() }; 2];
        assert!(DISCRETE.check_pairs(&twice).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn discrete_actions_become_one_hot_and_are_not_scaled() {
        let mut encoder = Encoder::new(DISCRETE, true, true);
        let mut data = segment(2, false);
        data.observations = vec![1.0, 7.0, 3.0, 7.0];
        data.actions = vec![0.0, 2.0];
        encoder.fit_scales([&data].into_iter());
        let mut rows = Vec::new();
        encoder.append(&data.observations, &data.actions, 2, &mut rows);
        // Mean 2 and deviation 1 of the first feature; the second is constant: shifted, not scaled.
        assert_eq!(rows, [-1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        rows.clear();
        encoder.append(&[100.0, 8.0], &[1.0], 1, &mut rows);
        assert_eq!(rows, [CLIP, 1.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn scales_are_those_of_one_update_with_all_steps() {
        let spec = SegmentSpec { observation_width: 3, action: ActionKind::Continuous { width: 2 } };
        let mut rng = SeedTree::new(1).rng();
        let mut numbers = |n: usize, scale: f32| (0..n).map(|_| 1.0 + scale * rng.normal_f32()).collect::<Vec<f32>>();
        let segments: Vec<Segment> = (1..60)
            .map(|steps| Segment { steps, observations: numbers(3 * steps, 1e3), actions: numbers(2 * steps, 1e-3), ..Segment::default() })
            .collect();
        let mut encoder = Encoder::new(spec, true, true);
        encoder.fit_scales(segments.iter());
        let mut rows = Vec::new();
        segments.iter().for_each(|s| encoder.append_plain(&s.observations, &s.actions, s.steps, &mut rows));
        let mut whole = RunningNorm::new(5);
        whole.update(&rows);
        assert_eq!(encoder.norm.map(|norm| norm.state()), Some(whole.state()));
    }

    #[test]
    fn scales_are_taken_once() {
        let spec = SegmentSpec { observation_width: 1, action: ActionKind::Continuous { width: 1 } };
        let data = |x: f32| Segment { steps: 2, observations: vec![0.0, x], actions: vec![x, -x], ..Default::default() };
        let mut encoder = Encoder::new(spec, true, true);
        encoder.fit_scales([&data(2.0)].into_iter());
        let mut saved = StateDict::default();
        encoder.save(&mut saved);
        encoder.fit_scales([&data(9.0)].into_iter());
        let mut again = StateDict::default();
        encoder.save(&mut again);
        assert_eq!(saved, again);
        let mut rows = Vec::new();
        encoder.append(&[2.0], &[2.0], 1, &mut rows);
        assert_eq!(rows, [1.0, 1.0]);
        encoder.reset();
        rows.clear();
        encoder.append(&[2.0], &[2.0], 1, &mut rows);
        assert_eq!(rows, [2.0, 2.0]);
    }

    #[test]
    fn only_agents_with_equal_spaces_share_a_reward() {
        let spec = |name: &str| {
            let config: EnvConfig = serde_json::from_value(serde_json::json!({ name: {} })).unwrap();
            config.build().unwrap().spec().clone()
        };
        let cart_pole = SegmentSpec { observation_width: 4, action: ActionKind::Discrete { n: 2 } };
        assert_eq!(SegmentSpec::of(&spec("cart_pole")).unwrap(), cart_pole);
        assert_eq!(SegmentSpec::of(&spec("pendulum")).unwrap().action, ActionKind::Continuous { width: 1 });
        assert!(SegmentSpec::of(&spec("simple_spread")).is_ok());
        let message = SegmentSpec::of(&spec("simple_tag")).unwrap_err().to_string();
        assert!(message.contains("adversary_0") && message.contains("equal spaces"), "{message}");
    }
}
