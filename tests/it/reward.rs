//! Rewards learned from preferences: the closed loop, preference files made from runs, and what stands in the run directory.

use std::collections::BTreeSet;

use crate::command::{Place, assert_equal_runs, names, newest_checkpoint};

pub const TINY_REWARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny_reward.toml");

fn text(place: &Place, name: &str) -> String {
    String::from_utf8(place.read(name)).unwrap()
}

/// The column of a table.
fn column(table: &str, name: &str) -> Vec<String> {
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let index = reader.headers().unwrap().iter().position(|h| h == name).unwrap_or_else(|| panic!("no column {name} in {table}"));
    reader.records().map(|r| r.unwrap()[index].to_string()).collect()
}

#[test]
fn a_run_learns_its_reward_in_stages() {
    let place = Place::new();
    let answer = place.succeed(&["train", TINY_REWARD, "--output", "run"]);
    assert!(answer.err.contains("labelled stage=3") && answer.err.contains("fitted the reward step=4000 stage=3"), "{}", answer.err);
    let stages = text(&place, "run/reward.csv");
    assert_eq!(column(&stages, "stage"), ["1", "2", "3"]);
    assert_eq!(column(&stages, "step"), ["0", "2000", "4000"]);
    assert_eq!(column(&stages, "pairs"), ["60", "120", "180"]);
    assert_eq!(column(&text(&place, "run/reward_epochs.csv"), "epoch").len(), 15);

    // The pairs are all there, in stages, from three policies, with their truth; wrong labels are as many as was said.
    let pairs = text(&place, "run/preferences.jsonl");
    let rows: Vec<serde_json::Value> = pairs.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len(), 180);
    let policies: BTreeSet<&str> = rows.iter().map(|r| r["chosen"]["policy"].as_str().unwrap()).collect();
    assert_eq!(policies, BTreeSet::from(["step 0", "step 2000", "step 4000"]));
    let wrong = rows.iter().filter(|r| r["flipped"] == true).count();
    let rate: f64 = column(&stages, "label_rate")[2].parse().unwrap();
    assert!((rate - wrong as f64 / 180.0).abs() < 1e-12 && (15..=60).contains(&wrong), "{rate} {wrong}");
    for row in &rows {
        let gold = |side: &str| row[side].as_f64().unwrap();
        assert_eq!(row["flipped"], gold("gold_chosen") < gold("gold_rejected"), "{row}");
        assert_eq!(row["chosen"]["rewards"].as_array().unwrap().len(), 10);
    }

    // Pairs that only measured are gone.
    assert!(!place.path("run/preferences_test.jsonl").exists());

    // Metrics, summary and checkpoints know of the reward; evaluations count the world's own.
    let metrics = text(&place, "run/metrics.jsonl");
    assert_eq!(metrics.lines().filter(|l| l.contains("reward/test_accuracy")).count(), 3);
    let summary: serde_json::Value = serde_json::from_slice(&place.read("run/summary.json")).unwrap();
    assert_eq!(summary["reward"]["pairs"], 180);
    assert!(summary["evaluations"][0]["return_agent_mean"].as_f64().unwrap() < -100.0);
    let newest = newest_checkpoint(&place, "run");
    assert_eq!(names(&place.path(&newest)), ["engine.safetensors", "learner.safetensors", "progress.json", "reward.safetensors"]);

    // The same seed gives the same bytes with two threads.
    place.succeed(&["train", TINY_REWARD, "threads=2", "--output", "again"]);
    assert_equal_runs(&place, "run", "again");
}

#[test]
fn lambda_of_one_is_cross_entropy_to_the_last_bit() {
    let place = Place::new();
    place.succeed(&["train", TINY_REWARD, "total_steps=2000", "reward.loss.r3m.lambda=1", "--output", "r3m"]);
    place.succeed(&["train", TINY_REWARD, "total_steps=2000", "reward.loss=cross_entropy", "--output", "plain"]);
    assert_equal_runs(&place, "r3m", "plain");
    place.succeed(&["train", TINY_REWARD, "total_steps=2000", "--output", "robust"]);
    assert_ne!(place.read("r3m/metrics.jsonl"), place.read("robust/metrics.jsonl"));
}

#[test]
fn without_training_steps_only_the_reward_is_fitted() {
    let place = Place::new();
    place.succeed(&["train", TINY_REWARD, "total_steps=0", "reward.stages=1", "--output", "run"]);
    assert_eq!(column(&text(&place, "run/reward.csv"), "stage"), ["1"]);
    assert_eq!(text(&place, "run/metrics.jsonl").lines().count(), 1);
    // The fitted network is saved, not the untrained one.
    let bytes = place.read(&format!("{}/reward.safetensors", newest_checkpoint(&place, "run")));
    let saved = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(saved.tensor("stage").unwrap().data(), 1_u64.to_le_bytes());
    let refused = place.fail(2, &["train", TINY_REWARD, "total_steps=0", "reward=none"]);
    assert!(refused.contains("between 1 and 2^53"), "{refused}");
}

