//! Language models from end to end: pretraining, preferences, text out, folders; and what is said of bad input.

use crate::command::{Place, assert_equal_runs, names};

pub const TINY_LANGUAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-language.toml");

/// The same task and model, learning from pairs that the model `run` draws.
fn preferences(run: &str) -> String {
    format!(
        "name = \"tiny-dpo\"\nseed = 3\nthreads = 1\n[model.pretrained]\npath = \"{run}\"\n[data.task]\nexamples = 96\nheld_out = 16\n\
         [data.task.env.topic_lexicon]\nn_topics = 2\nn_words = 12\nmax_words = 6\n[data.task.noise.uniform]\nrate = 0.2\n\
         [objective.preference]\n[objective.preference.loss.r3m]\nlambda = 0.75\n[trainer]\nbatch_size = 16\nmicro_batch_size = 8\n\
         learning_rate = 1e-3\n[eval]\nevery_steps = 3\nsamples = 32\n[checkpoint]\nevery_steps = 2\n"
    )
}

#[test]
fn a_model_is_pretrained_aligned_exported_and_speaks() {
    let place = Place::new();
    place.succeed(&["train", TINY_LANGUAGE, "--output", "base"]);
    for file in ["model/config.json", "model/model.safetensors", "model/tokenizer.json", "eval.csv", "samples.jsonl", "summary.json"] {
        assert!(place.path(&format!("base/{file}")).is_file(), "{file}");
    }
    place.write("dpo.toml", &preferences("base"));
    let answer = place.succeed(&["train", "dpo.toml", "--output", "dpo"]);
    assert!(answer.out.contains("gold_reward") && answer.out.contains("kl"), "{}", answer.out);
    for file in ["preferences.jsonl", "preferences_held_out.jsonl", "examples.csv"] {
        assert!(!place.read(&format!("dpo/{file}")).is_empty(), "{file}");
    }
    // What was drawn can be read as a file, and then is learned from again.
    place.succeed(&["audit", "dpo/preferences.jsonl", "-o", "audit"]);
    let changes = ["data=file", "data.file.path=dpo/preferences.jsonl"];
    place.succeed(&[&["train", "dpo.toml", "--output", "again"][..], &changes].concat());

    // The same seed says the same; completions of one prompt differ.
    let generate = ["generate", "dpo", "topic1 filler0 filler1 filler2", "-n", "4", "--max-new-tokens", "7", "--seed", "5"];
    let first = place.succeed(&generate).out;
    assert_eq!(first.lines().count(), 4, "{first}");
    assert_eq!(place.succeed(&generate).out, first);
    let json = place.succeed(&[&generate[..], &["--log-probs"]].concat()).out;
    assert!(json.lines().all(|line| line.starts_with('{') && line.contains("\"log_probs\"")), "{json}");

    place.succeed(&["export", "dpo", "-o", "out"]);
    assert_eq!(place.read("out/model.safetensors"), place.read("dpo/model/model.safetensors"));
    place.succeed(&["export", "dpo", "--checkpoint", "6", "-o", "last"]);
    assert_eq!(place.read("last/model.safetensors"), place.read("out/model.safetensors"));
    assert!(place.fail(2, &["export", "dpo", "-o", "out"]).contains("not an empty directory"));
    assert_eq!(place.succeed(&[&["generate", "out"], &generate[2..]].concat()).out, first);
    let shown = place.succeed(&["show-batch", "dpo.toml", "-n", "1"]).out;
    assert!(shown.contains("chosen") && shown.contains("completion") && shown.contains("<eos>"), "{shown}");
}

