//! ERNIE's Lipschitz regulariser and its Gaussian baseline.
//!
//! For an observation `o` and network outputs `f(o)` the penalty is
//!
//! ```text
//! R(o) = max over ‖u‖ ≤ radius of D( f(o + s·u), f(o) )
//! ```
//!
//! with `s` the unit of each feature, and the loss of the algorithm grows by `weight · mean R`. The maximum is sought by
//! projected gradient ascent from a small random start, in the coordinates `u`:
//! `u ← Π( u + step_size · g / ‖g‖ )` for the l2 ball and `u ← Π( u + step_size · sign g )` for the l∞ ball. With one
//! step of the length of the radius this solves the linearised problem. The start must not be 0, where every distance
//! has gradient 0.
//!
//! Source: Bukharin et al., "Robust Multi-Agent Reinforcement Learning via Adversarial Regularization", NeurIPS 2023
//! (arXiv 2310.10810). Departures from the released code: the perturbation is projected onto a real ball (the release
//! clamps gradients), the distance is taken per sample and averaged (the release takes one norm over the batch, so that
//! its weight depends on the batch size), and the ascent direction is normalised.
//!
//! Features behind the observation, such as an agent index, are never perturbed.
//!
//! With `gradient = "stackelberg"` the ascent itself is differentiated (`stackelberg.rs`): what the penalty will be after the attack has
//! answered the changed weights. With few steps the network can learn to make just these miss: after K = 1 on `simple_spread` its Lipschitz
//! constants were above those of the unregularised one (`results/README.md`); measure with an attack of more steps.
//!
//! Logged: `ernie/penalty` (mean of R before the weight), `ernie/weight`, `ernie/perturbation_over_radius`,
//! `ernie/gradient_ratio` (norm of the weighted penalty's gradient with respect to the weights over that of the
//! algorithm's loss, in the first minibatch of an update, averaged over groups), `ernie/interaction_share` (there, the norm of the
//! leader–follower term over that of the whole penalty's gradient) and `ernie/lipschitz_lower_bound` (the last
//! one measured) beside `ernie/lipschitz_upper_bound` ([`super::spectral`]).

use steadfast_envs::{Rng, SnapshotReader, SnapshotWriter};

use super::ball::{ascend, length, project};
use super::scope::{add_up, copy_first, strongest};
use super::stackelberg::{Ascent, Step};
use super::{Interaction, Observed, Penalty, PenaltyGradients, Regularizer};
use crate::head::Distance;
use crate::nn::{Mlp, Trace};
use crate::schedule::warmth;
use crate::{AgentError, StateDict};

mod config;
mod leader;

pub use super::ball::{Direction, Norm};
pub use super::scope::Scope;
pub(super) use config::out_of_range;
use leader::LeaderTerm;

pub use config::{GaussianConfig, Gradient, GradientPenaltyConfig, LipschitzConfig, Scale};

/// How perturbations are found.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Search {
    /// Projected ascent.
    Ascent { steps: usize, direction: Direction, step_size: f32, initial_std: f32 },
    /// One projected draw of normal numbers with this deviation.
    Draw { std: f32 },
}

/// The penalty at an adversarial or random perturbation.
pub struct LipschitzRegularizer {
    weight: f64,
    warmup_fraction: f64,
    radius: f32,
    norm: Norm,
    scale: Scale,
    scope: Scope,
    scope_agents: usize,
    search: Search,
    /// The head's natural one if absent.
    distance: Option<Distance>,
    gradient: Gradient,
    interaction_weight: f32,
    probe_every: usize,
    /// Whether perturbations are held in the ball.
    is_bounded: bool,
    /// The penalty is this many times the distance.
    per_square: f32,
    rng: Rng,
    /// Standard normals from which the starts of ascents are cut at random places: a start only has to point somewhere,
    /// and a fresh draw per feature would cost as much as the ascent step.
    starts: Vec<f32>,
    starts_seed: u64,
    // Room for one minibatch, kept from call to call.
    perturbed: Vec<f32>,
    offset: Vec<f32>,
    d_output: Vec<f32>,
    d_input: Vec<f32>,
    value: Vec<f32>,
    slope: Vec<f32>,
    is_moved: Vec<bool>,
    trace: Trace,
    /// The steps of the ascent, kept for the leader–follower term.
    path: Vec<Step<f32>>,
    leader: LeaderTerm,
}

