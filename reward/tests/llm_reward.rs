//! Transformer reward models on a tiny decoder.
#![cfg(feature = "llm")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod llm_tiny;

use llm_tiny::{bits, check_gradient, copy, decoder, distance, pairs, trainer, trainer_config};
use steadfast_agents::llm::{Decoder, Device, TokenSequence};
use steadfast_envs::{RewardFn, SeedTree, Transition, write_tokens};
use steadfast_reward::margin::{CrossEntropyConfig, DropConfig};
use steadfast_reward::model::{TransformerReward, TransformerRewardConfig};
use steadfast_reward::{
    EncodedPair, EncodedPreference, FitConfig, LossConfig, LossValue, MarginLoss, R3mConfig, RewardModel, RewardObjective,
    RewardObjectiveConfig, RewardScale, Selection, TextReward, fit,
};

fn scalar(seed: u64) -> Decoder {
    decoder(seed).with_scalar_head(SeedTree::new(seed)).unwrap()
}

fn model(config: &TransformerRewardConfig) -> TransformerReward {
    TransformerReward::new(&decoder(1), config, SeedTree::new(1)).unwrap()
}

fn step(model: &mut TransformerReward, pairs: &[EncodedPreference]) -> f32 {
    let pairs: Vec<&EncodedPair> = pairs.iter().map(|p| &p.pair).collect();
    let equal = vec![false; pairs.len()];
    let mut sum = 0.0;
    let mut loss = |margins: &[f32], out: &mut [LossValue]| {
        MarginLoss::CrossEntropy.batch(margins, &equal, out);
        sum = out.iter().map(|l| l.value).sum::<f32>() / margins.len() as f32;
    };
    model.step(&pairs, &mut loss, 1e-3).unwrap();
    sum
}

#[test]
fn a_reward_does_not_depend_on_what_stands_beside_it() {
    let model = model(&TransformerRewardConfig::default());
    let data = pairs(9, 1);
    let all: Vec<&TokenSequence> = data.iter().flat_map(|p| [&p.pair.chosen, &p.pair.rejected]).collect();
    let together = model.rewards(&all).unwrap();
    for (sequence, reward) in all.iter().zip(&together) {
        let alone = model.rewards(&[sequence]).unwrap()[0];
        assert!((alone - reward).abs() < 1e-5, "{alone} and {reward}");
    }
    // Where the prompt ends makes no difference: the score is that of the last token.
    let moved = TokenSequence { tokens: all[0].tokens.clone(), prompt_len: 1 };
    assert!((model.rewards(&[&moved]).unwrap()[0] - together[0]).abs() < 1e-5);
}

#[test]
fn a_fit_learns_the_order_and_finds_wrong_labels() {
    for loss in [LossConfig::CrossEntropy(CrossEntropyConfig {}), LossConfig::R3m(R3mConfig { lambda: 0.5 })] {
        let config =
            FitConfig { epochs: 4, batch_size: 16, learning_rate: 3e-3, validation_fraction: 0.15, selection: Selection::NoisyValidation };
        let mut model = model(&TransformerRewardConfig::default());
        let (train, test) = (pairs(160, 1), pairs(60, 2));
        let report = fit(&mut model, &train, &test, &loss, &config, SeedTree::new(4), &mut |_| {}).unwrap();
        let selected = &report.epochs[report.selected_epoch - 1];
        assert!(selected.test_accuracy.unwrap() > 0.9, "{selected:?}");
        assert!(report.detection.unwrap().auroc > 0.9);
    }
}

#[test]
fn micro_batches_change_memory_and_nothing_else() {
    let with = |micro_batch_size| {
        let mut model = model(&TransformerRewardConfig { micro_batch_size, center_rewards_coefficient: 0.1, ..Default::default() });
        let losses: Vec<f32> = (0..3).map(|_| step(&mut model, &pairs(8, 1))).collect();
        (losses, model.into_decoder())
    };
    let ((a, whole), (b, parts)) = (with(8), with(3));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} and {b:?}");
    assert!(distance(&whole, &parts) < 1e-4);
}

