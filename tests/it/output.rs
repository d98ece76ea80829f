//! What the command prints when nothing is wrong.

use crate::command::Place;

#[test]
fn help_texts() {
    let place = Place::new();
    for (name, arguments) in [
        ("help", &["--help"][..]),
        ("help_train", &["train", "--help"]),
        ("help_eval", &["eval", "--help"]),
        ("help_sweep", &["sweep", "--help"]),
        ("help_plot", &["plot", "--help"]),
        ("help_preferences", &["preferences", "--help"]),
        ("help_recipe", &["recipe", "--help"]),
        ("help_config", &["config", "--help"]),
        ("help_audit", &["audit", "--help"]),
        ("help_list", &["list", "--help"]),
    ] {
        insta::assert_snapshot!(name, place.succeed(arguments).out);
    }
}

#[cfg(feature = "llm")]
#[test]
fn help_texts_of_language_models() {
    let place = Place::new();
    for command in ["generate", "export", "show-batch"] {
        let name = format!("help_{}", command.replace('-', "_"));
        insta::assert_snapshot!(name, place.succeed(&[command, "--help"]).out);
    }
    for what in ["objectives", "margins"] {
        insta::assert_snapshot!(format!("list_{what}"), place.succeed(&["list", what]).out);
    }
    let text = place.succeed(&["config", "defaults", "--language"]).out;
    insta::assert_snapshot!("config_defaults_language", text);
    place.write("defaults.toml", &text);
    assert_eq!(place.succeed(&["config", "check", "defaults.toml"]).out, "defaults.toml: ok\n");
}

#[test]
fn lists() {
    let place = Place::new();
    for what in ["envs", "agents", "regularizers", "perturbations", "noise", "losses"] {
        insta::assert_snapshot!(format!("list_{what}"), place.succeed(&["list", what]).out);
    }
    insta::assert_snapshot!("recipe_list", place.succeed(&["recipe", "list"]).out);
}

#[test]
fn defaults_are_printed_with_their_meaning() {
    let place = Place::new();
    let text = place.succeed(&["config", "defaults"]).out;
    insta::assert_snapshot!("config_defaults", text);
    place.write("defaults.toml", &text);
    assert_eq!(place.succeed(&["config", "check", "defaults.toml"]).out, "defaults.toml: ok\n");
}

#[test]
fn a_shown_configuration_is_complete() {
    let place = Place::new();
    let shown = place.succeed(&["config", "show", "cartpole-ppo", "env=pendulum", "agent.ppo.clip_range=0.3"]).out;
    assert!(shown.contains("[env.pendulum]") && shown.contains("clip_range = 0.3"), "{shown}");
    place.write("shown.toml", &shown);
    assert_eq!(place.succeed(&["config", "show", "shown.toml"]).out, shown);
}

#[test]
fn a_recipe_is_copied_once() {
    let place = Place::new();
    assert_eq!(place.succeed(&["recipe", "copy", "cartpole-ppo"]).out, "cartpole-ppo.toml\n");
    let shown = place.succeed(&["recipe", "show", "cartpole-ppo"]).out;
    assert_eq!(place.read("cartpole-ppo.toml"), shown.as_bytes());
    assert!(place.fail(2, &["recipe", "copy", "cartpole-ppo"]).contains("exists already"));
}

/// `steadfast config defaults | head -1` must not end in a panic.
#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    use std::process::Stdio;
    let place = Place::new();
    for _ in 0..5 {
        let mut child = place.command(&["config", "defaults"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
}
