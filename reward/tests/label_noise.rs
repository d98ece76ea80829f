//! Label noise against a restatement of its rules (`python tests/golden/generate/label_noise.py`), and its statistics.

use proptest::prelude::*;
use serde::Deserialize;
use steadfast_envs::SeedTree;
use steadfast_reward::dataset::noise::{
    Compared, IrrationalNoiseConfig, LengthBiasConfig, MaliciousNoiseConfig, MyopicNoiseConfig, NoNoiseConfig, StochasticNoiseConfig,
    TeacherConfig, TrueRewards, UniformNoiseConfig,
};
use steadfast_reward::dataset::{LabelReport, NoiseConfig, ReturnScale, UnlabelledPair};
use steadfast_reward::{Preference, Segment, SegmentPair, SegmentPreference, Text, TextPair, TextPreference, Truth};

const NONE: NoiseConfig = NoiseConfig::None(NoNoiseConfig {});

#[derive(Deserialize)]
struct Fixture {
    steps: usize,
    average_return: f64,
    episode_steps: f64,
    rewards: Vec<[Vec<f32>; 2]>,
    teachers: Vec<Teacher>,
    myopic: Vec<Myopic>,
    irrational: Vec<Irrational>,
}

#[derive(Deserialize)]
struct Teacher {
    config: TeacherConfig,
    skipped: Vec<bool>,
    equal: Vec<bool>,
    second: Vec<f64>,
}

#[derive(Deserialize)]
struct Myopic {
    discount: f64,
    sign: Vec<i8>,
}

#[derive(Deserialize)]
struct Irrational {
    exponent: f64,
    batch_size: usize,
    flipped: Vec<bool>,
}