impl LipschitzRegularizer {
    /// The adversarial penalty.
    pub fn adversarial(config: &LipschitzConfig, mut rng: Rng) -> Self {
        let starts_seed = rng.next_u64();
        let radius = config.radius as f32;
        let automatic = if config.steps <= 1 { config.radius } else { 2.0 * config.radius / config.steps as f64 };
        let step_size = config.step_size.unwrap_or(automatic) as f32;
        let (direction, initial_std) = (config.direction(), config.initial_std as f32);
        let search = Search::Ascent { steps: config.steps, direction, step_size, initial_std };
        Self {
            weight: config.weight,
            warmup_fraction: config.warmup_fraction,
            radius,
            norm: config.norm,
            scale: config.scale,
            scope: config.scope,
            scope_agents: config.scope_agents,
            search,
            distance: config.distance,
            gradient: config.gradient,
            interaction_weight: config.interaction_weight as f32,
            probe_every: config.probe_every,
            is_bounded: true,
            per_square: 1.0,
            rng,
            starts: draw_starts(starts_seed),
            starts_seed,
            perturbed: Vec::new(),
            offset: Vec::new(),
            d_output: Vec::new(),
            d_input: Vec::new(),
            value: Vec::new(),
            slope: Vec::new(),
            is_moved: Vec::new(),
            trace: Trace::default(),
            path: Vec::new(),
            leader: LeaderTerm::default(),
        }
    }

    /// The penalty at a random perturbation.
    pub fn gaussian(config: &GaussianConfig, rng: Rng) -> Self {
        let ball = LipschitzConfig {
            weight: config.weight,
            warmup_fraction: config.warmup_fraction,
            radius: config.radius,
            norm: config.norm,
            scale: config.scale,
            distance: config.distance,
            gradient: config.gradient,
            probe_every: config.probe_every,
            ..LipschitzConfig::default()
        };
        Self { search: Search::Draw { std: 1.0 }, ..Self::adversarial(&ball, rng) }
    }

    /// The penalty on slopes: the squared Frobenius norm of the Jacobian of the outputs (logits or means) with respect to the
    /// scaled features. It is estimated by one normal direction `v` per sample, for which `E ‖J v‖² = ‖J‖²`, and a difference
    /// quotient along it.
    ///
    /// Source: Hoffman, Roberts and Yaida 2019, "Robust Learning with Jacobian Regularization" (arXiv 1908.02729), who take
    /// the products from second derivatives.
    pub fn gradient_penalty(config: &GradientPenaltyConfig, rng: Rng) -> Self {
        let ball = LipschitzConfig {
            weight: config.weight,
            warmup_fraction: config.warmup_fraction,
            scale: config.scale,
            distance: Some(Distance::L2),
            probe_every: config.probe_every,
            ..LipschitzConfig::default()
        };
        let per_square = (SLOPE_STEP * SLOPE_STEP).recip();
        let search = Search::Draw { std: SLOPE_STEP };
        Self { search, is_bounded: false, per_square, ..Self::adversarial(&ball, rng) }
    }

