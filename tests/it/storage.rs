//! Disks that are full.
#![cfg(unix)]

use std::process::Command;

use crate::command::{Answer, Place, TINY, answer, names};

/// Runs with a limit on the size of files, which fails writes as a full disk does.
fn limited(place: &Place, blocks: u32, arguments: &str) -> Answer {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec {} {arguments}", env!("CARGO_BIN_EXE_steadfast"));
    answer(Command::new("sh").arg("-c").arg(script).current_dir(place.path(".")).env("NO_COLOR", "1").output().unwrap())
}

#[test]
fn a_log_that_cannot_grow_stops_the_run_and_stays_readable() {
    let place = Place::new();
    // 16 KiB or 32 KiB, by the shell's unit: enough for a checkpoint of this size, not for the log.
    let changes = "agent.ppo.policy_hidden=[2] agent.ppo.critic_hidden=[2] slots=2 agent.ppo.minibatch_size=8 log.tensorboard=false";
    let failed = limited(&place, 32, &format!("train {TINY} {changes} log.every_updates=1 --output run"));
    assert_eq!(failed.code, Some(1), "{}", failed.err);
    assert!(failed.err.contains("cannot write to run/") && failed.err.contains("File too large"), "{}", failed.err);
    for name in ["metrics.jsonl", "timing.jsonl", "eval.csv", "episodes.csv"] {
        let text = String::from_utf8(place.read(&format!("run/{name}"))).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{name} ends within a line");
    }
    // With room again the run goes on as if nothing had happened.
    place.succeed(&["train", "--resume", "run"]);
    let mut arguments: Vec<&str> = vec!["train", TINY];
    arguments.extend(changes.split(' '));
    arguments.extend(["log.every_updates=1", "--output", "whole"]);
    place.succeed(&arguments);
    crate::command::assert_equal_runs(&place, "whole", "run");
}

#[test]
fn a_checkpoint_that_does_not_fit_is_not_left_behind() {
    let place = Place::new();
    let failed = limited(&place, 16, &format!("train {TINY} agent.ppo.policy_hidden=[128] --output run"));
    assert_eq!(failed.code, Some(1), "{}", failed.err);
    assert!(failed.err.contains("learner.safetensors"), "{}", failed.err);
    assert_eq!(names(&place.path("run/checkpoints")), Vec::<String>::new());
    // With room again the run goes on as if nothing had happened.
    place.succeed(&["train", "--resume", "run"]);
    place.succeed(&["train", TINY, "agent.ppo.policy_hidden=[128]", "--output", "whole"]);
    crate::command::assert_equal_runs(&place, "whole", "run");
}
