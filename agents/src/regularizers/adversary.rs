//! Adversarial training: the policy learns from observations that an adversary has changed.
//!
//! While experience is collected, the observations of a share of the slots are moved, before the policy acts on them, to where its outputs
//! change most: projected ascent inside a ball, as ERNIE's, but what is found is what the policy sees and learns from.
//!
//! Sources: Madry et al. 2018 (arXiv 1706.06083) for training on the worst found; Pattanaik et al. 2018 (arXiv 1712.03632) and Zhang et al.
//! 2020 (arXiv 2003.08938) for policies, whose maximal action difference attack this is; Goodfellow et al. 2015 (arXiv 1412.6572) for a mixture
//! with clean data.

use serde::{Deserialize, Serialize};
use steadfast_envs::{ObservationBatchMut, Rng};

use super::Observed;
use super::lipschitz::{LipschitzConfig, LipschitzRegularizer, Norm, Scale};
use crate::AgentError;
use crate::head::PolicyHead;
use crate::nn::{Mlp, Workspace};
use crate::ranges::Ranges;
use crate::schedule::warmth;
use crate::state_dict::StateDict;
use crate::team::SharedInput;

/// Settings of adversarial training. Written in a configuration as `[adversarial_training]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdversarialTrainingConfig {
    /// Radius of the ball in the environment's units, at least 0.
    pub radius: f64,
    /// The ball: `l2` or `linf`.
    pub norm: Norm,
    /// Ascent steps, 1 to 1000.
    pub steps: usize,
    /// Share of the slots whose observations are changed, 0 to 1.
    pub share: f64,
    /// Fraction of the run over which the radius grows linearly from 0, 0 to 1.
    pub warmup_fraction: f64,
}

impl Default for AdversarialTrainingConfig {
    fn default() -> Self {
        Self { radius: 0.1, norm: Norm::Linf, steps: 3, share: 0.5, warmup_fraction: 0.1 }
    }
}

impl AdversarialTrainingConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let mut ranges = Ranges::default();
        ranges.not_negative("radius", self.radius);
        ranges.count("steps", self.steps, 1000);
        ranges.fraction("share", self.share);
        ranges.fraction("warmup_fraction", self.warmup_fraction);
        ranges.finish()
    }
}

/// An [`AdversarialTrainingConfig`] at work.
pub(crate) struct Adversary {
    share: f64,
    warmup_fraction: f64,
    ascent: LipschitzRegularizer,
    /// Progress of the run at the last update.
    pub(crate) progress: f64,
    unit: Vec<f32>,
    inputs: Vec<f32>,
    outputs: Vec<f32>,
    workspace: Workspace,
}

impl Adversary {
    /// With random starts of its own; where they are used, the generators of the slots decide.
    pub(crate) fn new(config: &AdversarialTrainingConfig, rng: Rng) -> Self {
        let AdversarialTrainingConfig { radius, norm, steps, share, warmup_fraction } = *config;
        let ball = LipschitzConfig {
            radius,
            norm,
            scale: Scale::Absolute,
            steps,
            // Together somewhat more than the radius.
            step_size: Some((1.5 * radius / steps as f64).max(f64::MIN_POSITIVE)),
            initial_std: 0.3 * radius,
            ..LipschitzConfig::default()
        };
        Self {
            share,
            warmup_fraction,
            ascent: LipschitzRegularizer::adversarial(&ball, rng),
            progress: 0.0,
            unit: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            workspace: Workspace::default(),
        }
    }

    /// Saves what the next disturbance depends on, besides the generators of the slots.
    pub(crate) fn save(&self, state: &mut StateDict) {
        state.put_f64("adversary.progress", &[1], &[self.progress]);
    }

    /// Restores what [`Adversary::save`] saved.
    ///
    /// # Errors
    /// [`AgentError::State`] if it is missing.
    pub(crate) fn load(&mut self, state: &StateDict) -> Result<(), AgentError> {
        self.progress = state.f64("adversary.progress", 1)?[0];
        Ok(())
    }

    /// Moves the observations of agents who share a network. All randomness comes from the generator of the first slot.
    pub(crate) fn disturb(
        &mut self,
        net: &Mlp,
        head: &PolicyHead,
        input: &SharedInput,
        batch: &mut ObservationBatchMut<'_>,
        rngs: &mut [Rng],
    ) {
        let warmth = warmth(self.progress, self.warmup_fraction);
        // A share of few slots is at least one of them.
        let slots = if self.share > 0.0 { ((self.share * batch.n_slots as f64).round() as usize).max(1) } else { 0 };
        if warmth == 0.0 || slots == 0 {
            return;
        }
        let (n_agents, width, members) = (batch.n_agents, batch.width, input.members());
        let rows = slots * members;
        let attacked = &mut batch.observations[..slots * n_agents * width];
        input.gather(attacked, n_agents, width, &mut self.inputs);
        self.outputs.resize(rows * net.output(), 0.0);
        net.forward(&self.inputs, rows, &mut self.outputs, &mut self.workspace);
        input.units(Scale::Absolute, &mut self.unit);
        self.ascent.reseed(Rng::from_seed(rngs[0].next_u64()));
        let observed =
            Observed { rows, members, inputs: &self.inputs, unit: &self.unit, limit: input.limit(), outputs: &self.outputs, head };
        let offsets = self.ascent.offsets(net, &observed);
        for (row, offset) in offsets.chunks_exact(input.observation).enumerate() {
            let place = row / members * n_agents + input.agents[row % members];
            attacked[place * width..][..offset.len()].iter_mut().zip(offset).for_each(|(o, u)| *o += warmth as f32 * u);
        }
    }
}