    /// Finds a perturbation for each row and leaves `offset` (in scaled coordinates, `[rows, features]`), `perturbed`
    /// (inputs) and `trace` (of the network at the perturbed inputs) for it, and `path` if it is to be recorded.
    fn attack(&mut self, net: &Mlp, observed: &Observed<'_>, search: Search, distance: Distance, records: bool) {
        let (rows, width, features) = (observed.rows, net.input(), observed.unit.len());
        self.offset.resize(rows * features, 0.0);
        self.slope.resize(rows * features, 0.0);
        self.perturbed.resize(rows * width, 0.0);
        self.d_output.resize(rows * net.output(), 0.0);
        self.d_input.resize(rows * width, 0.0);
        self.value.resize(rows, 0.0);
        let (std, steps, direction, step_size) = match search {
            Search::Ascent { steps, direction, step_size, initial_std } => (initial_std, steps, direction, step_size),
            Search::Draw { std } => (std, 0, Direction::Raw, 0.0),
        };
        for u in self.offset.chunks_exact_mut(features) {
            if steps > 0 && features < N_STARTS {
                let first = self.rng.below(N_STARTS - features);
                for (v, start) in u.iter_mut().zip(&self.starts[first..]) {
                    *v = std * start;
                }
            } else {
                u.iter_mut().for_each(|v| *v = std * self.rng.normal_f32());
            }
        }
        let members = observed.members;
        let ball = features * self.scope.rows_of_ball(members);
        if self.scope == Scope::Shared {
            copy_first(&mut self.offset, features, members);
        }
        if self.is_bounded {
            self.offset.chunks_exact_mut(ball).for_each(|u| project(u, self.norm, self.radius));
        }
        place(observed, width, &self.offset, &mut self.perturbed);
        net.forward_train(&self.perturbed, rows, &mut self.trace);
        if records {
            self.path.resize_with(steps, Step::default);
        }
        for step in 0..steps {
            self.d_output.fill(0.0);
            observed.head.divergence(
                distance,
                self.trace.output(),
                observed.outputs,
                rows,
                1.0,
                &mut self.value,
                Some(&mut self.d_output),
                None,
                None,
            );
            net.backward(&mut self.trace, &self.d_output, None, Some(&mut self.d_input));
            slopes(observed, width, &self.perturbed, &self.d_input, &mut self.slope);
            if self.scope == Scope::Shared {
                add_up(&mut self.slope, features, members);
            }
            if records {
                copy_into(&self.offset, &mut self.path[step].offset);
                if step == 0 {
                    std::mem::swap(&mut self.trace, &mut self.leader.start);
                }
            }
            for (u, g) in self.offset.chunks_exact_mut(ball).zip(self.slope.chunks_exact(ball)) {
                ascend(u, g, direction, step_size);
            }
            if records {
                copy_into(&self.offset, &mut self.path[step].target);
                copy_into(&self.slope, &mut self.path[step].slope);
            }
            self.offset.chunks_exact_mut(ball).for_each(|u| project(u, self.norm, self.radius));
            if self.scope == Scope::KOfN && step > 0 {
                self.still_unmoved(features);
            }
            place(observed, width, &self.offset, &mut self.perturbed);
            net.forward_train(&self.perturbed, rows, &mut self.trace);
            if self.scope == Scope::KOfN && step == 0 && self.scope_agents < members {
                let value = &mut self.value;
                observed.head.divergence(distance, self.trace.output(), observed.outputs, rows, 1.0, value, None, None, None);
                strongest(&self.value, members, self.scope_agents, &mut self.is_moved);
                self.still_unmoved(features);
                place(observed, width, &self.offset, &mut self.perturbed);
                net.forward_train(&self.perturbed, rows, &mut self.trace);
            }
        }
    }

    /// Takes the perturbations of all rows back that are not to be moved.
    fn still_unmoved(&mut self, features: usize) {
        for (u, _) in self.offset.chunks_exact_mut(features).zip(&self.is_moved).filter(|(_, is_moved)| !**is_moved) {
            u.fill(0.0);
        }
    }

    /// One attack from a fresh start: the distance `[rows]` it reached, and the perturbed inputs `[rows, input]`.
    pub(super) fn ascend_once(&mut self, net: &Mlp, observed: &Observed<'_>) -> (&[f32], &[f32]) {
        let distance = self.distance_of(observed);
        self.attack(net, observed, self.search, distance, false);
        let (rows, value) = (observed.rows, &mut self.value);
        observed.head.divergence(distance, self.trace.output(), observed.outputs, rows, 1.0, value, None, None, None);
        (&self.value[..rows], &self.perturbed)
    }

    /// Replaces the generator, but not the random starts that it chooses among.
    pub(super) fn reseed(&mut self, rng: Rng) {
        self.rng = rng;
    }

    /// The perturbations `[rows, features]` of one attack, in units.
    pub fn offsets(&mut self, net: &Mlp, observed: &Observed<'_>) -> &[f32] {
        let distance = self.distance_of(observed);
        self.attack(net, observed, self.search, distance, false);
        &self.offset
    }

    fn distance_of(&self, observed: &Observed<'_>) -> Distance {
        self.distance.unwrap_or_else(|| observed.head.natural_distance())
    }
}

