//! What the command says when something is wrong: the place, the reason, a way out.

use crate::command::{Place, TINY, newest_checkpoint};

fn check(file: &str, changes: &[&str]) -> String {
    let place = Place::new();
    place.write("my.toml", file);
    let mut arguments = vec!["config", "check", "my.toml"];
    arguments.extend(changes);
    place.fail(2, &arguments)
}

#[test]
fn mistakes_in_a_file() {
    insta::assert_snapshot!("unknown_key", check("seed = 1\n\n[agent.ppo]\ndicsount = 0.9\n", &[]));
    insta::assert_snapshot!("wrong_type", check("slots = \"four\"\n", &[]));
    insta::assert_snapshot!("out_of_range", check("[agent.ppo]\ndiscount = 1.5\n", &[]));
    insta::assert_snapshot!("out_of_range_env", check("[env.simple_spread]\nn_agents = 0\n", &[]));
    insta::assert_snapshot!("unknown_env", check("[env.simple_spred]\n", &[]));
    insta::assert_snapshot!("two_envs", check("[env.pendulum]\n[env.cart_pole]\n", &[]));
    insta::assert_snapshot!("broken_toml", check("seed = \n", &[]));
    insta::assert_snapshot!("unknown_agent_name", check("[[perturb]]\n[perturb.observation_noise]\nagents = [\"agent_9\"]\n", &[]));
    insta::assert_snapshot!("central_critic_without_state", check("[env.chain]\n[agent.ppo]\ncritic = \"central\"\n", &[]));
    insta::assert_snapshot!("mixer_without_state", check("[env.chain]\n[agent.q_learning]\nmixer = \"monotonic\"\n", &[]));
    insta::assert_snapshot!("values_of_continuous_actions", check("[env.pendulum]\n[agent.q_learning]\n", &[]));
    insta::assert_snapshot!("divergence_of_values", check("[agent.q_learning]\n[regularizer.lipschitz]\ndistance = \"kl\"\n", &[]));
    insta::assert_snapshot!("action_regularizer_of_ppo", check("[action_regularizer]\nweight = 0.1\n", &[]));
    insta::assert_snapshot!("replay_too_large", check("[agent.maddpg.replay]\ncapacity = 1000000000\n", &[]));
}

#[test]
fn mistakes_in_arguments() {
    insta::assert_snapshot!("override_key", check("", &["agent.ppo.clip_rnage=0.1"]));
    insta::assert_snapshot!("override_type", check("", &["slots=many"]));
    insta::assert_snapshot!("override_range", check("", &["agent.ppo.gae_lambda=-1"]));
    insta::assert_snapshot!("override_other_env", check("[env.pendulum]\n", &["env.simple_spread.n_agents=5"]));
    insta::assert_snapshot!("two_recipes", check("", &["seed"]));
    insta::assert_snapshot!("rollout_too_large", check("", &["agent.ppo.rollout_steps=10000000", "slots=64"]));
}

#[test]
fn things_that_are_not_there() {
    let place = Place::new();
    insta::assert_snapshot!("missing_file", place.fail(2, &["train", "cartpole-pop"]));
    insta::assert_snapshot!("missing_run", place.fail(2, &["train", "--resume", "runs/nothing"]));
    insta::assert_snapshot!("unwritable", place.fail(2, &["train", TINY, "--output", "/dev/null/run"]));
    insta::assert_snapshot!("usage", place.fail(2, &["train", "--resme", "x"]));
    std::fs::create_dir(place.path("full")).unwrap();
    place.write("full/file", "");
    insta::assert_snapshot!("taken", place.fail(2, &["train", TINY, "--output", "full"]));
}

#[test]
fn unusable_checkpoints() {
    let place = Place::new();
    place.succeed(&["train", TINY, "total_steps=1200", "robustness=[]", "--output", "run"]);
    for (name, arguments) in [
        ("eval_no_such_agent", &["eval", "run", "--observation-noise", "0.1", "--agents", "agent_7"][..]),
        ("eval_negative_noise", &["eval", "run", "--observation-noise", "-1"]),
        ("eval_broken_perturbation", &["eval", "run", "--perturb", "{ malicious_action = { probability = 2 } }"]),
        ("eval_one_episode", &["eval", "run", "--episodes", "1"]),
        ("eval_no_such_step", &["eval", "run", "--checkpoint", "77"]),
        ("eval_broken_table", &["eval", "run", "--perturb", "{ observation_noise = { magnitud = 1 } }"]),
        ("plot_unknown_metric", &["plot", "run", "--metric", "train/polcy_loss"]),
        ("plot_unknown_format", &["plot", "run", "-o", "curve.gif"]),
    ] {
        insta::assert_snapshot!(name, place.fail(2, arguments));
    }

    // A truncated file in the newest checkpoint.
    let newest = newest_checkpoint(&place, "run");
    let step = newest.rsplit('-').next().unwrap().trim_start_matches('0').to_string();
    let file = format!("{newest}/learner.safetensors");
    let bytes = place.read(&file);
    std::fs::write(place.path(&file), &bytes[..bytes.len() / 2]).unwrap();
    let text = place.fail(1, &["eval", "run", "--checkpoint", &step]);
    assert!(text.contains("learner.safetensors is damaged"), "{text}");
    let fallback = place.succeed(&["eval", "run"]);
    assert!(fallback.err.contains("cannot be used"), "{}", fallback.err);

    // Checkpoints of another version.
    for entry in std::fs::read_dir(place.path("run/checkpoints")).unwrap() {
        let file = entry.unwrap().path().join("progress.json");
        let text = std::fs::read_to_string(&file)
            .unwrap()
            .replace(&format!("\"steadfast_version\": \"{}\"", env!("CARGO_PKG_VERSION")), "\"steadfast_version\": \"7.1.0\"")
            .replace("\"format_version\": 1", "\"format_version\": 99");
        std::fs::write(&file, text).unwrap();
    }
    std::fs::remove_file(place.path("run/summary.json")).unwrap();
    insta::assert_snapshot!("other_version", place.fail(1, &["train", "--resume", "run"]));
    insta::assert_snapshot!("eval_other_version", place.fail(1, &["eval", "run"]));
    std::fs::remove_dir_all(place.path("run/checkpoints")).unwrap();
    insta::assert_snapshot!("eval_without_checkpoint", place.fail(1, &["eval", "run"]));
}
