//! Every particle and control world keeps the contract of an environment, with both kinds of actions.

use steadfast_envs::perturb::ObservationNoiseConfig;
use steadfast_envs::testing::check_environment;
use steadfast_envs::{EnvConfig, PerturbationConfig, Perturbed};

fn check(toml_like: serde_json::Value) {
    let config: EnvConfig = serde_json::from_value(toml_like.clone()).expect("the configuration is valid");
    check_environment(&|| config.build()).unwrap_or_else(|error| panic!("{toml_like}: {error}"));
}

#[test]
fn control_worlds_keep_the_contract() {
    for name in ["cart_pole", "pendulum", "acrobot", "mountain_car_continuous", "random_reward"] {
        check(serde_json::json!({ name: {} }));
    }
}

#[test]
fn text_worlds_keep_the_contract() {
    for name in ["topic_lexicon", "salient_copy", "shortcut_style"] {
        check(serde_json::json!({ name: {} }));
    }
}

#[test]
fn perturbations_that_make_no_sense_for_text_are_refused() {
    let env = || EnvConfig::TopicLexicon(Default::default()).build().expect("defaults are valid");
    let noise = PerturbationConfig::ObservationNoise(ObservationNoiseConfig::default());
    let malicious = PerturbationConfig::MaliciousAction(Default::default());
    for perturbation in [noise, malicious] {
        let message = Perturbed::new(env(), std::slice::from_ref(&perturbation)).err().expect("no meaning").to_string();
        assert!(message.contains("`agents`") && message.contains("topic_lexicon"), "{message}");
    }
    check_environment(&|| Ok(Box::new(Perturbed::new(env(), &[])?))).expect("no perturbation changes nothing");
}

#[test]
fn particle_worlds_keep_the_contract() {
    let sizes = [
        ("simple", serde_json::json!({})),
        ("simple_adversary", serde_json::json!({ "n_good": 4 })),
        ("simple_crypto", serde_json::json!({})),
        ("simple_push", serde_json::json!({})),
        ("simple_reference", serde_json::json!({ "local_ratio": 0.2 })),
        ("simple_speaker_listener", serde_json::json!({})),
        ("simple_spread", serde_json::json!({ "n_agents": 1, "terminate_on_success": true })),
        ("simple_tag", serde_json::json!({ "n_good": 2, "n_adversaries": 1, "n_obstacles": 0, "terminate_on_success": true })),
        ("simple_world_comm", serde_json::json!({ "n_good": 1, "n_adversaries": 1, "n_obstacles": 0, "n_food": 1, "n_forests": 0 })),
    ];
    for (name, size) in sizes {
        for continuous in [false, true] {
            for integrator in ["pettingzoo", "openai"] {
                for base in [&serde_json::json!({}), &size] {
                    let mut fields = base.clone();
                    fields["continuous_actions"] = continuous.into();
                    fields["integrator"] = integrator.into();
                    check(serde_json::json!({ name: fields }));
                }
            }
        }
    }
}

#[test]
fn noisy_worlds_keep_the_contract() {
    for name in ["cart_pole", "pendulum", "acrobot", "mountain_car_continuous", "simple_spread", "simple_tag"] {
        let config: EnvConfig = serde_json::from_value(serde_json::json!({ name: {} })).expect("an empty table is enough");
        let noise = PerturbationConfig::ObservationNoise(ObservationNoiseConfig { magnitude: 0.5, ..Default::default() });
        check_environment(&|| Ok(Box::new(Perturbed::new(config.build()?, std::slice::from_ref(&noise))?)))
            .unwrap_or_else(|error| panic!("noisy {name}: {error}"));
    }
}

#[test]
fn every_listed_name_builds_and_answers_to_it() {
    for (name, description) in EnvConfig::LIST {
        let config: EnvConfig = serde_json::from_value(serde_json::json!({ *name: {} })).expect("an empty table is enough");
        if *name == "prompts" {
            // Prompts come from a file through a tokenizer.
            let message = config.build().err().expect("there is no tokenizer").to_string();
            assert!(message.contains("tokenizer"), "{message}");
            continue;
        }
        let env = config.build().expect("defaults are valid");
        assert_eq!((config.name(), env.spec().name.as_str()), (*name, *name));
        assert!(!description.is_empty());
    }
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let cases = [
        (serde_json::json!({ "simple_spread": { "n_agents": 0 } }), "n_agents"),
        (serde_json::json!({ "simple_spread": { "local_ratio": 1.5 } }), "local_ratio"),
        (serde_json::json!({ "simple_reference": { "local_ratio": -0.1 } }), "local_ratio"),
        (serde_json::json!({ "simple_tag": { "n_good": 0 } }), "n_good"),
        (serde_json::json!({ "simple_tag": { "prey_speed_factor": 0.0 } }), "prey_speed_factor"),
        (serde_json::json!({ "simple_world_comm": { "n_food": 0 } }), "n_food"),
        (serde_json::json!({ "simple_world_comm": { "n_forests": 65 } }), "n_forests"),
        (serde_json::json!({ "simple": { "horizon": 0 } }), "horizon"),
        (serde_json::json!({ "simple": { "physics": { "mass": 0.0 } } }), "physics.mass"),
        (serde_json::json!({ "cart_pole": { "pole_mass": 0.0 } }), "pole_mass"),
        (serde_json::json!({ "pendulum": { "horizon": 0 } }), "horizon"),
        (serde_json::json!({ "mountain_car_continuous": { "start_range": [0.0, -0.5] } }), "start_range"),
        (serde_json::json!({ "acrobot": { "max_speeds": [1.0, 0.0] } }), "max_speeds"),
    ];
    for (json, field) in cases {
        let config: EnvConfig = serde_json::from_value(json.clone()).expect("the shape is valid");
        let message = config.build().err().expect("the value is out of range").to_string();
        assert!(message.contains(field), "{json}: {message}");
    }
    assert!(serde_json::from_value::<EnvConfig>(serde_json::json!({ "simple_spread": { "n_agent": 3 } })).is_err());
}