impl Regularizer for LipschitzRegularizer {
    fn weight(&self, progress: f64) -> f64 {
        self.weight * warmth(progress, self.warmup_fraction)
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn penalty(
        &mut self,
        net: &Mlp,
        observed: &Observed<'_>,
        weight: f64,
        gradients: &mut PenaltyGradients<'_>,
    ) -> Result<Penalty, AgentError> {
        let answers = self.gradient == Gradient::Stackelberg && self.interaction_weight > 0.0;
        let distance = self.distance_of(observed);
        let (rows, output) = (observed.rows, net.output());
        let ball = observed.unit.len() * self.scope.rows_of_ball(observed.members);
        if answers {
            self.leader.clear(observed.outputs.len(), net.n_parameters(), observed.head.log_std().len());
        }
        let (mut total, mut lengths) = (0.0, 0.0);
        // Samples of one moment stay together.
        let at_once = (ROWS_AT_ONCE / observed.members).max(1) * observed.members;
        for first in (0..rows).step_by(at_once) {
            let part = observed.part(first..(first + at_once).min(rows), net);
            self.attack(net, &part, self.search, distance, answers);
            self.d_output.fill(0.0);
            // The deviations belong to both outputs; with the clean one as a fixed target their two parts cancel.
            let (d_clean, d_log_std) = match self.gradient {
                Gradient::Detached | Gradient::Stackelberg => {
                    (Some(&mut gradients.outputs[first * output..][..part.outputs.len()]), Some(&mut *gradients.log_std))
                }
                Gradient::TargetClean => (None, None),
            };
            observed.head.divergence(
                distance,
                self.trace.output(),
                part.outputs,
                part.rows,
                (weight / rows as f64) as f32 * self.per_square,
                &mut self.value,
                Some(&mut self.d_output),
                d_clean,
                d_log_std,
            );
            let d_input = answers.then_some(&mut *self.d_input);
            net.backward(&mut self.trace, &self.d_output, Some(&mut *gradients.weights), d_input);
            total += self.value.iter().map(|v| f64::from(*v)).sum::<f64>();
            if self.is_bounded && self.radius > 0.0 {
                lengths += self.offset.chunks_exact(ball).map(|u| f64::from(length(u, self.norm))).sum::<f64>();
            }
            if answers && let Search::Ascent { direction, step_size, .. } = self.search {
                let ascent = Ascent { norm: self.norm, radius: self.radius, direction, step_size };
                self.leader.add(net, &part, first * output, distance, &self.path, &ascent, &self.perturbed, &self.d_input);
            }
        }
        if answers {
            for (to, from) in [
                (&mut *gradients.outputs, &self.leader.outputs),
                (&mut *gradients.weights, &self.leader.weights),
                (&mut *gradients.log_std, &self.leader.log_std),
            ] {
                to.iter_mut().zip(from).for_each(|(t, f)| *t += self.interaction_weight * f);
            }
        }
        let balls = rows / self.scope.rows_of_ball(observed.members);
        let relative_norm = if lengths > 0.0 { lengths / balls as f64 / f64::from(self.radius) } else { 0.0 };
        Ok(Penalty { value: f64::from(self.per_square) * total / rows as f64, relative_norm })
    }

    fn needs_moments(&self) -> bool {
        self.scope != Scope::Independent
    }

    fn interaction(&self) -> Option<Interaction<'_>> {
        let is_computed = self.gradient == Gradient::Stackelberg && !self.leader.weights.is_empty();
        let LeaderTerm { outputs, weights, .. } = &self.leader;
        is_computed.then_some(Interaction { outputs, weights, factor: self.interaction_weight })
    }

    fn probe_every(&self) -> usize {
        self.probe_every
    }

    fn lipschitz_lower_bound(&mut self, net: &Mlp, observed: &Observed<'_>) -> f64 {
        if self.radius == 0.0 || observed.rows == 0 {
            return 0.0;
        }
        // Ten normalised steps find the top singular direction of a network that is nearly linear in the ball. A copy of
        // the generator keeps the draws of training independent of how often the bound is asked for.
        let rng = self.rng.clone();
        let norm = std::mem::replace(&mut self.norm, Norm::L2);
        let scope = std::mem::replace(&mut self.scope, Scope::Independent);
        let (direction, step_size, initial_std) = (Direction::Normalized, 0.4 * self.radius, 0.1 * self.radius);
        let search = Search::Ascent { steps: 10, direction, step_size, initial_std };
        self.attack(net, observed, search, Distance::L2, false);
        (self.norm, self.scope, self.rng) = (norm, scope, rng);
        let (outputs, width, features) = (net.output(), net.input(), observed.unit.len());
        let moved = self.perturbed.chunks_exact(width).zip(observed.inputs.chunks_exact(width));
        let changed = self.trace.output().chunks_exact(outputs).zip(observed.outputs.chunks_exact(outputs));
        moved
            .zip(changed)
            .map(|((x, clean), (f, before))| {
                let change: f64 = f.iter().zip(before).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                // The step that rounding and clamping left, not the one that was asked for.
                let step = |i: usize| f64::from(x[i] - clean[i]) / f64::from(observed.unit[i]);
                let size: f64 = (0..features).filter(|&i| observed.unit[i] > 0.0).map(|i| step(i).powi(2)).sum();
                if size > 0.0 { (change / size).sqrt() } else { 0.0 }
            })
            .fold(0.0, f64::max)
    }