#[test]
fn the_objective_and_the_model_take_the_same_step() {
    let mut config = trainer_config(8, 8);
    config.schedule.warmup = 0.0;
    config.schedule.decay = steadfast_agents::schedule::Decay::Constant;
    let settings = RewardObjectiveConfig { loss: LossConfig::CrossEntropy(CrossEntropyConfig {}), center_rewards_coefficient: 0.1 };
    let mut by_model = model(&TransformerRewardConfig { center_rewards_coefficient: 0.1, ..Default::default() });
    let start = copy(by_model.decoder());
    let mut run = trainer(&config, start, RewardObjective::new(&settings, pairs(8, 1), vec![]).unwrap());
    let order = run.batch(0);
    let metrics = run.step().unwrap();
    let loss = step(&mut by_model, &order.iter().map(|&i| pairs(8, 1)[i].clone()).collect::<Vec<_>>());
    assert!((metrics.get("loss/ce").unwrap() - f64::from(loss)).abs() < 1e-6);
    assert!(distance(run.decoder(), by_model.decoder()) < 1e-5, "{}", distance(run.decoder(), by_model.decoder()));
}

#[test]
fn gradients_are_derivatives_of_the_loss() {
    for (name, loss) in [("r3m", LossConfig::R3m(R3mConfig { lambda: 0.4 })), ("ce", LossConfig::CrossEntropy(CrossEntropyConfig {}))] {
        let settings = RewardObjectiveConfig { loss, center_rewards_coefficient: 0.2 };
        let mut data = pairs(5, 1);
        data[1].margin = Some(0.4);
        data[2].equal = true;
        check_gradient(name, &scalar(1), 2, &|| Box::new(RewardObjective::new(&settings, data.clone(), vec![]).unwrap()));
    }
}

#[test]
fn the_objective_learns_and_reports() {
    let mut config = trainer_config(16, 8);
    (config.epochs, config.learning_rate) = (4, 3e-3);
    let objective = RewardObjective::new(&RewardObjectiveConfig::default(), pairs(160, 1), pairs(60, 2)).unwrap();
    let mut run = trainer(&config, scalar(1), objective);
    let mut last = None;
    for _ in 0..run.n_steps() {
        last = Some(run.step().unwrap());
    }
    let (metrics, last) = (run.evaluate().unwrap(), last.unwrap());
    assert!(metrics.get("eval/true_accuracy").unwrap() > 0.9 && metrics.get("eval/r3m_auroc").unwrap() > 0.9, "{metrics:?}");
    assert!(last.get("rewards/min").unwrap() <= last.get("rewards/max").unwrap());
    assert_eq!(last.get("r3m/lambda"), Some(0.75));
    assert_eq!(run.example_table().unwrap().rows.len(), run.objective().n_examples());
}

#[test]
fn a_state_continues_exactly_and_a_reset_starts_again() {
    let mut model = model(&TransformerRewardConfig::default());
    let start = model.state();
    for _ in 0..2 {
        step(&mut model, &pairs(6, 1));
    }
    let state = model.state();
    let losses: Vec<f32> = (0..2).map(|_| step(&mut model, &pairs(6, 1))).collect();
    let mut other = TransformerReward::new(&decoder(9), &TransformerRewardConfig::default(), SeedTree::new(9)).unwrap();
    other.load_state(&state).unwrap();
    assert_eq!(losses, (0..2).map(|_| step(&mut other, &pairs(6, 1))).collect::<Vec<_>>());
    assert_eq!(bits(&other.state()), bits(&model.state()));
    model.reset(1);
    let again = model.state();
    let differing: Vec<&String> = start.arrays.keys().filter(|&name| start.arrays[name] != again.arrays[name]).collect();
    // All but the head is as it was; the head is drawn from another seed than that of the start.
    assert!(differing.iter().all(|name| name.contains("score")), "{differing:?}");
    model.reset(1);
    assert_eq!(bits(&model.state()), bits(&again));
}