#[test]
fn pairs_are_drawn_from_the_policies_of_a_run() {
    let place = Place::new();
    place.succeed(&["train", TINY_REWARD, "total_steps=3000", "reward=none", "--output", "run"]);
    let draw = |arguments: &[&str]| place.succeed(&[&["preferences", "run"], arguments].concat());
    let said = draw(&["-o", "pairs.jsonl", "--pairs", "64", "--segment-steps", "20"]);
    assert!(said.out.contains("64 pairs of 128 segments from 4 policies; 0 wrong labels"), "{}", said.out);
    let rows = text(&place, "pairs.jsonl");
    for policy in ["untrained", "step 2000", "step 2600", "step 3000"] {
        assert!(rows.contains(&format!("\"policy\":\"{policy}\"")), "{policy}");
    }
    // 64^(1/2) of the 64 pairs are flipped, those with the largest gaps; Parquet holds the same as JSONL.
    let noise = "{ irrational = { exponent = 0.5 } }";
    let said = draw(&["-o", "wrong.parquet", "--pairs", "64", "--segment-steps", "20", "--noise", noise]);
    assert!(said.out.contains("8 wrong labels (12.5 %)"), "{}", said.out);

    // A file takes the place of collected pairs; nothing corrupts its labels further.
    let file = "reward.file=wrong.parquet";
    insta::assert_snapshot!(
        "reward_file_and_noise",
        place.fail(2, &["train", TINY_REWARD, file, "reward.stages=1"]).replace(TINY_REWARD, "TINY_REWARD")
    );
    place.succeed(&["train", TINY_REWARD, "total_steps=1000", file, "reward.noise=none", "reward.stages=1", "--output", "learned"]);
    let stages = text(&place, "learned/reward.csv");
    assert_eq!((column(&stages, "pairs"), column(&stages, "label_rate")), (vec!["64".to_string()], vec!["0.125".to_string()]));
    assert_eq!(text(&place, "learned/preferences.jsonl").lines().count(), 64);

    // The run keeps the pairs, so the file may go.
    std::fs::remove_file(place.path("wrong.parquet")).unwrap();
    place.succeed(&["eval", "learned", "--episodes", "3"]);

    let fail = |arguments: &[&str]| place.fail(2, &[&["preferences"], arguments].concat());
    insta::assert_snapshot!("preferences_taken", fail(&["run", "-o", "pairs.jsonl"]));
    insta::assert_snapshot!("preferences_format", fail(&["run", "-o", "pairs.csv"]));
    insta::assert_snapshot!("preferences_long", fail(&["run", "-o", "more.jsonl", "--segment-steps", "61"]));
    insta::assert_snapshot!("preferences_noise", fail(&["run", "-o", "more.jsonl", "--noise", "{ uniform = { rate = 2.0 } }"]));
    insta::assert_snapshot!("preferences_unknown_noise", fail(&["run", "-o", "more.jsonl", "--noise", "{ unifrom = {} }"]));
    place.succeed(&["train", TINY_REWARD, "env.pendulum.horizon=70", "total_steps=300", "reward=none", "--output", "other"]);
    insta::assert_snapshot!("preferences_worlds", fail(&["run", "other", "-o", "more.jsonl"]));
    assert!(!place.path("more.jsonl").exists());
}

#[test]
fn preference_files_that_do_not_fit_are_refused_with_their_line() {
    let place = Place::new();
    let train = || {
        let changes = ["reward.file=pairs.jsonl", "reward.noise=none", "reward.stages=1", "total_steps=400"];
        let text = place.fail(2, &[&["train", TINY_REWARD, "--output", "run"], changes.as_slice()].concat());
        assert!(!place.path("run").exists());
        text
    };
    insta::assert_snapshot!("reward_file_missing", train());
    place.write("pairs.jsonl", "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n");
    insta::assert_snapshot!("reward_file_of_texts", train());
    let segment = |n: usize, width: usize| {
        let rows = |width: usize| vec![vec![0.5; width]; n];
        serde_json::json!({ "observations": rows(width), "actions": rows(1), "rewards": vec![1.0; n] })
    };
    let row = |n, m, width| format!("{}\n", serde_json::json!({ "chosen": segment(n, width), "rejected": segment(m, width) }));
    place.write("pairs.jsonl", &row(5, 4, 3));
    insta::assert_snapshot!("reward_file_unequal", train());
    let mut other = segment(5, 2);
    other["actions"][0][0] = 0.25.into();
    place.write("pairs.jsonl", &format!("{}\n", serde_json::json!({ "chosen": segment(5, 2), "rejected": other })));
    insta::assert_snapshot!("reward_file_width", train());
    let refused = place.fail(2, &["train", TINY_REWARD, "reward.segment_steps=61"]);
    insta::assert_snapshot!("reward_segment_too_long", refused);
    let refused = place.fail(2, &["train", TINY_REWARD, "reward.fit.validation_fraction=0"]);
    insta::assert_snapshot!("reward_no_validation", refused);
    let refused = place.fail(2, &["train", TINY_REWARD, "reward.loss.r3m.lambda=0"]);
    insta::assert_snapshot!("reward_lambda", refused);
    let refused = place.fail(2, &["train", TINY_REWARD, "env=simple_tag"]).replace(TINY_REWARD, "TINY_REWARD");
    insta::assert_snapshot!("reward_unequal_agents", refused);
}

/// In such a world most pairs are the same twice; they are left out, so that what a run wrote it can read again.
#[test]
fn a_run_in_a_tiny_world_can_be_continued() {
    let place = Place::new();
    let changes = ["env=bandit", "reward.segment_steps=1", "total_steps=20000", "checkpoint.every_steps=2000"];
    let answer = place.succeed(&[&["train", TINY_REWARD, "--output", "whole"], changes.as_slice()].concat());
    assert!(answer.err.contains("left out pairs of identical segments"), "{}", answer.err);
    let mut child = place.command(&[&["train", TINY_REWARD, "--output", "run"], changes.as_slice()].concat()).spawn().unwrap();
    while !place.path("run/checkpoints/step-000000002000").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.path("run/summary.json").exists(), "the run was to be stopped at a tenth of its way");
    place.succeed(&["train", "--resume", "run"]);
    assert_equal_runs(&place, "whole", "run");
}