#[test]
fn a_reward_model_trains_a_policy_in_a_world_of_text() {
    let place = Place::new();
    place.succeed(&["train", TINY_LANGUAGE, "--output", "base"]);
    let text = preferences("base").replace("objective.preference", "objective.reward_model").replace("tiny-dpo", "tiny-reward");
    place.write("reward.toml", &text);
    place.succeed(&["train", "reward.toml", "--output", "reward"]);
    assert!(place.path("reward/model/reward_normalization.json").is_file());
    let rloo = "name = \"tiny-rloo\"\nthreads = 1\ntotal_steps = 64\nslots = 8\n[model.pretrained]\npath = \"base\"\n[env.topic_lexicon]\n\
                n_topics = 2\nn_words = 12\nmax_words = 6\n[agent.rloo]\ngroup_size = 4\n[agent.rloo.update]\nlearning_rate = 1e-3\n\
                [eval]\nevery_steps = 32\nepisodes = 16\nmode = \"sample\"\n[checkpoint]\nevery_steps = 16\n";
    place.write("rloo.toml", rloo);
    place.succeed(&["train", "rloo.toml", "--output", "rloo"]);
    place.succeed(&["train", "rloo.toml", "reward_model.path=reward", "--output", "learned"]);
    assert!(place.path("rloo/model/model.safetensors").is_file());
    let table = String::from_utf8(place.read("rloo/eval.csv")).unwrap();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    let column = |name: &str| -> Vec<f64> {
        let at = lines[0].iter().position(|n| *n == name).unwrap_or_else(|| panic!("{name} is missing: {table}"));
        lines[1..].iter().map(|line| line[at].parse().unwrap()).collect()
    };
    for name in ["completion_length", "ended", "entropy_sampled", "gold_reward"] {
        assert_eq!(column(&format!("metric_{name}")).len(), 3, "{name}");
    }
    let (kl, kl_k3) = (column("metric_kl"), column("metric_kl_k3"));
    assert!(kl[0].abs() < 1e-4 && kl_k3.iter().all(|k| *k >= 0.0) && kl_k3[2] > kl_k3[0], "{table}");
    for (gold, paid) in column("metric_gold_reward").into_iter().zip(column("return_agent_mean")) {
        assert!((gold - paid).abs() < 1e-4, "the world pays the task's reward: {gold} {paid}");
    }
    let episodes = String::from_utf8(place.read("rloo/episodes.csv")).unwrap();
    assert!(!episodes.lines().next().unwrap().contains("metric_kl"), "{episodes}");
    assert!(place.read("rloo/metrics.jsonl") != place.read("learned/metrics.jsonl"));
    let text = place.fail(2, &["train", "rloo.toml", "slots=6"]);
    assert!(text.contains("a multiple of `agent.rloo.group_size` = 4"), "{text}");
}

#[test]
fn a_stopped_run_resumes_to_the_same_bytes() {
    let place = Place::new();
    place.succeed(&["train", TINY_LANGUAGE, "--output", "whole"]);
    place.succeed(&["train", TINY_LANGUAGE, "threads=2", "--output", "stopped"]);
    std::fs::remove_file(place.path("stopped/summary.json")).unwrap();
    // Back to an older checkpoint, in the middle of the second pass.
    let newest = names(&place.path("stopped/checkpoints")).pop().unwrap();
    std::fs::remove_dir_all(place.path(&format!("stopped/checkpoints/{newest}"))).unwrap();
    place.succeed(&["train", "--resume", "stopped"]);
    assert_equal_runs(&place, "whole", "stopped");
    assert_eq!(place.read("whole/samples.jsonl"), place.read("stopped/samples.jsonl"));
    assert_eq!(place.read("whole/model/model.safetensors"), place.read("stopped/model/model.safetensors"));
}

#[test]
fn bad_input_is_named_before_training_starts() {
    let place = Place::new();
    place.succeed(&["train", TINY_LANGUAGE, "--output", "base"]);
    place.write("dpo.toml", &preferences("base"));
    let fail = |changes: &[&str]| place.fail(2, &[&["config", "check", "dpo.toml"], changes].concat());
    let text = fail(&["model.pretrained.path=runs/topic-pretrain-seed0"]);
    assert!(text.contains("`steadfast train topic-pretrain` makes it"), "{text}");
    let text = fail(&["trainer.learning_rate=-1"]);
    assert!(text.contains("`trainer.learning_rate` must be"), "{text}");
    let text = fail(&["device=cuda"]);
    assert!(cfg!(feature = "cuda") || text.contains("built without CUDA"), "{text}");
    let text = fail(&["objective=sft"]);
    assert!(text.contains("has no labels"), "{text}");
    let text = place.fail(2, &["generate", "base", &"w00 ".repeat(40)]);
    assert!(text.contains("40 tokens") || text.contains("41 tokens"), "{text}");

    // A task with other words.
    let text = place.fail(1, &["train", "dpo.toml", "data.task.env.topic_lexicon.n_words=13", "--output", "other"]);
    assert!(text.contains("does not fit the task `topic_lexicon`"), "{text}");
    // An empty completion, with its row.
    place.write("empty.jsonl", "{\"prompt\": \"topic0\", \"chosen\": \"w00\", \"rejected\": \"w01\"}\n{\"prompt\": \"topic0\", \"chosen\": \"\", \"rejected\": \"w01\"}\n");
    let text = place.fail(1, &["train", "dpo.toml", "data=file", "data.file.path=empty.jsonl", "--output", "empty"]);
    assert!(text.contains("empty.jsonl:2"), "{text}");
}

