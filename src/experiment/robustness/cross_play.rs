//! Cross-play: some agents are played by policies of other runs, the same ones against every policy that is evaluated.
//!
//! In a world of several teams a policy is only as good as its opponents are bad. Teams that were trained together meet opponents who grew
//! with them, so that two methods are compared against different opponents. With common ones the difference is the method's.

use steadfast_agents::Learner;
use steadfast_envs::{ActMode, ActionBatch, ActionsMut, EnvError, EnvSpec, ObservationBatch, Policy, Rng};

use super::cell::mode_name;
use super::evaluate::Trained;
use crate::experiment::build::Ground;
use crate::failure::{Failure, Result};

/// Agents that another run's policy plays.
pub struct Opponent {
    /// Name or group of the agents.
    pub agents: String,
    /// Who plays them.
    pub trained: Trained,
    /// How it chooses, whoever is evaluated.
    pub mode: ActMode,
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

/// Makes sure that every agent is played by at most one opponent, and that some are left.
///
/// # Errors
/// [`Failure::Usage`] naming the agent, or saying that none is left.
pub fn check(opponents: &[Opponent], spec: &EnvSpec) -> Result<()> {
    let mut taken = vec![false; spec.n_agents()];
    for opponent in opponents {
        for agent in opponent.indices(spec)? {
            if std::mem::replace(&mut taken[agent], true) {
                let message = format!("--opponent names {} twice", spec.agents[agent].name);
                return Err(Failure::usage(message, "an agent follows one policy"));
            }
        }
    }
    if taken.iter().all(|taken| *taken) {
        let help = "name one of several groups: what is compared plays the others";
        return Err(Failure::usage(format!("--opponent leaves no agent of `{}` to the runs that are compared", spec.name), help));
    }
    Ok(())
}

/// What tells opponents apart: who plays whom and how, by the checksums of their checkpoints; empty without opponents.
pub fn fingerprint(opponents: &[Opponent]) -> String {
    let one = |o: &Opponent| format!("{}={} {}", o.agents, o.trained.checkpoint.fingerprint(), mode_name(o.mode));
    opponents.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The learner of an opponent, which only acts.
struct Player {
    agents: Vec<usize>,
    learner: Box<dyn Learner>,
    mode: ActMode,
    /// A generator per slot, which begins an episode as the slot's own.
    rngs: Vec<Rng>,
    /// Slots whose episode begins.
    begins: Vec<bool>,
}

/// The learners of opponents.
pub struct Opponents(Vec<Player>);

impl Opponents {
    /// Restores the policies of `opponents` in the world of `spec`.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the run that cannot be restored.
    pub fn restore(opponents: &[Opponent], spec: &EnvSpec) -> Result<Self> {
        let one = |opponent: &Opponent| -> Result<Player> {
            let Trained { config, .. } = &opponent.trained;
            let learner = opponent.trained.learner(config, &Ground::of(config)?, spec)?;
            Ok(Player { agents: opponent.indices(spec)?, learner, mode: opponent.mode, rngs: Vec::new(), begins: Vec::new() })
        };
        opponents.iter().map(one).collect::<Result<_>>().map(Self)
    }

    /// The policy under which all agents but the opponents follow `own`.
    pub fn with<'a>(&'a mut self, own: &'a mut dyn Policy) -> impl Policy + 'a {
        for player in &mut self.0 {
            player.begins.fill(true);
        }
        Crossed { own, opponents: self, indices: Vec::new(), vectors: Vec::new(), log_probs: Vec::new() }
    }
}

/// One policy for some agents, others for the rest.
struct Crossed<'a> {
    own: &'a mut dyn Policy,
    opponents: &'a mut Opponents,
    indices: Vec<u32>,
    vectors: Vec<f32>,
    log_probs: Vec<f32>,
}

impl Policy for Crossed<'_> {
    fn reset(&mut self, slot: usize) {
        self.own.reset(slot);
        for Player { learner, begins, .. } in &mut self.opponents.0 {
            learner.policy().reset(slot);
            if let Some(begins) = begins.get_mut(slot) {
                *begins = true;
            }
        }
    }

