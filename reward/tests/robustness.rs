//! The synthetic experiment by which R3M is judged here: what a reward network learns from labels of which some are wrong.
//!
//! Segments of 10 steps of the world `random_reward`, labelled by their true returns, then corrupted; a network 6-64-64-1,
//! Adam at 3e-3, 10 passes in batches of 64 over 1000 pairs; accuracy on 2000 clean pairs of the same task. Losses are
//! compared with the same data, wrong labels, initial weights and batches.
//!
//! A second implementation of this experiment (numpy, another draw of tasks, six seeds) measured an accuracy of 0.902 with
//! clean labels for cross-entropy and R3M at λ = 0.9, and with the clearest 6.25 % of the pairs flipped 0.825 for
//! cross-entropy, 0.869 for R3M at λ = 0.3.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and the figures are worth a look with --nocapture"
)]

mod random_policy;

use random_policy::RandomPolicy;
use steadfast_envs::random_reward::RandomRewardConfig;
use steadfast_envs::{ActMode, Environment, RolloutEngine, RolloutOptions, SeedTree, VectorEnv};
use steadfast_reward::dataset::noise::IrrationalNoiseConfig;
use steadfast_reward::dataset::{UnlabelledPair, collect_segments};
use steadfast_reward::model::{MlpReward, MlpRewardConfig, RewardInputs, SegmentSpec};
use steadfast_reward::{FitConfig, LossConfig, NoiseConfig, R3mConfig, SegmentPair, SegmentPreference, fit};

const STEPS: usize = 10;

/// One task: a drawn reward, training pairs with `noise`, clean test pairs.
struct Task {
    seeds: SeedTree,
    spec: SegmentSpec,
    train: Vec<SegmentPreference>,
    test: Vec<SegmentPreference>,
}

impl Task {
    fn new(seed: u64, noise: &NoiseConfig) -> Self {
        let seeds = SeedTree::new(seed);
        let config = RandomRewardConfig { horizon: STEPS, seed: seeds.child("reward").seed(), ..Default::default() };
        let envs = (0..8).map(|_| Box::new(config.build().unwrap()) as Box<dyn Environment>).collect();
        let vector = VectorEnv::new(envs, seeds.child("environment")).unwrap();
        let (spec, mut policy) = (SegmentSpec::of(vector.spec()).unwrap(), RandomPolicy(vector.spec().clone()));
        let mut engine = RolloutEngine::new(vector, seeds.child("policy"), RolloutOptions::default()).unwrap();
        let mut labelled = |n: usize, noise: &NoiseConfig, purpose: &str| {
            let mode = ActMode::Sample;
            let found = collect_segments(&mut engine, &mut policy, "random", 2 * n, STEPS, mode, seeds.child("segments")).unwrap();
            let mut segments = found.segments.into_iter();
            let pairs = (0..n).map(|i| {
                let pair = SegmentPair { chosen: segments.next().unwrap(), rejected: segments.next().unwrap() };
                UnlabelledPair::of_segments(format!("{purpose} {i}"), pair, STEPS).unwrap()
            });
            noise.label(pairs.collect(), None, seeds.child(purpose)).unwrap().0
        };
        let train = labelled(1000, noise, "train");
        let test = labelled(2000, &NoiseConfig::default(), "test");
        Self { seeds, spec, train, test }
    }

    /// Accuracy on the test pairs after the last pass, and the area under the curve of detection.
    fn accuracy(&self, loss: &LossConfig) -> (f64, Option<f64>) {
        let network = MlpRewardConfig { inputs: RewardInputs::Observation, normalize_inputs: false, ..Default::default() };
        let mut model = MlpReward::new(&network, self.spec, self.seeds.child("network")).unwrap();
        let all = FitConfig::default();
        let report = fit(&mut model, &self.train, &[], loss, &all, self.seeds.child("fit"), &mut |_| {}).unwrap();
        let mut margins = vec![0.0; self.test.len()];
        let pairs: Vec<&SegmentPair> = self.test.iter().map(|p| &p.pair).collect();
        steadfast_reward::RewardModel::margins(&mut model, &pairs, &mut margins).unwrap();
        (steadfast_reward::metrics::accuracy(&margins).unwrap(), report.detection.map(|d| d.auroc))
    }
}

fn cross_entropy() -> LossConfig {
    LossConfig::CrossEntropy(Default::default())
}

fn r3m(lambda: f64) -> LossConfig {
    LossConfig::R3m(R3mConfig { lambda })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Accuracies of cross-entropy and of R3M, seed by seed.
fn compare(noise: &NoiseConfig, lambda: f64, seeds: std::ops::Range<u64>) -> [Vec<f64>; 2] {
    let mut accuracies = [Vec::new(), Vec::new()];
    for seed in seeds {
        let task = Task::new(seed, noise);
        for (loss, accuracies) in [cross_entropy(), r3m(lambda)].iter().zip(&mut accuracies) {
            let (accuracy, auroc) = task.accuracy(loss);
            accuracies.push(accuracy);
            if *noise == irrational() {
                assert!(auroc.unwrap() > 0.98, "the clearest wrong labels must stand out: {auroc:?}");
            }
        }
    }
    println!("{} lambda {lambda}: cross-entropy {:.4}, R3M {:.4}", noise.name(), mean(&accuracies[0]), mean(&accuracies[1]));
    accuracies
}

fn irrational() -> NoiseConfig {
    NoiseConfig::Irrational(IrrationalNoiseConfig::default())
}

#[test]
fn few_clear_errors_hurt_r3m_less_and_clean_labels_cost_it_nothing() {
    let [plain, robust] = compare(&irrational(), 0.3, 0..3);
    // One of three seeds may be unlucky; the full comparison below asks for more.
    assert!(mean(&robust) - mean(&plain) >= 0.01, "{plain:?} {robust:?}");
    let [plain, robust] = compare(&NoiseConfig::default(), 0.9, 0..1);
    assert!((mean(&robust) - mean(&plain)).abs() <= 0.01, "{plain:?} {robust:?}");
    assert!((0.86..0.94).contains(&mean(&plain)), "{plain:?}");
}

#[test]
#[ignore = "ten seeds take about half a minute"]
fn ten_seeds_keep_the_projects_own_gates() {
    let [plain, robust] = compare(&irrational(), 0.3, 0..10);
    assert!(mean(&robust) - mean(&plain) >= 0.02, "{plain:?} {robust:?}");
    assert!((0.79..0.88).contains(&mean(&plain)), "{plain:?}");
    assert!((0.84..0.91).contains(&mean(&robust)), "{robust:?}");
    let [plain, robust] = compare(&NoiseConfig::default(), 0.9, 0..10);
    assert!((mean(&robust) - mean(&plain)).abs() <= 0.005, "{plain:?} {robust:?}");
    assert!((0.88..0.92).contains(&mean(&plain)), "{plain:?}");
    // Twice as many wrong labels.
    let twice = NoiseConfig::Irrational(IrrationalNoiseConfig { exponent: 0.5, ..Default::default() });
    let [plain, robust] = compare(&twice, 0.3, 0..10);
    assert!(mean(&robust) - mean(&plain) >= 0.03, "{plain:?} {robust:?}");
}
