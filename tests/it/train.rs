//! Training, evaluation and pictures on a tiny recipe.

use crate::command::{Place, TINY, assert_equal_runs, names, newest_checkpoint};

#[test]
fn a_run_leaves_a_complete_directory() {
    let place = Place::new();
    let answer = place.succeed(&["train", TINY, "total_steps=3000"]);
    assert!(answer.out.contains("malicious_action"), "{}", answer.out);
    assert!(answer.out.contains("return, mean over agents"), "{}", answer.out);
    let run = "runs/tiny-seed3";
    assert_eq!(
        names(&place.path(run)),
        [
            "checkpoints",
            "config.toml",
            "episodes.csv",
            "eval.csv",
            "manifest.json",
            "metrics.jsonl",
            "plots",
            "run.lock",
            "summary.json",
            "tensorboard",
            "timing.jsonl"
        ]
    );
    assert_eq!(names(&place.path(&format!("{run}/plots"))), ["learning.png", "learning.svg", "robustness.png", "robustness.svg"]);
    assert_eq!(names(&place.path(&newest_checkpoint(&place, run))), ["engine.safetensors", "learner.safetensors", "progress.json"]);
    assert_eq!(names(&place.path(&format!("{run}/checkpoints"))).len(), 3);
    let metrics = String::from_utf8(place.read(&format!("{run}/metrics.jsonl"))).unwrap();
    for name in ["\"step\":3072", "rollout/return_team_sum", "rollout/collisions", "train/policy_loss"] {
        assert!(metrics.contains(name), "{name} is missing in {metrics}");
    }
    assert!(!metrics.contains("second"), "wall-clock figures belong into timing.jsonl");

    assert!(answer.out.contains("return_mpe2") && answer.out.contains("return_shared_sum"), "{}", answer.out);
    assert!(answer.err.contains(&format!("continue a stopped run with: steadfast train --resume {run}")), "{}", answer.err);

    // The same again goes elsewhere and says so.
    let again = place.succeed(&["train", TINY, "total_steps=3000"]);
    assert!(again.err.contains("runs/tiny-seed3 exists; this run goes to runs/tiny-seed3-2"), "{}", again.err);
    let finished = place.succeed(&["train", "--resume", run]);
    assert!(finished.out.contains("finished"));

    // Evaluation appends a row, and meets the same episodes as the sweep at the end of training.
    let before = place.read(&format!("{run}/eval.csv"));
    place.succeed(&["eval", run, "--observation-noise", "0.5", "--episodes", "5"]);
    let after = String::from_utf8(place.read(&format!("{run}/eval.csv"))).unwrap();
    let added = after.strip_prefix(std::str::from_utf8(&before).unwrap()).unwrap();
    let swept = after.lines().find(|l| l.starts_with("final,") && l.contains("observation_noise,0.5")).unwrap();
    assert_eq!(added.trim_end().strip_prefix("eval,"), swept.strip_prefix("final,"));

    // Two runs of one seed count once, and so does a run that is named twice; another seed counts.
    let pictured = |runs: &[&str]| {
        let answer = place.succeed(&[&["plot"], runs, &["-o", "both.svg"]].concat());
        (String::from_utf8(place.read("both.svg")).unwrap(), answer.err)
    };
    let (picture, warnings) = pictured(&[run, "runs/tiny-seed3-2"]);
    assert!(picture.contains("tiny") && !picture.contains("runs)"));
    assert!(warnings.contains("have the same seed, only the newer counts: runs/tiny-seed3-2"), "{warnings}");
    assert!(!pictured(&[run, "./runs/../runs/tiny-seed3"]).0.contains("runs)"));
    place.succeed(&["train", "total_steps=3000", TINY, "seed=4"]);
    assert!(pictured(&[run, "runs/tiny-seed4"]).0.contains("tiny (2 runs)"));

    // What differs in more than the seed is another line; what differs in the world is refused.
    place.succeed(&["train", TINY, "total_steps=3000", "regularizer=none", "--output", "plain"]);
    let (picture, _) = pictured(&[run, "plain"]);
    assert!(picture.contains("tiny, regularizer=none") && picture.contains("tiny, regularizer=lipschitz"));
    place.succeed(&[
        "train",
        TINY,
        "total_steps=100",
        "env=cart_pole",
        "agent.ppo.critic=local",
        "perturb=[]",
        "robustness=[]",
        "--output",
        "poles",
    ]);
    let text = place.fail(2, &["plot", run, "poles"]);
    assert!(text.contains("is a run of `simple_spread`, but poles is one of `cart_pole`"), "{text}");

    // Pictures of other metrics do not replace those of the run.
    let picture = place.read(&format!("{run}/plots/learning.svg"));
    place.succeed(&["plot", run, "--metric", "train/value_loss"]);
    assert_eq!(place.read(&format!("{run}/plots/learning.svg")), picture);
    assert!(place.path(&format!("{run}/plots/learning-train-value_loss.png")).exists());
    place.succeed(&["plot", run, "--metric", "metric_return_mpe2", "--kind", "robustness", "-o", "own.svg"]);

    // Several perturbations at once: every strength is printed, and the picture says what is fixed.
    let answer = place.succeed(&["eval", run, "--observation-noise", "0.25", "--malicious-action", "0.75", "--episodes", "2"]);
    assert!(answer.out.contains("observation_noise+malicious_action  0.25+0.75"), "{}", answer.out);
    place.succeed(&["plot", run, "--kind", "robustness", "-o", "combined.svg"]);
    let picture = String::from_utf8(place.read("combined.svg")).unwrap();
    assert!(picture.contains("together with malicious action (") && picture.contains("probability = 0.75"));
    assert!(!picture.contains('{') && !picture.contains('['));
    place.succeed(&["plot", run, "--metric", "train/value_loss", "-o", "loss.png"]);
    place.succeed(&["plot", run, "--kind", "robustness", "--metric", "return_team_sum", "-o", "pictures/noise.svg"]);
}