fn fixture() -> Fixture {
    let path = format!("{}/../tests/golden/label_noise.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A segment that carries its number in its observation, so that it is recognised after labelling.
fn segment(number: usize, rewards: &[f32], steps: usize) -> Segment {
    Segment {
        steps: rewards.len(),
        observations: vec![number as f32; rewards.len()],
        rewards: rewards.to_vec(),
        terminated: rewards.len() < steps,
        ..Segment::default()
    }
}

fn segments(rewards: &[[Vec<f32>; 2]], steps: usize) -> Vec<UnlabelledPair<SegmentPair>> {
    let pair = |(i, r): (usize, &[Vec<f32>; 2])| {
        let pair = SegmentPair { chosen: segment(2 * i, &r[0], steps), rejected: segment(2 * i + 1, &r[1], steps) };
        UnlabelledPair::of_segments(format!("{i}"), pair, steps).expect("whole segments")
    };
    rewards.iter().enumerate().map(pair).collect()
}

/// The number of the pair, and whether its first segment was preferred.
fn read(preference: &SegmentPreference) -> (usize, bool) {
    let i = preference.id.parse().expect("identifiers are numbers");
    let first = preference.pair.chosen.observations[0] == (2 * i) as f32;
    let other = preference.pair.rejected.observations[0] as usize;
    assert_eq!(other, 2 * i + usize::from(first), "chosen and rejected are the two of one pair");
    (i, first)
}

/// A pair that is nothing but a number and its order.
#[derive(Debug, Clone, PartialEq)]
struct Numbered {
    first_is_chosen: bool,
    lengths: (usize, usize),
    temptations: Option<(f64, f64)>,
}

impl Compared for Numbered {
    fn exchange(&mut self) {
        self.first_is_chosen = !self.first_is_chosen;
        self.lengths = (self.lengths.1, self.lengths.0);
        self.temptations = self.temptations.map(|(one, other)| (other, one));
    }

    fn temptations(&self) -> Option<(f64, f64)> {
        self.temptations
    }

    fn lengths(&self) -> (usize, usize) {
        self.lengths
    }
}

fn values(gaps: impl IntoIterator<Item = f64>) -> Vec<UnlabelledPair<Numbered>> {
    let pair = Numbered { first_is_chosen: true, lengths: (1, 1), temptations: None };
    gaps.into_iter().enumerate().map(|(i, gap)| UnlabelledPair::of_values(i.to_string(), pair.clone(), gap, 0.0)).collect()
}

/// Gaps without ties, both signs.
fn random_gaps(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = SeedTree::new(seed).child("gaps").rng();
    (0..n).map(|_| 2.0 * rng.normal()).collect()
}

fn label(noise: &NoiseConfig, pairs: Vec<UnlabelledPair<Numbered>>, seed: u64) -> (Vec<Preference<Numbered>>, LabelReport) {
    noise.label(pairs, None, SeedTree::new(seed)).expect("finite values")
}

/// What every labelled data set must satisfy.
fn check_flags<P>(preferences: &[Preference<P>], report: &LabelReport) {
    for p in preferences {
        let (chosen, rejected) = p.truth.gold_chosen.zip(p.truth.gold_rejected).expect("true values are recorded");
        let expected = (!p.equal && chosen != rejected).then_some(chosen < rejected);
        assert_eq!(p.truth.flipped, expected, "pair {}", p.id);
    }
    let flipped = preferences.iter().filter(|p| p.truth.flipped == Some(true)).count();
    let known = preferences.iter().filter(|p| p.truth.flipped.is_some()).count();
    assert_eq!(report.flipped, flipped);
    assert_eq!(report.rate, if known == 0 { 0.0 } else { flipped as f64 / known as f64 });
    assert_eq!(report.pairs, preferences.len() + report.dropped);
    assert_eq!(report.equal, preferences.iter().filter(|p| p.equal).count());
}

/// Within five standard deviations of a binomial count: a correct program fails once in 1.7 million draws.
fn assert_binomial(what: &str, count: usize, n: usize, p: f64) {
    let sd = (n as f64 * p * (1.0 - p)).sqrt();
    assert!((count as f64 - n as f64 * p).abs() <= 5.0 * sd + 1e-9, "{what}: {count} of {n}, expected {:.1} ± {sd:.1}", n as f64 * p);
}

#[test]
fn teacher_follows_the_published_rules() {
    let fixture = fixture();
    let scale = ReturnScale { average_return: fixture.average_return, episode_steps: fixture.episode_steps };
    let draws = 2000;
    let (mut skips, mut equals) = (0, 0);
    for (number, teacher) in fixture.teachers.iter().enumerate() {
        let noise = NoiseConfig::Teacher(teacher.config);
        let mut seconds = vec![0; fixture.rewards.len()];
        for seed in 0..draws {
            let pairs = segments(&fixture.rewards, fixture.steps);
            let (preferences, report) = noise.label(pairs, Some(&scale), SeedTree::new(seed)).unwrap();
            check_flags(&preferences, &report);
            let kept: Vec<usize> = preferences.iter().map(|p| read(p).0).collect();
            let expected: Vec<usize> = (0..fixture.rewards.len()).filter(|&i| !teacher.skipped[i]).collect();
            assert_eq!(kept, expected, "teacher {number}: pairs that are not skipped");
            assert_eq!(report.dropped, fixture.rewards.len() - expected.len());
            for p in &preferences {
                let (i, first) = read(p);
                assert_eq!(p.equal, teacher.equal[i], "teacher {number}, pair {i}");
                assert!(first || !p.equal, "equal pairs keep the order in which they came");
                seconds[i] += usize::from(!first);
            }
        }
        for i in (0..seconds.len()).filter(|&i| !teacher.skipped[i] && !teacher.equal[i]) {
            assert_binomial(&format!("teacher {number}, pair {i}"), seconds[i], draws as usize, teacher.second[i]);
        }
        skips += teacher.skipped.iter().filter(|&&s| s).count();
        equals += teacher.equal.iter().filter(|&&e| e).count();
    }
    assert!(skips > 5 && equals > 5, "the fixture exercises both rules: {skips}, {equals}");
}

#[test]
fn myopic_labels_follow_the_weighted_sums() {
    let fixture = fixture();
    for case in &fixture.myopic {
        let noise = NoiseConfig::Myopic(MyopicNoiseConfig { discount: case.discount });
        let (preferences, report) = noise.label(segments(&fixture.rewards, fixture.steps), None, SeedTree::new(1)).unwrap();
        check_flags(&preferences, &report);
        for p in &preferences {
            let (i, first) = read(p);
            if case.sign[i] != 0 {
                assert_eq!(first, case.sign[i] > 0, "discount {}, pair {i}", case.discount);
            }
        }
        assert_eq!(report.flipped == 0, case.discount == 1.0, "discount {}: {} wrong labels", case.discount, report.flipped);
    }
}

#[test]
fn irrational_flips_are_those_of_the_restatement() {
    let fixture = fixture();
    for case in &fixture.irrational {
        let noise = NoiseConfig::Irrational(IrrationalNoiseConfig { exponent: case.exponent, batch_size: case.batch_size });
        let (preferences, report) = noise.label(segments(&fixture.rewards, fixture.steps), None, SeedTree::new(1)).unwrap();
        check_flags(&preferences, &report);
        for p in preferences.iter().filter(|p| p.truth.flipped.is_some()) {
            let i = read(p).0;
            assert_eq!(p.truth.flipped, Some(case.flipped[i]), "exponent {}, pair {i}", case.exponent);
        }
    }
}

#[test]
fn irrational_counts_are_exact() {
    let n = 1000;
    for (exponent, batch_size, per_batch, last) in
        // 1000 = 15 · 64 + 40; 40^(1/3) = 3.42, 40^(1/2) = 6.32, 40^(2/3) = 11.70.
        [(1.0 / 3.0, 64, 4, 3), (0.5, 64, 8, 6), (2.0 / 3.0, 64, 16, 12)]
    {
        let noise = NoiseConfig::Irrational(IrrationalNoiseConfig { exponent, batch_size });
        let (preferences, report) = label(&noise, values(random_gaps(n, 3)), 0);
        check_flags(&preferences, &report);
        assert_eq!(report.flipped, 15 * per_batch + last);
        for batch in preferences.chunks(batch_size) {
            let gap = |p: &Preference<Numbered>| (p.truth.gold_chosen.unwrap() - p.truth.gold_rejected.unwrap()).abs();
            let least = batch.iter().filter(|p| p.truth.flipped == Some(true)).map(gap).fold(f64::INFINITY, f64::min);
            let most = batch.iter().filter(|p| p.truth.flipped == Some(false)).map(gap).fold(0.0, f64::max);
            assert!(least > most);
        }
    }
}

#[test]
fn uniform_rate_is_binomial_and_its_ends_are_exact() {
    let n = 20_000;
    for rate in [0.0, 0.1, 0.3, 0.5, 1.0] {
        let noise = NoiseConfig::Uniform(UniformNoiseConfig { rate });
        let (preferences, report) = label(&noise, values(random_gaps(n, 4)), 9);
        check_flags(&preferences, &report);
        assert_binomial("uniform", report.flipped, n, rate);
    }
}

#[test]
fn uniform_flips_do_not_depend_on_the_gap() {
    let n = 20_000;
    let noise = NoiseConfig::Uniform(UniformNoiseConfig { rate: 0.2 });
    let (preferences, _) = label(&noise, values(random_gaps(n, 5)), 2);
    let is_wide = |p: &&Preference<Numbered>| (p.truth.gold_chosen.unwrap() - p.truth.gold_rejected.unwrap()).abs() > 1.35;
    let wide: Vec<_> = preferences.iter().filter(is_wide).collect();
    assert!(wide.len() > n / 3);
    assert_binomial("wide pairs", wide.iter().filter(|p| p.truth.flipped == Some(true)).count(), wide.len(), 0.2);
}

#[test]
fn stochastic_labels_follow_the_logistic_curve() {
    let n = 20_000;
    for (gap, temperature) in [(0.0, 1.0), (1.0, 1.0), (-3.0, 1.0), (2.0, 3.0), (1e300, 1e-300), (-1e6, 1.0)] {
        let noise = NoiseConfig::Stochastic(StochasticNoiseConfig { temperature });
        let (preferences, report) = label(&noise, values(std::iter::repeat_n(gap, n)), 5);
        check_flags(&preferences, &report);
        let first = preferences.iter().filter(|p| p.pair.first_is_chosen).count();
        assert_binomial("stochastic", first, n, 1.0 / (1.0 + (-gap / temperature).exp()));
        assert_eq!(report.ties_in_truth, if gap == 0.0 { n } else { 0 });
    }
}

#[test]
fn limits_are_clean() {
    let rewards = |seed: u64| -> Vec<[Vec<f32>; 2]> {
        let mut rng = SeedTree::new(seed).child("rewards").rng();
        (0..500).map(|_| [(); 2].map(|()| (0..7).map(|_| rng.normal_f32()).collect())).collect()
    };
    let (clean, report) = NONE.label(segments(&rewards(1), 7), None, SeedTree::new(3)).unwrap();
    check_flags(&clean, &report);
    assert_eq!((report.flipped, report.ties_in_truth), (0, 0));
    for limit in [
        NoiseConfig::Uniform(UniformNoiseConfig { rate: 0.0 }),
        NoiseConfig::Myopic(MyopicNoiseConfig { discount: 1.0 }),
        NoiseConfig::Stochastic(StochasticNoiseConfig { temperature: 1e-12 }),
        NoiseConfig::Teacher(TeacherConfig::default()),
        NoiseConfig::Teacher(TeacherConfig { beta: 1e12, ..TeacherConfig::default() }),
        NoiseConfig::LengthBias(LengthBiasConfig { fraction: 0.0 }),
        NoiseConfig::LengthBias(LengthBiasConfig { fraction: 1.0 }),
    ] {
        let (labelled, other) = limit.label(segments(&rewards(1), 7), None, SeedTree::new(8)).unwrap();
        assert_eq!(labelled, clean, "{}", limit.name());
        assert_eq!(other, report);
    }
}

#[test]
fn same_seed_same_labels_and_other_seeds_differ() {
    for noise in [
        NoiseConfig::Uniform(UniformNoiseConfig { rate: 0.3 }),
        NoiseConfig::Stochastic(StochasticNoiseConfig { temperature: 2.0 }),
        NoiseConfig::Teacher(TeacherConfig { mistake: 0.3, ..TeacherConfig::default() }),
    ] {
        let (a, _) = label(&noise, values(random_gaps(300, 1)), 7);
        let (b, _) = label(&noise, values(random_gaps(300, 1)), 7);
        let (c, _) = label(&noise, values(random_gaps(300, 1)), 8);
        assert_eq!(a, b);
        assert_ne!(a, c);
        // The label of a pair depends on its own position and values alone: what follows cannot change it.
        let (d, _) = label(&noise, values(random_gaps(300, 1).into_iter().take(100)), 7);
        assert_eq!(a[..100], d[..]);
        let mut others = random_gaps(300, 1);
        others[..50].fill(3.0);
        let (e, _) = label(&noise, values(others), 7);
        assert_eq!(a[50..], e[50..]);
    }
}

#[test]
fn ties_in_truth_are_drawn_and_left_unknown() {
    let n = 4000;
    let (preferences, report) = label(&NONE, values(std::iter::repeat_n(0.0, n)), 4);
    check_flags(&preferences, &report);
    assert_eq!(report, LabelReport { pairs: n, ties_in_truth: n, ..LabelReport::default() });
    assert_binomial("ties", preferences.iter().filter(|p| p.pair.first_is_chosen).count(), n, 0.5);
    // The same order stands in under every model that has nothing else to go by.
    for noise in [
        NoiseConfig::Myopic(MyopicNoiseConfig { discount: 0.5 }),
        NoiseConfig::Teacher(TeacherConfig::default()),
        NoiseConfig::LengthBias(LengthBiasConfig { fraction: 1.0 }),
    ] {
        assert_eq!(label(&noise, values(std::iter::repeat_n(0.0, n)), 4), (preferences.clone(), report));
    }
}

#[test]
fn early_ends_do_not_vanish_from_myopic_eyes() {
    // After 1 of 3000 steps both segments ended: their common factor 0.3^2999 is 0 in floating point.
    let noise = NoiseConfig::Myopic(MyopicNoiseConfig { discount: 0.3 });
    let mut pairs = values(std::iter::repeat_n(0.0, 20));
    for pair in &mut pairs {
        pair.first = TrueRewards { rewards: vec![2.0], steps: 3000 };
        pair.second = TrueRewards { rewards: vec![1.0], steps: 3000 };
    }
    let (preferences, _) = label(&noise, pairs, 0);
    assert!(preferences.iter().all(|p| p.pair.first_is_chosen));
}

#[test]
fn without_a_past_the_last_step_that_either_has_decides() {
    let labels = |first: &[f64], second: &[f64]| {
        let mut pairs = values(std::iter::repeat_n(0.0, 20));
        for pair in &mut pairs {
            pair.first = TrueRewards { rewards: first.to_vec(), steps: 5 };
            pair.second = TrueRewards { rewards: second.to_vec(), steps: 5 };
        }
        // B-Pref's annotator without randomness sees what the myopic one sees.
        let myopic = label(&NoiseConfig::Myopic(MyopicNoiseConfig { discount: 0.0 }), pairs.clone(), 0).0;
        let teacher = NoiseConfig::Teacher(TeacherConfig { discount: 0.0, ..TeacherConfig::default() });
        assert_eq!(label(&teacher, pairs, 0).0, myopic);
        myopic.iter().map(|p| p.pair.first_is_chosen).collect::<Vec<_>>()
    };
    // Both ended after 2 of 5 steps: their last rewards decide, 3 against 2.
    assert_eq!(labels(&[0.0, 3.0], &[9.0, 2.0]), [true; 20]);
    // The second went on for a step, in which the first has reward 0: 0 against 1, then 0 against -1.
    assert_eq!(labels(&[0.0, 3.0], &[0.0, 0.0, 1.0]), [false; 20]);
    assert_eq!(labels(&[0.0, 3.0], &[0.0, 9.0, -1.0]), [true; 20]);
}

#[test]
fn length_bias_prefers_the_longer_for_its_share() {
    let n = 10_000;
    let shorter_is_better = |annotator: &dyn Fn(usize) -> Option<String>| {
        let mut pairs = values(std::iter::repeat_n(1.0, n));
        for (i, pair) in pairs.iter_mut().enumerate() {
            pair.pair.lengths = (3, 9);
            pair.annotator = annotator(i);
        }
        pairs
    };
    let noise = NoiseConfig::LengthBias(LengthBiasConfig { fraction: 0.3 });
    let (preferences, report) = label(&noise, shorter_is_better(&|_| None), 2);
    check_flags(&preferences, &report);
    assert_binomial("length bias", report.flipped, n, 0.3);
    // With names the share is one of annotators, each of whom keeps to one rule.
    let named = |i: usize| Some(format!("annotator {}", i % 1000));
    let (preferences, report) = label(&noise, shorter_is_better(&named), 2);
    for (i, p) in preferences.iter().enumerate() {
        assert_eq!(p.truth.flipped, preferences[i % 1000].truth.flipped);
        assert_eq!(p.annotator, named(i));
    }
    assert_eq!(report.flipped % 10, 0);
    assert_binomial("annotators", report.flipped / 10, 1000, 0.3);
}

#[test]
fn malicious_flips_have_the_exact_number_and_favour_the_mark() {
    let n = 2000;
    let tempting = || {
        let mut rng = SeedTree::new(4).child("marks").rng();
        let mut pairs = values(random_gaps(n, 4));
        pairs.iter_mut().for_each(|p| p.pair.temptations = Some((rng.below(3) as f64, rng.below(3) as f64)));
        pairs
    };
    // Of nine pairs of counts three are smaller on a given side: a third of the pairs can be flipped.
    for (rate, seed) in [(0.0, 1), (0.1, 1), (0.1, 2), (0.25, 1), (0.9, 1)] {
        let noise = NoiseConfig::Malicious(MaliciousNoiseConfig { rate });
        let (preferences, report) = label(&noise, tempting(), seed);
        check_flags(&preferences, &report);
        let wanted = (rate * n as f64).round() as usize;
        assert_eq!(report.flipped + report.missing_flips, wanted, "{rate}");
        assert_eq!(report.missing_flips > 0, rate > 0.5, "{rate}");
        for p in preferences.iter().filter(|p| p.truth.flipped == Some(true)) {
            let (chosen, rejected) = p.pair.temptations.unwrap();
            assert!(chosen > rejected);
        }
        let (mut corrupted, _) = label(&NONE, tempting(), seed);
        let other = noise.corrupt(&mut corrupted, SeedTree::new(seed)).unwrap();
        assert_eq!((preferences, report), (corrupted, other));
    }
    let flips = |seed| {
        let (preferences, _) = label(&NoiseConfig::Malicious(MaliciousNoiseConfig { rate: 0.1 }), tempting(), seed);
        preferences.iter().map(|p| p.truth.flipped == Some(true)).collect::<Vec<_>>()
    };
    assert_eq!(flips(1), flips(1));
    assert_ne!(flips(1), flips(2));
    let unknown = NoiseConfig::Malicious(MaliciousNoiseConfig::default()).label(values([1.0]), None, SeedTree::new(0));
    assert!(unknown.unwrap_err().to_string().starts_with("pair `0`: noise `malicious` goes by"));
}

fn text(id: usize, chosen: &str, rejected: &str, gold: Option<(f64, f64)>) -> TextPreference {
    let pair = TextPair { prompt: Text::default(), chosen: Text::Plain(chosen.into()), rejected: Text::Plain(rejected.into()) };
    let truth = Truth { flipped: None, gold_chosen: gold.map(|g| g.0), gold_rejected: gold.map(|g| g.1) };
    Preference { id: id.to_string(), pair, truth, ..Preference::default() }
}

#[test]
fn labels_of_texts_are_corrupted_in_place() {
    let n = 5000;
    let without_gold: Vec<_> = (0..n).map(|i| text(i, "a", "b", None)).collect();
    let mut preferences = without_gold.clone();
    preferences[0].equal = true;
    let noise = NoiseConfig::Uniform(UniformNoiseConfig { rate: 0.2 });
    let report = noise.corrupt(&mut preferences, SeedTree::new(1)).unwrap();
    assert_binomial("uniform on texts", report.flipped, n - 1, 0.2);
    assert_eq!((report.pairs, report.equal, report.ties_in_truth), (n, 1, 0));
    assert_eq!((preferences[0].pair.clone(), preferences[0].truth.flipped), (without_gold[0].pair.clone(), None));
    for (now, before) in preferences.iter().zip(&without_gold).skip(1) {
        let was_exchanged = now.pair.chosen == before.pair.rejected;
        assert_eq!(now.truth.flipped, Some(was_exchanged));
    }
    let mut untouched = without_gold.clone();
    NONE.corrupt(&mut untouched, SeedTree::new(1)).unwrap();
    assert_eq!(untouched, without_gold);
    // A second corruption is drawn on top: what was known about the label is turned with it.
    let certain = NoiseConfig::Uniform(UniformNoiseConfig { rate: 1.0 });
    let twice = certain.corrupt(&mut preferences, SeedTree::new(2)).unwrap();
    assert_eq!(twice.flipped, n - 1 - report.flipped);
    assert_eq!(NONE.corrupt(&mut preferences, SeedTree::new(3)).unwrap(), twice);
}

#[test]
fn corrupting_true_labels_equals_labelling() {
    let gaps = random_gaps(500, 6);
    for noise in [
        NONE,
        NoiseConfig::Uniform(UniformNoiseConfig { rate: 0.25 }),
        NoiseConfig::Irrational(IrrationalNoiseConfig { exponent: 0.5, batch_size: 50 }),
    ] {
        let (labelled, report) = label(&noise, values(gaps.iter().copied()), 3);
        let (mut corrupted, _) = label(&NONE, values(gaps.iter().copied()), 3);
        let other = noise.corrupt(&mut corrupted, SeedTree::new(3)).unwrap();
        assert_eq!(labelled, corrupted, "{}", noise.name());
        assert_eq!(report, other);
    }
}

#[test]
fn length_bias_and_stochastic_labels_of_texts() {
    let n = 4000;
    let gold = Some((1.0, 0.0));
    let mut preferences: Vec<_> = (0..n).map(|i| text(i, "short", if i % 2 == 0 { "longer" } else { "equal" }, gold)).collect();
    let noise = NoiseConfig::LengthBias(LengthBiasConfig { fraction: 0.5 });
    let report = noise.corrupt(&mut preferences, SeedTree::new(1)).unwrap();
    check_flags(&preferences, &report);
    assert_binomial("length bias on texts", report.flipped, n / 2, 0.5);
    let noise = NoiseConfig::Stochastic(StochasticNoiseConfig { temperature: 2.0 });
    let report = noise.corrupt(&mut preferences, SeedTree::new(2)).unwrap();
    check_flags(&preferences, &report);
    assert_binomial("stochastic on texts", report.flipped, n, 1.0 / (1.0 + 0.5_f64.exp()));
}

#[test]
fn what_cannot_be_labelled_is_refused_by_name() {
    let error = |result: steadfast_reward::Result<LabelReport>| result.unwrap_err().to_string();
    let mut without_gold = vec![text(0, "a", "b", Some((1.0, 0.0))), text(1, "a", "b", None)];
    let irrational = NoiseConfig::Irrational(IrrationalNoiseConfig::default());
    assert!(error(irrational.corrupt(&mut without_gold, SeedTree::new(0))).starts_with("pair `1`: noise `irrational` needs"));
    without_gold[1].equal = true;
    assert!(irrational.corrupt(&mut without_gold, SeedTree::new(0)).is_ok(), "equal pairs are not looked at");
    for noise in [NoiseConfig::Myopic(MyopicNoiseConfig::default()), NoiseConfig::Teacher(TeacherConfig::default())] {
        assert!(error(noise.corrupt(&mut without_gold, SeedTree::new(0))).contains("single steps"));
    }
    let mut nan = values([1.0, 2.0]);
    nan[1].second = TrueRewards::of_value(f64::NAN);
    let message = NONE.label(nan, None, SeedTree::new(0)).unwrap_err().to_string();
    assert_eq!(message, "pair `1`: the second one has the true reward NaN in step 1");
    let skipping = NoiseConfig::Teacher(TeacherConfig { skip: 0.1, ..TeacherConfig::default() });
    assert!(skipping.label(values([1.0]), None, SeedTree::new(0)).is_err());
    let negative = ReturnScale { average_return: -100.0, episode_steps: 200.0 };
    assert!(skipping.label(values([1.0]), Some(&negative), SeedTree::new(0)).is_err());
}

#[test]
fn ranges_are_checked() {
    let nan = f64::NAN;
    let teacher = |change: &dyn Fn(&mut TeacherConfig)| {
        let mut config = TeacherConfig::default();
        change(&mut config);
        NoiseConfig::Teacher(config)
    };
    let bad = [
        NoiseConfig::Uniform(UniformNoiseConfig { rate: 1.5 }),
        NoiseConfig::Uniform(UniformNoiseConfig { rate: nan }),
        NoiseConfig::Stochastic(StochasticNoiseConfig { temperature: 0.0 }),
        NoiseConfig::Stochastic(StochasticNoiseConfig { temperature: nan }),
        NoiseConfig::Myopic(MyopicNoiseConfig { discount: 1.1 }),
        NoiseConfig::Irrational(IrrationalNoiseConfig { exponent: -0.1, batch_size: 64 }),
        NoiseConfig::Irrational(IrrationalNoiseConfig { exponent: 0.5, batch_size: 0 }),
        NoiseConfig::LengthBias(LengthBiasConfig { fraction: -0.5 }),
        NoiseConfig::Malicious(MaliciousNoiseConfig { rate: 1.1 }),
        NoiseConfig::Malicious(MaliciousNoiseConfig { rate: nan }),
        teacher(&|t| t.beta = 0.0),
        teacher(&|t| t.beta = nan),
        teacher(&|t| t.discount = -0.1),
        teacher(&|t| t.mistake = 2.0),
        teacher(&|t| t.skip = f64::INFINITY),
        teacher(&|t| t.equal = -1.0),
    ];
    for noise in bad {
        assert!(noise.validate().is_err(), "{noise:?}");
        assert!(noise.label(values([1.0]), None, SeedTree::new(0)).is_err(), "{noise:?}");
        assert!(noise.corrupt(&mut [text(0, "a", "b", Some((1.0, 0.0)))], SeedTree::new(0)).is_err(), "{noise:?}");
    }
}

#[test]
fn configurations_are_externally_tagged_and_strict() {
    for (name, _) in NoiseConfig::LIST {
        let config: NoiseConfig = serde_json::from_str(&format!("{{\"{name}\": {{}}}}")).unwrap();
        assert_eq!(config.name(), *name);
        assert!(config.validate().is_ok());
        assert!(serde_json::from_str::<NoiseConfig>(&format!("{{\"{name}\": {{\"unknown\": 1}}}}")).is_err());
        let toml = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<NoiseConfig>(&toml).unwrap(), config, "{toml}");
    }
    let teacher: NoiseConfig = toml::from_str("[teacher]\nbeta = inf\nmistake = 0.1").unwrap();
    assert_eq!(teacher, NoiseConfig::Teacher(TeacherConfig { mistake: 0.1, ..TeacherConfig::default() }));
}

proptest! {
    #[test]
    fn labelling_keeps_pairs_whole(gaps in prop::collection::vec(-3_i8..4, 1..60), seed in any::<u64>(), which in 0_usize..6) {
        let noise = [
            NONE,
            NoiseConfig::Uniform(UniformNoiseConfig { rate: 0.4 }),
            NoiseConfig::Stochastic(StochasticNoiseConfig { temperature: 1.5 }),
            NoiseConfig::Myopic(MyopicNoiseConfig { discount: 0.5 }),
            NoiseConfig::Irrational(IrrationalNoiseConfig { exponent: 0.5, batch_size: 7 }),
            NoiseConfig::Teacher(TeacherConfig { beta: 1.0, mistake: 0.2, ..TeacherConfig::default() }),
        ][which];
        let (preferences, report) = label(&noise, values(gaps.iter().map(|&g| f64::from(g))), seed);
        check_flags(&preferences, &report);
        prop_assert_eq!(preferences.len(), gaps.len());
        for (i, (p, &gap)) in preferences.iter().zip(&gaps).enumerate() {
            prop_assert_eq!(&p.id, &i.to_string());
            let chosen = if p.pair.first_is_chosen { f64::from(gap) } else { 0.0 };
            prop_assert_eq!(p.truth.gold_chosen, Some(chosen));
        }
        prop_assert_eq!(report.ties_in_truth, gaps.iter().filter(|&&g| g == 0).count());
    }
}
