//! Gradients against central differences; attacks on the value.

use super::*;
use steadfast_envs::testing::IdentityConfig;
use steadfast_envs::{RolloutEngine, RolloutOptions, VectorEnv};

/// A learner with some experience.
fn experienced(continuous_actions: bool, action: Option<&ActionRegularizerConfig>) -> Maddpg {
    let seeds = SeedTree::new(3);
    let env = || IdentityConfig { n_agents: 3, continuous_actions, ..IdentityConfig::default() }.build().unwrap();
    let vector = VectorEnv::new(vec![Box::new(env()), Box::new(env())], seeds.child("environment")).unwrap();
    let config = MaddpgConfig {
        activation: Activation::Tanh,
        sharing: Sharing::Group,
        policy_hidden: vec![7],
        critic_hidden: vec![7],
        logit_penalty: 0.1,
        replay: ReplayConfig { batch_size: 20, learning_starts: 0, capacity: 1000, ..ReplayConfig::default() },
        ..MaddpgConfig::default()
    };
    let mut learner = Maddpg::new(&config, None, action, vector.spec(), 2, seeds.child("learner")).unwrap();
    // Larger first actions than those of a fresh actor, so that their derivatives can be seen.
    learner.groups[0].actor.net.parameters_mut().iter_mut().for_each(|w| *w *= 3.0);
    let mut engine = RolloutEngine::new(vector, seeds.child("policy"), RolloutOptions::default()).unwrap();
    let mut batch = RolloutBatch::default();
    engine.collect(&mut learner, 50, ActMode::Sample, &mut batch).unwrap();
    learner.replay.extend(&batch);
    learner.rng = Rng::from_seed(5);
    learner.draw();
    learner.choose_next();
    learner
}

fn close(gradient: &[f32], mut at: impl FnMut(usize, f32) -> f64) -> (usize, usize) {
    let h = 1e-2;
    let (mut compared, mut close) = (0, 0);
    for i in (0..gradient.len()).filter(|i| gradient[*i] != 0.0) {
        let numeric = (at(i, h) - at(i, -h)) / f64::from(2.0 * h);
        compared += 1;
        close += usize::from((numeric - f64::from(gradient[i])).abs() < 2e-2 * numeric.abs().max(0.1));
    }
    (close, compared)
}

#[test]
fn critic_gradients_match_central_differences() {
    let weight = 0.7;
    for (continuous_actions, agents) in [(false, 0), (false, 1), (false, 2), (true, 0), (true, 2)] {
        let action = ActionRegularizerConfig { weight, agents, radius: 0.5, warmup_fraction: 0.0, ..Default::default() };
        let mut learner = experienced(continuous_actions, (agents > 0).then_some(&action));
        let mut loss = |i: usize, d: f32| {
            learner.groups[0].critic.net.parameters_mut()[i] += d;
            let mut sums = Sums::default();
            learner.learn_values(0, 1.0, &mut sums);
            learner.groups[0].critic.net.parameters_mut()[i] -= d;
            let mut metrics = Metrics::default();
            sums.action.log(weight, &mut metrics);
            (sums.critic_loss + weight * metrics.get("ernie_action/penalty").unwrap_or(0.0), learner.groups[0].critic.gradient.clone())
        };
        let gradient = loss(0, 0.0).1;
        let (close, compared) = close(&gradient, |i, d| loss(i, d).0);
        // Continuous adversaries answer a change of the weights, which the penalty counts as constant.
        let least = if continuous_actions && agents > 0 { 0.6 } else { 0.97 };
        assert!(compared > 50 && close as f64 > least * compared as f64, "{continuous_actions} {agents}: {close} of {compared}");
    }
}

#[test]
fn actor_gradients_match_central_differences() {
    let mut learner = experienced(true, None);
    let mut loss = |i: usize, d: f32| {
        learner.groups[0].actor.net.parameters_mut()[i] += d;
        let mut sums = Sums::default();
        learner.learn_policy(0, 1.0, &mut sums).unwrap();
        let outputs = learner.groups[0].actor.trace.output();
        let penalty = outputs.iter().map(|v| f64::from(v * v)).sum::<f64>() / outputs.len() as f64;
        learner.groups[0].actor.net.parameters_mut()[i] -= d;
        (sums.actor_loss + 0.1 * penalty, learner.groups[0].actor.gradient.clone())
    };
    let gradient = loss(0, 0.0).1;
    let (close, compared) = close(&gradient, |i, d| loss(i, d).0);
    assert!(compared > 30 && close as f64 > 0.97 * compared as f64, "{close} of {compared}");
}