#[test]
fn a_saved_model_gives_the_same_rewards() {
    let folder = tempfile::tempdir().unwrap();
    let mut trained = model(&TransformerRewardConfig::default());
    step(&mut trained, &pairs(6, 1));
    trained.save(folder.path()).unwrap();
    let loaded = TransformerReward::load(folder.path(), &Device::Cpu, &TransformerRewardConfig::default()).unwrap();
    let data = pairs(6, 2);
    let sequences: Vec<&TokenSequence> = data.iter().map(|p| &p.pair.chosen).collect();
    assert_eq!(trained.rewards(&sequences).unwrap(), loaded.rewards(&sequences).unwrap());
    // A language model is not taken for a reward model.
    let language = tempfile::tempdir().unwrap();
    decoder(1).save(language.path()).unwrap();
    let error = TransformerReward::load(language.path(), &Device::Cpu, &TransformerRewardConfig::default()).unwrap_err().to_string();
    assert!(error.contains("score.weight"), "{error}");
    assert!(TextReward::load(language.path(), &Device::Cpu).err().unwrap().to_string().contains("score.weight"));
}

#[test]
fn rewards_in_the_rollout_engine_are_standardised() {
    let data = pairs(30, 1);
    let sequences: Vec<&TokenSequence> = data.iter().flat_map(|p| [&p.pair.chosen, &p.pair.rejected]).collect();
    let decoder = scalar(1);
    let scale = RewardScale::fit(&decoder, &sequences).unwrap();
    let folder = tempfile::tempdir().unwrap();
    decoder.save(folder.path()).unwrap();
    scale.save(folder.path()).unwrap();
    let mut reward = TextReward::load(folder.path(), &Device::Cpu).unwrap();
    let all = reward.rewards(&sequences).unwrap();
    let n = all.len() as f32;
    let mean = all.iter().sum::<f32>() / n;
    let deviation = (all.iter().map(|r| (r - mean) * (r - mean)).sum::<f32>() / n).sqrt();
    assert!(mean.abs() < 1e-4 && (deviation - 1.0).abs() < 1e-4, "{mean}, {deviation}");
    let mut row = [0.0; 12];
    write_tokens("test", sequences[0].prompt(), &mut row).unwrap();
    let transition = Transition {
        agent: 0,
        observation: &row,
        action_index: None,
        action: &[],
        tokens: sequences[0].completion(),
        next_observation: &row,
        reward: 0.0,
        terminated: true,
    };
    assert!((reward.reward(&transition).unwrap() - all[0]).abs() < 1e-4);
    let without = Transition { tokens: &[], ..transition };
    assert!(reward.reward(&without).is_err());
    let strange = Transition { tokens: &[1000], ..transition };
    assert!(reward.reward(&strange).unwrap_err().to_string().contains("vocabulary"));
}

#[test]
fn what_cannot_be_used_is_refused() {
    let refused = RewardObjectiveConfig { loss: LossConfig::Trimmed(DropConfig::default()), ..Default::default() };
    assert!(refused.validate().is_err());
    let center = RewardObjectiveConfig { center_rewards_coefficient: -1.0, ..Default::default() };
    assert!(center.validate().unwrap_err().to_string().contains("center_rewards_coefficient"));
    assert!(TransformerRewardConfig { micro_batch_size: 0, ..Default::default() }.validate().is_err());
    let objective = RewardObjective::new(&RewardObjectiveConfig::default(), pairs(4, 1), vec![]).unwrap();
    let error = trainer(&trainer_config(2, 2), decoder(1), objective).step().unwrap_err().to_string();
    assert!(error.contains("scalar head"), "{error}");
    assert!(RewardScale::fit(&scalar(1), &[]).is_err());
    assert!(TextReward::new(scalar(1), RewardScale { mean: 0.0, deviation: 0.0 }).is_err());
}
