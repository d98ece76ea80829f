//! Cross-play: some agents are played by policies of other runs, the same ones against every policy that is evaluated.
//!
//! In a world of several teams a policy is only as good as its opponents are bad. Teams that were trained together meet opponents who grew
//! with them, so that two methods are compared against different opponents. With common ones the difference is the method's.

use steadfast_agents::Learner;
use steadfast_envs::{ActMode, ActionBatch, ActionsMut, EnvError, EnvSpec, ObservationBatch, Policy, Rng};

use super::evaluate::Trained;
use crate::experiment::build::Ground;
use crate::failure::{Failure, Result};

/// Agents that another run's policy plays.
pub struct Opponent {
    /// Name or group of the agents.
    pub agents: String,
    /// Who plays them.
    pub trained: Trained,
}

impl Opponent {
    /// Indices of the agents in a world.
    ///
    /// # Errors
    /// [`Failure::Usage`] if there are none, or if actions are texts.
    pub fn indices(&self, spec: &EnvSpec) -> Result<Vec<usize>> {
        if spec.has_token_actions() {
            return Err(Failure::usage(format!("agents of `{}` write texts", spec.name), "--opponent serves worlds of several teams"));
        }
        let is_meant = |&i: &usize| self.agents == spec.agents[i].name || self.agents == spec.agents[i].group;
        let found: Vec<usize> = (0..spec.n_agents()).filter(is_meant).collect();
        if found.is_empty() {
            let names: Vec<String> = spec.agents.iter().map(|a| format!("{} (group {})", a.name, a.group)).collect();
            let message = format!("--opponent {}: `{}` has no such agent or group", self.agents, spec.name);
            return Err(Failure::usage(message, format!("it has {}", names.join(", "))));
        }
        Ok(found)
    }
}

/// What tells opponents apart: who plays whom, by the checksums of their checkpoints; empty without opponents.
pub fn fingerprint(opponents: &[Opponent]) -> String {
    let one = |o: &Opponent| format!("{}={}", o.agents, o.trained.checkpoint.fingerprint());
    opponents.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// The learners of opponents, which only act.
pub struct Opponents(Vec<(Vec<usize>, Box<dyn Learner>)>);

impl Opponents {
    /// Restores the policies of `opponents` in the world of `spec`.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the run that cannot be restored.
    pub fn restore(opponents: &[Opponent], spec: &EnvSpec) -> Result<Self> {
        let one = |opponent: &Opponent| -> Result<(Vec<usize>, Box<dyn Learner>)> {
            let Trained { config, .. } = &opponent.trained;
            Ok((opponent.indices(spec)?, opponent.trained.learner(config, &Ground::of(config)?, spec)?))
        };
        opponents.iter().map(one).collect::<Result<_>>().map(Self)
    }

    /// The policy under which all agents but the opponents follow `own`.
    pub fn with<'a>(&'a mut self, own: &'a mut dyn Policy) -> impl Policy + 'a {
        Crossed { own, opponents: self, rngs: Vec::new(), indices: Vec::new(), vectors: Vec::new(), log_probs: Vec::new() }
    }
}

/// One policy for some agents, others for the rest.
struct Crossed<'a> {
    own: &'a mut dyn Policy,
    opponents: &'a mut Opponents,
    rngs: Vec<Rng>,
    indices: Vec<u32>,
    vectors: Vec<f32>,
    log_probs: Vec<f32>,
}

impl Policy for Crossed<'_> {
    fn reset(&mut self, slot: usize) {
        self.own.reset(slot);
        self.opponents.0.iter_mut().for_each(|(_, learner)| learner.policy().reset(slot));
    }

    fn act(
        &mut self,
        observations: &ObservationBatch<'_>,
        rngs: &mut [Rng],
        mode: ActMode,
        out: &mut ActionBatch<'_>,
    ) -> steadfast_envs::Result<()> {
        if self.opponents.0.is_empty() {
            return self.own.act(observations, rngs, mode, out);
        }
        // Everyone draws from the generators as they were, so that an agent has the same luck whoever plays it.
        let before = rngs.to_vec();
        self.own.act(observations, rngs, mode, out)?;
        let places = observations.n_slots * observations.n_agents;
        self.log_probs.resize(places, 0.0);
        for (agents, learner) in &mut self.opponents.0 {
            self.rngs.clone_from(&before);
            let (log_probs, rngs) = (&mut self.log_probs[..], &mut self.rngs[..]);
            let all = (0..observations.n_slots).flat_map(|slot| agents.iter().map(move |agent| slot * observations.n_agents + agent));
            match &mut out.actions {
                ActionsMut::Discrete(own) => {
                    self.indices.resize(places, 0);
                    let actions = ActionsMut::Discrete(&mut self.indices);
                    learner.policy().act(observations, rngs, mode, &mut ActionBatch { actions, log_probs })?;
                    all.for_each(|place| own[place] = self.indices[place]);
                }
                ActionsMut::Continuous(own) => {
                    let width = own.len() / places.max(1);
                    self.vectors.resize(own.len(), 0.0);
                    let actions = ActionsMut::Continuous(&mut self.vectors);
                    learner.policy().act(observations, rngs, mode, &mut ActionBatch { actions, log_probs })?;
                    all.for_each(|place| own[place * width..][..width].copy_from_slice(&self.vectors[place * width..][..width]));
                }
                ActionsMut::Tokens(_) => return Err(EnvError::Policy("texts are not played against opponents".to_string())),
            }
        }
        Ok(())
    }
}