#[test]
fn a_damaged_model_is_named_before_training_starts() {
    let place = Place::new();
    place.succeed(&["train", TINY_LANGUAGE, "--output", "base"]);
    let (weights, config) = (place.read("base/model/model.safetensors"), place.read("base/model/config.json"));
    let tokenizer = place.read("base/model/tokenizer.json");
    let mut tries = 0;
    // A folder with one file changed; the training file of pairs; what the message says.
    let mut refused = |file: &str, bytes: &[u8], said: &[&str]| {
        tries += 1;
        let folder = place.path(&format!("damaged-{tries}"));
        std::fs::create_dir(&folder).unwrap();
        for (name, bytes) in [("model.safetensors", &weights), ("config.json", &config), ("tokenizer.json", &tokenizer)] {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        for name in ["tokenizer_config.json", "generation_config.json"] {
            let _ = std::fs::copy(place.path(&format!("base/model/{name}")), folder.join(name));
        }
        std::fs::write(folder.join(file), bytes).unwrap();
        if file.ends_with("index.json") {
            std::fs::remove_file(folder.join("model.safetensors")).unwrap();
        }
        place.write("dpo.toml", &preferences(&format!("damaged-{tries}")));
        let output = format!("run-{tries}");
        let text = place.fail(1, &["train", "dpo.toml", "--output", &output]);
        assert!(said.iter().all(|said| text.contains(said)), "{file}: {text}");
        assert!(!place.path(&format!("{output}/metrics.jsonl")).exists() || place.read(&format!("{output}/metrics.jsonl")).is_empty());
    };
    refused("model.safetensors", &weights[..weights.len() / 2], &["model.safetensors"]);
    let mut header = weights.clone();
    header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused("model.safetensors", &header, &["model.safetensors", "header"]);
    // Another width than the tensors have.
    let wider = String::from_utf8(config.clone()).unwrap().replace("\"intermediate_size\": 64", "\"intermediate_size\": 72");
    assert_ne!(wider.as_bytes(), config);
    refused("config.json", wider.as_bytes(), &["model.safetensors", "mlp."]);
    // An index whose shard is missing, and one that leads out of the folder.
    let index = |shard: &str| format!("{{\"metadata\": {{}}, \"weight_map\": {{\"model.embed_tokens.weight\": \"{shard}\"}}}}");
    refused("model.safetensors.index.json", index("model-00001-of-00002.safetensors").as_bytes(), &["model-00001-of-00002.safetensors"]);
    refused("model.safetensors.index.json", index("../base/model/model.safetensors").as_bytes(), &["does not lie in the folder"]);
    // A tokenizer with a word more than the model knows.
    let more = String::from_utf8(tokenizer.clone()).unwrap().replacen("\"<eos>\":", "\"zz\": 99, \"<eos>\":", 1);
    assert_ne!(more.as_bytes(), tokenizer);
    refused("tokenizer.json", more.as_bytes(), &["tokenizer"]);
}

#[test]
fn every_policy_gradient_learns_from_prompts_and_a_reward_model() {
    let place = Place::new();
    place.succeed(&["train", TINY_LANGUAGE, "--output", "base"]);
    let text = preferences("base").replace("objective.preference", "objective.reward_model");
    place.write("reward.toml", &text);
    place.succeed(&["train", "reward.toml", "--output", "reward"]);
    let rows: Vec<String> = (0..12).map(|i| format!("{{\"prompt\": \"topic{} filler{} filler0 filler1\"}}\n", i % 2, i % 9)).collect();
    place.write("prompts.jsonl", &rows.concat());
    for (agent, settings) in [("rloo", "group_size = 4"), ("grpo", "group_size = 4"), ("text_ppo", "group_size = 1")] {
        let recipe = format!(
            "name = \"prompts\"\nthreads = 1\ntotal_steps = 48\nslots = 8\n[model.pretrained]\npath = \"base\"\n[reward_model]\npath = \"reward\"\n\
             [env.prompts]\nfile = \"prompts.jsonl\"\nmax_prompt_tokens = 8\nmax_new_tokens = 6\n[agent.{agent}]\n{settings}\n[agent.{agent}.generation]\nmax_new_tokens = 6\n\
             [agent.{agent}.update]\nlearning_rate = 1e-2\n[eval]\nevery_steps = 24\nepisodes = 8\nmode = \"sample\"\n"
        );
        place.write("prompts.toml", &recipe);
        place.succeed(&["train", "prompts.toml", "--output", agent]);
        let table = String::from_utf8(place.read(&format!("{agent}/eval.csv"))).unwrap();
        assert_eq!(table.lines().count(), 4, "{agent}: {table}");
        assert!(table.contains("metric_kl"), "{agent}: {table}");
        assert!(place.read(&format!("{agent}/model/model.safetensors")) != place.read("base/model/model.safetensors"), "{agent}");
    }
}
