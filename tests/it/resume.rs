//! A killed run resumes to the same bytes as an uninterrupted one.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::command::{Place, TINY, assert_equal_runs, names, newest_checkpoint};
#[cfg(feature = "llm")]
use crate::language::TINY_LANGUAGE;
use crate::reward::TINY_REWARD;

/// Kills a run again and again, each time within the part that a start should take if `kills` starts share the work;
/// returns how many kills hit it alive.
fn run_with_kills(place: &Place, recipe: &str, run: &str, changes: &[&str], whole: Duration, mut seed: u64, kills: usize) -> usize {
    let mut hits = 0;
    let mut tries = 0;
    let mut arguments = vec!["train", recipe, "--output", run];
    arguments.extend(changes);
    loop {
        let mut child = place.command(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        if tries < kills {
            tries += 1;
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Up to an equal share of the run, so that there is work left for the last kill even if starts become faster.
            let share = whole.as_secs_f64() / (kills + 1) as f64;
            std::thread::sleep(Duration::from_secs_f64(share * ((seed >> 33) as f64 / (1_u64 << 31) as f64)));
            // SIGKILL: the process gets no chance to put anything in order.
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            return hits;
        }
        assert_eq!(output.status.code(), None, "{}", String::from_utf8_lossy(&output.stderr));
        hits += 1;
        // The first kill may come before the run directory exists.
        if place.path(&format!("{run}/config.toml")).exists() {
            arguments = vec!["train", "--resume", run];
        } else {
            let _ = std::fs::remove_dir_all(place.path(run));
        }
    }
}

/// Trains an uninterrupted run and measures how long it takes.
fn whole_run(place: &Place, recipe: &str, changes: &[&str]) -> Duration {
    let begin = Instant::now();
    place.succeed(&[&["train", recipe, "--output", "whole"], changes].concat());
    begin.elapsed()
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let place = Place::new();
    let whole = whole_run(&place, TINY, &["threads=1"]);
    let mut kills = 0;
    for (i, threads) in ["threads=1", "threads=2"].into_iter().enumerate() {
        let run = format!("killed-{i}");
        kills += run_with_kills(&place, TINY, &run, &[threads], whole, 17 + i as u64, 5);
        assert_equal_runs(&place, "whole", &run);
        assert_eq!(events(&place, "whole"), events(&place, &run));
        // Each start that got as far is in the manifest.
        let manifest = String::from_utf8(place.read(&format!("{run}/manifest.json"))).unwrap();
        assert!(manifest.contains("\"unix_seconds\""), "{manifest}");
    }
    assert!(kills >= 8, "only {kills} of 10 kills hit a living process");
}

#[test]
fn a_killed_run_from_replay_against_an_adversary_resumes_to_the_same_bytes() {
    let place = Place::new();
    let replay = "replay={ capacity = 2000, learning_starts = 200, batch_size = 64 }";
    let common =
        ["total_steps=12000", "checkpoint.every_steps=2000", "adversarial_training={ radius = 0.1 }", "regularizer.lipschitz.weight=0.02"];
    for agent in ["q_learning", "maddpg"] {
        let learner = [format!("agent={agent}"), format!("agent.{agent}.{replay}"), "action_regularizer={ weight = 0.1 }".to_string()];
        let mixer = ["agent.q_learning.mixer=monotonic"];
        let mut changes: Vec<&str> = learner.iter().map(String::as_str).chain(common).collect();
        if agent == "q_learning" {
            changes.extend(mixer);
        }
        let (whole, killed) = (format!("whole-{agent}"), format!("killed-{agent}"));
        let begin = Instant::now();
        place.succeed(&[&["train", TINY, "--output", &whole], changes.as_slice()].concat());
        let kills = run_with_kills(&place, TINY, &killed, &changes, begin.elapsed(), 11, 4);
        assert_equal_runs(&place, &whole, &killed);
        assert!(kills >= 2, "only {kills} of 4 kills hit a living process");
    }
}

#[test]
fn a_killed_run_that_learns_its_reward_resumes_to_the_same_bytes() {
    let place = Place::new();
    let whole = whole_run(&place, TINY_REWARD, &[]);
    let kills = run_with_kills(&place, TINY_REWARD, "killed", &[], whole, 5, 6);
    assert_equal_runs(&place, "whole", "killed");
    assert!(kills >= 4, "only {kills} of 6 kills hit a living process");
}

#[cfg(feature = "llm")]
#[test]
fn a_killed_run_of_a_language_model_resumes_to_the_same_bytes() {
    let place = Place::new();
    let changes = ["data.task.examples=6000", "checkpoint.every_steps=20"];
    let whole = whole_run(&place, TINY_LANGUAGE, &changes);
    let kills = run_with_kills(&place, TINY_LANGUAGE, "killed", &changes, whole, 23, 5);
    assert_equal_runs(&place, "whole", "killed");
    assert_eq!(place.read("whole/model/model.safetensors"), place.read("killed/model/model.safetensors"));
    assert!(kills >= 3, "only {kills} of 5 kills hit a living process");
}

#[test]
#[ignore = "fifty kills at measured moments need a machine that is not busy"]
fn a_run_killed_fifty_times_resumes_to_the_same_bytes() {
    let place = Place::new();
    let whole = whole_run(&place, TINY, &["total_steps=100000"]);
    let kills = run_with_kills(&place, TINY, "killed", &["total_steps=100000"], whole, 99, 50);
    assert_equal_runs(&place, "whole", "killed");
    assert!(kills >= 40, "only {kills} of 50 kills hit a living process");
}

#[test]
fn a_log_that_was_cut_leads_to_an_older_checkpoint_or_to_an_explanation() {
    let place = Place::new();
    place.succeed(&["train", TINY, "total_steps=4000", "--output", "whole"]);
    place.succeed(&["train", TINY, "total_steps=4000", "--output", "cut"]);
    std::fs::remove_file(place.path("cut/summary.json")).unwrap();
    // Without its last byte the log does not reach to the newest checkpoint.
    let file = place.path("cut/metrics.jsonl");
    let bytes = place.read("cut/metrics.jsonl");
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let answer = place.succeed(&["train", "--resume", "cut"]);
    assert!(answer.err.contains("cannot be used: metrics.jsonl has"), "{}", answer.err);
    assert_equal_runs(&place, "whole", "cut");

    // Nothing reaches back to any checkpoint: nothing is changed, and the message says how to go on.
    std::fs::remove_file(place.path("cut/summary.json")).unwrap();
    std::fs::remove_file(place.path("cut/eval.csv")).unwrap();
    let text = place.fail(1, &["train", "--resume", "cut"]);
    assert!(text.contains("eval.csv has 0 bytes") && text.contains("start again with"), "{text}");
    assert_eq!(place.read("cut/metrics.jsonl"), place.read("whole/metrics.jsonl"));
    assert!(!place.path("cut/eval.csv").exists());
}

#[test]
fn another_program_or_machine_is_noted() {
    let place = Place::new();
    place.succeed(&["train", TINY, "total_steps=1000", "--output", "run"]);
    let manifest = place.path("run/manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace(env!("CARGO_PKG_VERSION"), "0.0.1")).unwrap();
    std::fs::remove_file(place.path("run/summary.json")).unwrap();
    let answer = place.succeed(&["train", "--resume", "run"]);
    assert!(answer.err.contains("version was 0.0.1, is"), "{}", answer.err);
    // A lost manifest is written again.
    std::fs::remove_file(&manifest).unwrap();
    std::fs::remove_file(place.path("run/summary.json")).unwrap();
    let answer = place.succeed(&["train", "--resume", "run"]);
    assert!(manifest.exists() && !answer.err.contains("version was"), "{}", answer.err);
}

/// Steps of all records in the event file; times differ between runs.
fn events(place: &Place, run: &str) -> Vec<u64> {
    let directory = format!("{run}/tensorboard");
    let files = names(&place.path(&directory));
    assert_eq!(files.len(), 1);
    let bytes = place.read(&format!("{directory}/{}", files[0]));
    let mut steps = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let message = &bytes[at + 12..at + 12 + length];
        // Field 1 (wall time) takes nine bytes; field 2 (step) follows as a varint, and is left out when it is 0.
        let mut step = 0;
        if message.get(9) == Some(&0x10) {
            for (i, byte) in message[10..].iter().enumerate() {
                step |= u64::from(byte & 0x7f) << (7 * i);
                if byte & 0x80 == 0 {
                    break;
                }
            }
        }
        steps.push(step);
        at += length + 16;
    }
    assert!(steps.is_sorted() && steps.len() > 5, "{steps:?}");
    steps
}

#[test]
fn a_torn_checkpoint_is_passed_over_when_resuming() {
    let place = Place::new();
    place.succeed(&["train", TINY, "total_steps=6000", "--output", "whole"]);
    place.succeed(&["train", TINY, "total_steps=6000", "--output", "torn"]);
    std::fs::remove_file(place.path("torn/summary.json")).unwrap();
    let file = format!("{}/engine.safetensors", newest_checkpoint(&place, "torn"));
    let bytes = place.read(&file);
    std::fs::write(place.path(&file), &bytes[..bytes.len() - 7]).unwrap();
    let answer = place.succeed(&["train", "--resume", "torn"]);
    assert!(answer.err.contains("cannot be used: engine.safetensors is damaged"), "{}", answer.err);
    assert_equal_runs(&place, "whole", "torn");
}

#[test]
fn a_run_without_a_checkpoint_starts_again() {
    let place = Place::new();
    place.succeed(&["train", TINY, "total_steps=2000", "--output", "whole"]);
    place.succeed(&["train", TINY, "total_steps=2000", "--output", "early"]);
    std::fs::remove_file(place.path("early/summary.json")).unwrap();
    std::fs::remove_dir_all(place.path("early/checkpoints")).unwrap();
    let answer = place.succeed(&["train", "--resume", "early"]);
    assert!(answer.err.contains("starting at the beginning"), "{}", answer.err);
    assert_equal_runs(&place, "whole", "early");
}

#[test]
fn evaluations_by_hand_survive_a_resume() {
    let place = Place::new();
    place.succeed(&["train", TINY, "total_steps=3000", "--output", "run"]);
    place.succeed(&["eval", "run", "--malicious-action", "0.7"]);
    std::fs::remove_file(place.path("run/summary.json")).unwrap();
    place.succeed(&["train", "--resume", "run"]);
    let text = String::from_utf8(place.read("run/eval.csv")).unwrap();
    assert_eq!(text.lines().filter(|l| l.starts_with("eval,")).count(), 1);
    assert_eq!(text.lines().filter(|l| l.starts_with("final,")).count(), 4);
}