#[test]
fn the_numbers_do_not_depend_on_threads() {
    let place = Place::new();
    place.succeed(&["train", TINY, "total_steps=4000", "threads=1", "--output", "one"]);
    place.succeed(&["train", TINY, "total_steps=4000", "threads=2", "--output", "two"]);
    assert_equal_runs(&place, "one", "two");
}

#[test]
fn another_seed_gives_other_numbers_but_the_same_episodes() {
    let place = Place::new();
    place.succeed(&["train", TINY, "total_steps=500", "--seeds", "1,2"]);
    let metrics = |seed| place.read(&format!("runs/tiny-seed{seed}/metrics.jsonl"));
    assert_ne!(metrics(1), metrics(2));
    for seeds in ["1,2,1", "1-3"] {
        place.fail(2, &["train", TINY, "--seeds", seeds]);
    }
    assert!(place.fail(2, &["train", TINY, "--seeds", "1-3"]).contains("seeds are comma-separated numbers"));
    assert!(place.fail(2, &["train", TINY, "seed=1", "--seeds", "1,2"]).contains("give one of them"));
    let config = |seed| String::from_utf8(place.read(&format!("runs/tiny-seed{seed}/config.toml"))).unwrap();
    assert_eq!(config(1).replace("seed = 1\n", "seed = 2\n"), config(2));
}

#[test]
fn a_diverging_run_stops_and_keeps_its_checkpoint() {
    let place = Place::new();
    let text = place.fail(1, &["train", TINY, "agent.ppo.learning_rate=1e38", "--output", "run"]);
    assert!(text.contains("training stopped in update") && text.contains("non-finite"), "{text}");
    assert_eq!(names(&place.path("run/checkpoints")), ["step-000000000000"]);
    place.succeed(&["eval", "run"]);
}

#[test]
fn two_writers_are_kept_apart() {
    let place = Place::new();
    let mut child =
        place.command(&["train", TINY, "total_steps=100000000", "--output", "run"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    while !place.path("run/checkpoints/step-000000000000").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let text = place.fail(1, &["train", "--resume", "run"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(text.contains("another process is writing"), "{text}");
}