    fn act(
        &mut self,
        observations: &ObservationBatch<'_>,
        rngs: &mut [Rng],
        mode: ActMode,
        out: &mut ActionBatch<'_>,
    ) -> steadfast_envs::Result<()> {
        let n_slots = observations.n_slots;
        for Player { rngs: kept, begins, .. } in &mut self.opponents.0 {
            // An agent has the same luck whoever plays it, as long as both draw alike; and its own from then on, so that a policy that draws
            // nothing does not make it draw the same again and again.
            kept.resize_with(n_slots, || rngs[0].clone());
            begins.resize(n_slots, true);
            for ((kept, begins), rng) in kept.iter_mut().zip(begins).zip(&*rngs) {
                if std::mem::take(begins) {
                    *kept = rng.clone();
                }
            }
        }
        self.own.act(observations, rngs, mode, out)?;
        let places = n_slots * observations.n_agents;
        self.log_probs.resize(places, 0.0);
        for Player { agents, learner, mode, rngs, .. } in &mut self.opponents.0 {
            let log_probs = &mut self.log_probs[..];
            let all = || (0..n_slots).flat_map(|slot| agents.iter().map(move |agent| slot * observations.n_agents + agent));
            match &mut out.actions {
                ActionsMut::Discrete(own) => {
                    self.indices.resize(places, 0);
                    let actions = ActionsMut::Discrete(&mut self.indices);
                    learner.policy().act(observations, rngs, *mode, &mut ActionBatch { actions, log_probs })?;
                    all().for_each(|place| own[place] = self.indices[place]);
                }
                ActionsMut::Continuous(own) => {
                    let width = own.len() / places.max(1);
                    self.vectors.resize(own.len(), 0.0);
                    let actions = ActionsMut::Continuous(&mut self.vectors);
                    learner.policy().act(observations, rngs, *mode, &mut ActionBatch { actions, log_probs })?;
                    all().for_each(|place| own[place * width..][..width].copy_from_slice(&self.vectors[place * width..][..width]));
                }
                ActionsMut::Tokens(_) => return Err(EnvError::Policy("texts are not played against opponents".to_string())),
            }
            all().for_each(|place| out.log_probs[place] = self.log_probs[place]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steadfast_agents::algorithms::ppo::{Ppo, PpoConfig};
    use steadfast_envs::{EnvConfig, SeedTree};

    /// Takes the first action, or draws many numbers before it does.
    struct Fixed {
        draws: usize,
    }

    impl Policy for Fixed {
        fn reset(&mut self, _slot: usize) {}

        fn act(&mut self, _: &ObservationBatch<'_>, rngs: &mut [Rng], _: ActMode, out: &mut ActionBatch<'_>) -> steadfast_envs::Result<()> {
            let ActionsMut::Discrete(actions) = &mut out.actions else { return Ok(()) };
            actions.fill(0);
            (0..self.draws).for_each(|_| rngs.iter_mut().for_each(|rng| _ = rng.unit()));
            Ok(())
        }
    }

    #[test]
    fn opponents_draw_anew_at_every_step_whatever_the_others_draw() {
        let world = EnvConfig::SimpleAdversary(Default::default()).build().unwrap();
        let spec = world.spec().clone();
        let (n_agents, width, steps) = (spec.n_agents(), spec.observation_width(), 30);
        let observations = vec![0.1; 2 * n_agents * width];
        let seen = ObservationBatch { n_slots: 2, n_agents, width, observations: &observations };
        let play = |draws: usize| {
            let learner = Ppo::new(&PpoConfig::default(), None, &spec, 2, SeedTree::new(1)).unwrap();
            let player =
                Player { agents: vec![1], learner: Box::new(learner), mode: ActMode::Sample, rngs: Vec::new(), begins: Vec::new() };
            let mut opponents = Opponents(vec![player]);
            let mut own = Fixed { draws };
            let mut policy = opponents.with(&mut own);
            let mut rngs = vec![Rng::from_seed(1), Rng::from_seed(2)];
            let mut taken = Vec::new();
            for _ in 0..steps {
                let (mut indices, mut log_probs) = (vec![9; 2 * n_agents], vec![0.0; 2 * n_agents]);
                let mut out = ActionBatch { actions: ActionsMut::Discrete(&mut indices), log_probs: &mut log_probs };
                policy.act(&seen, &mut rngs, ActMode::Greedy, &mut out).unwrap();
                assert!(indices.iter().enumerate().all(|(i, a)| i % n_agents == 1 || *a == 0), "{indices:?}");
                assert!(log_probs.iter().enumerate().all(|(i, l)| (i % n_agents == 1) == (*l < 0.0)), "{log_probs:?}");
                taken.push((indices[1], indices[n_agents + 1]));
            }
            taken
        };
        let taken = play(0);
        assert!(taken.iter().any(|pair| *pair != taken[0]) && taken.iter().any(|(a, b)| a != b), "{taken:?}");
        assert_eq!(play(5), taken);
    }
}