/// What the actors do most likely, as critics see it `[slot, all actions]`.
fn greedy_actions(learner: &mut Maddpg, observations: &ObservationBatch<'_>) -> Vec<f32> {
    let (layout_action, is_discrete, width) = (learner.layout.action, learner.layout.is_discrete, learner.action_width);
    let n = observations.n_slots * observations.n_agents;
    let mut rngs = vec![Rng::from_seed(0); observations.n_slots];
    let (mut indices, mut vectors, mut log_probs) = (vec![0; n], vec![0.0; n * width], vec![0.0; n]);
    let actions = if is_discrete { ActionsMut::Discrete(&mut indices) } else { ActionsMut::Continuous(&mut vectors) };
    let mut out = ActionBatch { actions, log_probs: &mut log_probs };
    learner.act(observations, &mut rngs, ActMode::Greedy, &mut out).unwrap();
    let mut joint = vec![0.0; observations.n_slots * layout_action];
    for place in 0..n {
        let (slot, agent) = (place / observations.n_agents, place % observations.n_agents);
        let to = &mut joint[slot * layout_action + learner.layout.actions[agent]..][..learner.layout.widths[agent]];
        if is_discrete {
            to[indices[place] as usize] = 1.0;
        } else {
            // The identity task has actions from -1 to 1.
            to.copy_from_slice(&vectors[place * width..place * width + to.len()]);
        }
    }
    joint
}

#[test]
fn attacks_on_the_value_lower_what_the_critic_gives_for_the_action_taken() {
    for continuous_actions in [false, true] {
        let mut learner = experienced(continuous_actions, None);
        let (slots, agents, width) = (12, 3, learner.observation_width);
        let mut rng = Rng::from_seed(2);
        let observations: Vec<f32> = (0..slots * agents * width).map(|_| rng.normal_f32()).collect();
        let observed = ObservationBatch { n_slots: slots, n_agents: agents, width, observations: &observations };
        let clean = greedy_actions(&mut learner, &observed);
        let config = ObservationAttackConfig { radius: 0.7, ..ObservationAttackConfig::default() };
        assert!(learner.set_value_attack(Some((&config, SeedTree::new(1)))));
        let attacked = greedy_actions(&mut learner, &observed);
        learner.set_value_attack(None);
        assert_eq!(greedy_actions(&mut learner, &observed), clean);

        // The worth of each agent's own action while the others do what they would.
        let Maddpg { layout, groups, .. } = &learner;
        let Group { input, critic, .. } = &groups[0];
        let (mut joint, mut seen) = (vec![0.0; slots * layout.observation], Vec::new());
        input.gather(&observations, agents, width, &mut seen);
        layout.join_observations(input, &seen, &mut joint);
        let value = |slot: usize, agent: usize, own: &[f32]| {
            let mut actions = clean[slot * layout.action..(slot + 1) * layout.action].to_vec();
            let at = layout.actions[agent]..layout.actions[agent] + layout.widths[agent];
            actions[at.clone()].copy_from_slice(&own[slot * layout.action..][at]);
            let (mut row, mut value) = (Vec::new(), [0.0]);
            layout.push_row(input, &joint[slot * layout.observation..][..layout.observation], &actions, agent, &mut row);
            critic.net.forward(&row, 1, &mut value, &mut Workspace::default());
            value[0]
        };
        let mut lowered = 0;
        for (slot, agent) in (0..slots).flat_map(|slot| (0..agents).map(move |agent| (slot, agent))) {
            let (before, after) = (value(slot, agent, &clean), value(slot, agent, &attacked));
            assert!(after <= before + 1e-5, "{continuous_actions} {slot} {agent}: {before} {after}");
            lowered += usize::from(after < before - 1e-5);
        }
        assert!(lowered > slots, "{continuous_actions}: {lowered} of {}", slots * agents);
    }
}

#[test]
fn relaxed_draws_are_draws_from_the_softmax() {
    let head = PolicyHead::Categorical { n: 3 };
    let logits = [0.5, -0.5, 1.0];
    let n = 30_000;
    let mut outputs = logits.repeat(n);
    let (mut probabilities, mut rng) = (Vec::new(), Rng::from_seed(1));
    act_softly(&head, 0.7, &mut outputs, &mut probabilities, &mut rng);
    let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    for choice in 0..3 {
        let share = outputs.iter().skip(choice).step_by(3).map(|v| f64::from(*v)).sum::<f64>() / n as f64;
        assert!((share - f64::from(logits[choice]).exp() / total).abs() < 0.01, "{choice}: {share}");
    }
    for (action, p) in outputs.chunks_exact(3).zip(probabilities.chunks_exact(3)) {
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let most = p.iter().copied().fold(0.0, f32::max);
        assert!(action.iter().zip(p).all(|(a, p)| (*a == 1.0) == (*p == most)));
    }
}