    fn save(&self, prefix: &str, state: &mut StateDict) {
        let mut words = SnapshotWriter::default();
        self.rng.snapshot(&mut words);
        state.put_u64(format!("{prefix}rng"), &words.into_words());
        state.put_u64(format!("{prefix}starts_seed"), &[self.starts_seed]);
    }

    fn load(&mut self, prefix: &str, state: &StateDict) -> Result<(), AgentError> {
        let words = state.u64(&format!("{prefix}rng"))?;
        let mut words = SnapshotReader::new("regulariser", words);
        self.rng = Rng::restore(&mut words)?;
        words.finish()?;
        self.starts_seed = state.counter(&format!("{prefix}starts_seed"))?;
        self.starts = draw_starts(self.starts_seed);
        Ok(())
    }
}

/// `perturbed = inputs + unit · offset` on the perturbable features, clamped as the network's inputs are; the others as in
/// the inputs.
pub(super) fn place(observed: &Observed<'_>, width: usize, offset: &[f32], perturbed: &mut [f32]) {
    let features = observed.unit.len();
    for ((x, clean), u) in perturbed.chunks_exact_mut(width).zip(observed.inputs.chunks_exact(width)).zip(offset.chunks_exact(features)) {
        for i in 0..features {
            x[i] = clean[i] + observed.unit[i] * u[i];
        }
        x[features..].copy_from_slice(&clean[features..]);
        if let Some(limit) = observed.limit {
            x[..features].iter_mut().for_each(|v| *v = v.clamp(-limit, limit));
        }
    }
}

/// Derivatives with respect to offsets from those with respect to the perturbed inputs. A feature at the limit of inputs
/// does not answer its offset.
pub(super) fn slopes(observed: &Observed<'_>, width: usize, perturbed: &[f32], d_input: &[f32], out: &mut [f32]) {
    let features = observed.unit.len();
    for ((slope, d), x) in out.chunks_exact_mut(features).zip(d_input.chunks_exact(width)).zip(perturbed.chunks_exact(width)) {
        for i in 0..features {
            slope[i] = d[i] * observed.unit[i];
        }
        if let Some(limit) = observed.limit {
            slope.iter_mut().zip(x).filter(|(_, x)| x.abs() >= limit).for_each(|(s, _)| *s = 0.0);
        }
    }
}

/// Changes of the perturbed inputs when offsets change by `along`: the transpose of [`slopes`].
fn moves(observed: &Observed<'_>, width: usize, perturbed: &[f32], along: &[f32], out: &mut [f32]) {
    let features = observed.unit.len();
    for ((change, w), x) in out.chunks_exact_mut(width).zip(along.chunks_exact(features)).zip(perturbed.chunks_exact(width)) {
        for i in 0..features {
            change[i] = w[i] * observed.unit[i];
        }
        change[features..].fill(0.0);
        if let Some(limit) = observed.limit {
            change.iter_mut().zip(x).filter(|(_, x)| x.abs() >= limit).for_each(|(c, _)| *c = 0.0);
        }
    }
}

fn copy_into(from: &[f32], to: &mut Vec<f32>) {
    to.clear();
    to.extend_from_slice(from);
}

/// Deviation of the directions of [`LipschitzRegularizer::gradient_penalty`]: small against the curvature of a network of scaled
/// features, large against single precision.
const SLOPE_STEP: f32 = 0.01;

/// About this many rows are attacked and penalised together, so that what is kept of them stays in the cache.
const ROWS_AT_ONCE: usize = 192;

/// Numbers in [`LipschitzRegularizer::starts`].
const N_STARTS: usize = 1 << 14;

fn draw_starts(seed: u64) -> Vec<f32> {
    let mut rng = Rng::from_seed(seed);
    (0..N_STARTS).map(|_| rng.normal_f32()).collect()
}
