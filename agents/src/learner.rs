//! What every algorithm offers to the program that runs it.

use steadfast_envs::{ObservationBatch, Policy, RolloutBatch, SeedTree};

use crate::regularizers::adversary::AdversarialTrainingConfig;
use crate::regularizers::attack::ObservationAttackConfig;
use crate::regularizers::bound::Bracket;
use crate::{AgentError, StateDict};

/// Named numbers of one update, in a fixed order: `group/name` and value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Name and value.
    pub values: Vec<(&'static str, f64)>,
}

impl Metrics {
    /// Forgets all values, keeping the room.
    pub fn clear(&mut self) {
        self.values.clear();
    }

    /// Adds a value.
    pub fn push(&mut self, name: &'static str, value: f64) {
        self.values.push((name, value));
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }
}

/// An algorithm: a policy that acts and a rule that improves it from rollouts.
pub trait Learner: Send {
    /// The policy as it is now.
    fn policy(&mut self) -> &mut dyn Policy;

    /// Steps per slot that [`Learner::update`] wants in a batch.
    fn rollout_steps(&self) -> usize;

    /// True if batches must carry the global state.
    fn uses_state(&self) -> bool;

    /// Neighbouring slots whose episodes must have the same seed, so that completions of one prompt can be compared; see
    /// [`steadfast_envs::VectorEnv::with_groups`].
    fn group_size(&self) -> usize {
        1
    }

    /// The language model that is trained, if one is.
    #[cfg(feature = "llm")]
    fn decoder(&self) -> Option<&crate::llm::Decoder> {
        None
    }

    /// Names of what [`Learner::end_evaluation`] finds, without group.
    fn evaluation_metrics(&self) -> &'static [&'static str] {
        &[]
    }

    /// Says that the policy will be evaluated, so that it keeps what [`Learner::end_evaluation`] needs.
    fn begin_evaluation(&mut self) {}

    /// What the learner finds of the first `n_episodes` episodes that its policy played since [`Learner::begin_evaluation`],
    /// besides what the world says of them: a number for each of [`Learner::evaluation_metrics`].
    ///
    /// # Errors
    /// What a model reports.
    fn end_evaluation(&mut self, _n_episodes: usize) -> Result<Metrics, AgentError> {
        Ok(Metrics::default())
    }

    /// From now on the policy is attacked before each action, or no longer. Returns false if it cannot be.
    fn set_attack(&mut self, attack: Option<(&ObservationAttackConfig, SeedTree)>) -> bool {
        let _ = attack;
        false
    }

    /// From now on experience is collected against an adversary, if the engine lets the policy disturb observations. Returns false if it
    /// cannot be.
    fn train_against(&mut self, adversary: &AdversarialTrainingConfig, seeds: SeedTree) -> bool {
        let _ = (adversary, seeds);
        false
    }

    /// As [`Learner::set_attack`], by an attacker who shows the policy what its critic values least, or at which it does what has the least
    /// value; see [`crate::regularizers::value_attack`]. Returns false if no critic tells either.
    fn set_value_attack(&mut self, attack: Option<(&ObservationAttackConfig, SeedTree)>) -> bool {
        let _ = attack;
        false
    }

    /// Bounds of the change of the policy's outputs (logits, means or values) per unit of change of an agent's observation, in
    /// Euclidean lengths and in the environment's units, over balls of `radius` around the observations. Of several networks
    /// the most sensitive one counts. Nothing if the policy is no network of the observation.
    fn lipschitz_bracket(&mut self, observations: &ObservationBatch<'_>, radius: f64, seeds: SeedTree) -> Option<Bracket> {
        let _ = (observations, radius, seeds);
        None
    }

    /// Improves the policy. `progress` is the fraction of the run that was done before the batch was
    /// collected, 0 to 1; schedules follow it.
    ///
    /// # Errors
    /// [`AgentError::NonFinite`] if a loss, gradient or parameter is not finite; the run must stop, since parameters
    /// may have changed.
    fn update(&mut self, batch: &RolloutBatch, progress: f64) -> Result<&Metrics, AgentError>;

    /// Everything needed to continue exactly: parameters, optimiser, normalisers, generators.
    fn state(&self) -> StateDict;

    /// Restores what acting needs, from a state that may lack the memory of past transitions, whose names begin with
    /// [`crate::replay::PREFIX`]. The learner cannot go on training.
    ///
    /// # Errors
    /// As [`Learner::load_state`].
    fn load_policy(&mut self, state: &StateDict) -> Result<(), AgentError> {
        self.load_state(state)
    }

    /// Restores what [`Learner::state`] gave, into a learner of the same configuration.
    ///
    /// # Errors
    /// [`AgentError::State`] naming the array that does not fit. The learner is then unchanged or must be dropped.
    fn load_state(&mut self, state: &StateDict) -> Result<(), AgentError>;
}
