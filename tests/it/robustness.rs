//! Trained runs under perturbations: `steadfast sweep RUN... --axis`.

use std::collections::BTreeMap;

use parquet::file::reader::FileReader as _;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::Field;

use crate::command::{Place, TINY, names};

const BASE: [&str; 7] =
    ["total_steps=600", "robustness=[]", "perturb=[]", "eval.every_steps=0", "log.tensorboard=false", "threads=1", "slots=4"];

/// Two methods over two seeds.
fn trained() -> (Place, Vec<String>) {
    let place = Place::new();
    let mut runs = Vec::new();
    for (name, regularizer) in [("plain", "regularizer=none"), ("ernie", "regularizer.lipschitz.weight=0.5")] {
        for seed in ["1", "2"] {
            let run = format!("runs/{name}-{seed}");
            let (name, seed) = (format!("name={name}"), format!("seed={seed}"));
            let mut arguments = vec!["train", TINY, &name, &seed, regularizer, "--output", &run];
            arguments.extend(BASE);
            place.succeed(&arguments);
            runs.push(run);
        }
    }
    (place, runs)
}

fn sweep<'a>(runs: &'a [String], rest: &[&'a str]) -> Vec<&'a str> {
    let axes = ["--axis", "observation_noise=0.5,2", "--axis", "dynamics.mass=-0.5,1", "--episodes", "12"];
    ["sweep"].into_iter().chain(runs.iter().map(String::as_str)).chain(axes).chain(rest.iter().copied()).collect()
}

#[test]
fn tables_of_two_machines_give_the_report_of_one() {
    let (place, runs) = trained();
    let axes = ["--axis", "worst_agent=1", "--axis", "{ observation_noise = { schedule = { burst = { start = 1, length = 1 } } } }=3"];
    let whole = place.succeed(&sweep(&runs, &axes));
    let (table, report) = (place.read("sweeps/robustness/results.csv"), place.read("sweeps/robustness/table.txt"));
    // The runs are gone; two tables, one of which has some cells twice.
    let text = String::from_utf8(table.clone()).unwrap();
    let (header, rows) = text.split_once('\n').unwrap();
    let of = |keep: &dyn Fn(&str) -> bool| rows.lines().filter(|row| keep(row)).fold(format!("{header}\n"), |all, row| all + row + "\n");
    ["here", "there"].iter().for_each(|name| std::fs::create_dir(place.path(name)).unwrap());
    place.write("here/first.csv", &of(&|row| !row.starts_with("ernie")));
    place.write("there/second.csv", &of(&|row| !row.starts_with("plain,2")));
    std::fs::remove_dir_all(place.path("runs")).unwrap();
    let pooled = ["sweep", "here/first.csv", "there/second.csv", "--report-only"];
    let answer = place.succeed(&pooled);
    assert_eq!(String::from_utf8(place.read("sweeps/report/table.txt")).unwrap(), String::from_utf8(report).unwrap());
    assert_eq!(place.read("sweeps/report/summary.csv"), place.read("sweeps/robustness/summary.csv"));
    assert_eq!(names(&place.path("sweeps/report/plots")), names(&place.path("sweeps/robustness/plots")));
    assert!(answer.err.is_empty() && whole.out.lines().count() == answer.out.lines().count(), "{}{}", answer.err, answer.out);
    // The page says how it was made; the same command makes it again, another one draws another comparison.
    let page = String::from_utf8(place.read("sweeps/report/report.html")).unwrap();
    assert!(page.replace("&#x2f;", "/").contains("steadfast sweep here/first.csv there/second.csv --report-only</"), "{page}");
    assert_eq!(place.succeed(&pooled).out, answer.out);
    let other = place.succeed(&[pooled.as_slice(), &["--baseline", "ernie", "--metric", "metric_collisions"]].concat());
    assert!(other.out.contains("AUC minus ernie"), "{}", other.out);
    // A run of which a cell is missing is left out where it would count.
    place.write("there/second.csv", &of(&|row| !row.starts_with("ernie,2,") || !row.contains(",dynamics.mass,1,")));
    let gap = place.succeed(&["sweep", "there/second.csv", "--report-only", "--output", "gap"]);
    assert!(gap.err.contains("31 of 32 cells"), "{}", gap.err);
    for (arguments, words) in [
        (vec!["there/second.csv"], vec!["--report-only"]),
        (vec!["there/second.csv", "--report-only", "--output", "sweeps/robustness"], vec!["evaluated cells", "another --output"]),
        (vec!["there/second.csv", "--report-only", "--output", "there"], vec!["there/second.csv lies in there", "another --output"]),
        (vec!["there/second.csv", "--report-only", "--output", "here"], vec!["something else"]),
        (vec!["there/second.csv", "--report-only", "--mode", "greedy"], vec!["--mode"]),
        (vec!["there/second.csv", "--report-only", "--episodes", "3"], vec!["--episodes"]),
        (vec!["sweeps/robustness", "--report-only"], vec!["sweeps/robustness/results.csv --report-only"]),
        (vec!["there/second.csv", "--report-only", "--baseline", "plane"], vec!["`plane`", "plain"]),
        (vec!["there/second.csv", "--report-only", "--metric", "return"], vec!["`return`", "return_agent_mean"]),
        (vec!["sweeps/robustness/cells.csv", "--report-only"], vec!["results.csv"]),
        (vec!["there/second.parquet", "--report-only"], vec!["second.parquet", "CSV"]),
        (vec!["pendulum-learning-rate", "--baseline", "plain", "--dry-run"], vec!["--baseline", "[compare]"]),
    ] {
        let message = place.fail(2, &[["sweep"].as_slice(), &arguments].concat());
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    }
}

#[test]
fn runs_are_compared_over_axes_and_nothing_is_played_twice() {
    let (place, runs) = trained();
    let answer = place.succeed(&sweep(&runs, &["--jobs", "2"]));
    for word in [
        "observation_noise",
        "dynamics.mass",
        "dynamics.mass: relative drop",
        "all axes",
        "AUC minus plain",
        "nominal cost",
        "trapezoidal",
        "report.html",
    ] {
        assert!(answer.out.contains(word), "{word}: {}", answer.out);
    }
    let directory = place.path("sweeps/robustness");
    assert_eq!(
        names(&directory.join("plots")),
        ["dynamics-mass", "heat-map", "observation_noise", "profile"].map(|n| [format!("{n}.png"), format!("{n}.svg")]).concat()
    );
    let table = place.read("sweeps/robustness/results.csv");
    let mut reader = csv::Reader::from_reader(table.as_slice());
    let header = reader.headers().unwrap().clone();
    let rows: Vec<BTreeMap<String, String>> =
        reader.records().map(|r| header.iter().map(str::to_string).zip(r.unwrap().iter().map(str::to_string)).collect()).collect();
    // Random actions, then for each of four runs the unperturbed world once, two bounds, and two levels of two axes.
    assert_eq!(rows.len(), 1 + 4 * 7);
    assert_eq!((rows[0]["method"].as_str(), rows[0]["run_seed"].as_str()), ("uniform random policy", ""));
    let summary = String::from_utf8(place.read("sweeps/robustness/summary.csv")).unwrap();
    assert_eq!(summary.lines().count(), 1 + 2 * (3 + 3), "{summary}");
    assert!(summary.lines().nth(1).unwrap().starts_with("plain,observation_noise,0,2,"), "{summary}");
    let cell = |run: &str, axis: &str, level: &str| rows.iter().find(|r| r["run"] == run && r["axis"] == axis && r["level"] == level);
    assert_eq!(cell(&runs[3], "dynamics.mass", "-0.5").map(|r| (r["method"].as_str(), r["run_seed"].as_str())), Some(("ernie", "2")));
    // The Lipschitz constant of every policy lies between its bounds, with a regulariser or without.
    let bounds: Vec<[f64; 4]> = rows
        .iter()
        .filter(|r| r["axis"] == "lipschitz")
        .map(|r| ["lower", "linear", "interval", "product"].map(|name| r[&format!("lipschitz_{name}")].parse().unwrap()))
        .collect();
    assert_eq!(bounds.len(), 8);
    assert!(bounds.iter().all(|[lower, upper @ ..]| *lower > 0.0 && upper.iter().all(|upper| lower <= upper)), "{bounds:?}");
    for title in ["Lipschitz constants of the policies", "Lipschitz constants: means over runs"] {
        assert!(answer.out.contains(title), "{}", answer.out);
    }
    let worst: f64 = rows[0]["return_agent_mean_worst_decile"].parse().unwrap();
    assert!(worst <= rows[0]["return_agent_mean"].parse().unwrap());
    assert!(rows[0].contains_key("metric_collisions"));

    // Again: the same answer, and not a cell is played.
    let cells = place.read("sweeps/robustness/cells.csv");
    let again = place.succeed(&sweep(&runs, &["--jobs", "1"]));
    assert_eq!((again.out.as_str(), again.err.as_str()), (answer.out.as_str(), ""));
    assert_eq!(place.read("sweeps/robustness/cells.csv"), cells);
    // Stopped in the middle of a line: that cell and those behind it are played again, to the same numbers.
    let lines: Vec<&str> = std::str::from_utf8(&cells).unwrap().split_inclusive('\n').collect();
    let kept = format!("{}{}", lines[..8].concat(), &lines[8][..9]);
    place.write("sweeps/robustness/cells.csv", &kept);
    let resumed = place.succeed(&sweep(&runs, &["--jobs", "2"]));
    assert!(resumed.err.contains("finished=7"), "{}", resumed.err);
    assert_eq!(resumed.out, answer.out);
    assert_eq!(place.read("sweeps/robustness/results.csv"), table);
    // The same table as Parquet.
    place.succeed(&sweep(&runs, &["--format", "parquet"]));
    let file = std::fs::File::open(place.path("sweeps/robustness/results.parquet")).unwrap();
    let rows_read: Vec<BTreeMap<String, String>> = SerializedFileReader::new(file)
        .unwrap()
        .get_row_iter(None)
        .unwrap()
        .map(|row| row.unwrap().get_column_iter().map(|(name, field)| (name.clone(), in_csv(field))).collect())
        .collect();
    assert_eq!(rows_read, rows);
    assert!(place.path("sweeps/robustness/summary.parquet").is_file());
    // Another axis adds its cells; another number of episodes is another cell.
    let wider = place.succeed(&sweep(&runs[..2], &["--axis", "{ malicious_action = { count = 1 } }=1"]));
    assert!(wider.out.contains("malicious_action(count=1)") && wider.err.contains("finished=15"), "{}", wider.err);
    // From a burst agents can recover; its cells stand beside the others.
    let axis = "{ observation_noise = { schedule = { burst = { start = 1, length = 1 } } } }=3";
    let burst = place.succeed(&sweep(&runs[..2], &["--axis", axis]));
    assert!(burst.out.contains("recovery (steps)") && burst.err.contains("finished=15"), "{}{}", burst.out, burst.err);
    let summary = String::from_utf8(place.read("sweeps/robustness/summary.csv")).unwrap();
    assert!(summary.lines().next().unwrap().ends_with(",recovery_steps,recovery_steps_ci95,recovery_censored"), "{summary}");
    let steps: f64 = summary.lines().last().unwrap().rsplit(',').nth(2).unwrap().parse().unwrap();
    assert!((0.0..=5.0).contains(&steps), "{summary}");
    // A log without a column that a cell needs is written anew, with all its cells.
    let cells = String::from_utf8(place.read("sweeps/robustness/cells.csv")).unwrap();
    let cut = |line: &str| line.rsplitn(3, ',').last().unwrap().to_string() + "\n";
    place.write("sweeps/robustness/cells.csv", &cells.lines().map(cut).collect::<String>());
    let old = place.succeed(&sweep(&runs[..2], &[]));
    assert_eq!(old.err, "", "nothing is played again");
    assert_eq!(String::from_utf8(place.read("sweeps/robustness/cells.csv")).unwrap().lines().next(), cells.lines().next());
    // Another policy in the place of an earlier one is played anew.
    std::fs::remove_dir_all(place.path(&runs[0])).unwrap();
    let mut arguments = vec!["train", TINY, "name=plain", "seed=9", "regularizer=none", "--output", &runs[0]];
    arguments.extend(BASE);
    place.succeed(&arguments);
    let anew = place.succeed(&sweep(&runs[..1], &[]));
    assert!(anew.err.contains("finished=1 "), "{}", anew.err);
    // An attack needs no perturbation of the world.
    let attacked = place.succeed(&["sweep", &runs[0], "--axis", "attack_linf=0.1,2", "--episodes", "12"]);
    assert!(attacked.out.contains("attack_linf"), "{}", attacked.out);
    // Through its value only a policy whose critic sees what it sees.
    let message = place.fail(2, &["sweep", &runs[0], "--axis", "attack_value_l2=0.1"]);
    assert!(message.contains("through its value") && message.contains("local"), "{message}");
    let mut arguments = vec!["train", TINY, "name=local", "agent.ppo.critic=local", "--output", "runs/local"];
    arguments.extend(BASE);
    place.succeed(&arguments);
    let attacked =
        place.succeed(&["sweep", "runs/local", "--axis", "attack_value_linf=0.5", "--axis", "attack_value_l2=1", "--episodes", "12"]);
    assert!(attacked.out.contains("attack_value_linf") && attacked.out.contains("attack_value_l2"), "{}", attacked.out);
    // Action values tell what an attacked action is worth.
    let learner = "agent.q_learning={ mixer = \"sum\", replay = { learning_starts = 50 } }";
    let mut arguments = vec!["train", TINY, "name=values", "agent=q_learning", learner, "--output", "runs/values"];
    arguments.extend(BASE);
    place.succeed(&arguments);
    let attacked = place.succeed(&["sweep", "runs/values", "--axis", "attack_value_linf=0.5", "--episodes", "12"]);
    assert!(attacked.out.contains("attack_value_linf"), "{}", attacked.out);
    // A search plays every agent and shows the worst one.
    place.succeed(&["sweep", &runs[0], "--axis", "worst_agent=1", "--episodes", "12"]);
    let cells = String::from_utf8(place.read("sweeps/robustness/results.csv")).unwrap();
    assert_eq!(cells.matches(",worst_agent:agent_").count(), 2, "{cells}");
}

#[test]
fn the_numbers_are_those_of_an_evaluation_by_hand() {
    let (place, runs) = trained();
    let run = runs[0].as_str();
    // `eval` plays the episodes of the run's own seed of evaluations.
    let config: toml::Table = String::from_utf8(place.read(&format!("{run}/config.toml"))).unwrap().parse().unwrap();
    let seed = config["eval"]["seed"].to_string();
    place.succeed(&sweep(&runs[..1], &["--episode-seed", &seed]));
    place.succeed(&["eval", run, "--observation-noise", "2", "--episodes", "12"]);
    let value = |name: &str, column: &str, row: &dyn Fn(&BTreeMap<String, String>) -> bool| {
        let bytes = place.read(name);
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        let header = reader.headers().unwrap().clone();
        let rows = reader.records().map(|r| header.iter().map(str::to_string).zip(r.unwrap().iter().map(str::to_string)).collect());
        let found: Vec<BTreeMap<String, String>> = rows.filter(|r| row(r)).collect();
        found.last().unwrap()[column].parse::<f64>().unwrap()
    };
    for column in ["return_agent_mean", "return_team_sum", "metric_collisions"] {
        let swept = value("sweeps/robustness/cells.csv", column, &|r| r["axis"] == "observation_noise" && r["level"] == "2");
        let by_hand = value(&format!("{run}/eval.csv"), column, &|r| r["source"] == "eval" && r["level"] == "2");
        assert!((swept - by_hand).abs() < 1e-9, "{column}: {swept} {by_hand}");
    }
}

#[test]
fn opponents_are_played_by_the_run_that_is_named() {
    let place = Place::new();
    for seed in ["1", "2"] {
        let (run, seed) = (format!("runs/{seed}"), format!("seed={seed}"));
        let mut arguments = vec!["train", TINY, "env=simple_adversary", "regularizer=none", &seed, "--output", &run];
        arguments.extend(BASE);
        place.succeed(&arguments);
    }
    let noise = "{ observation_noise = { agents = [\"agent\"] } }=0.5";
    let returns = |run: &str, rest: &[&str]| {
        let arguments = ["sweep", run, "--axis", noise, "--episodes", "8"];
        place.succeed(&arguments.into_iter().chain(rest.iter().copied()).collect::<Vec<_>>());
        let bytes = place.read("sweeps/robustness/results.csv");
        std::fs::remove_dir_all(place.path("sweeps")).unwrap();
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        let header = reader.headers().unwrap().clone();
        let column = |name: &str| header.iter().position(|h| h == name);
        let values = ["return_agent", "return_adversary"].map(|name| column(name).unwrap());
        assert_eq!(column("opponents").is_some(), !rest.is_empty() && rest.contains(&"--opponent"));
        let played = reader.records().map(Result::unwrap).filter(|r| &r[column("axis").unwrap()] != "lipschitz");
        played.filter(|r| !r[0].starts_with("uniform")).map(|r| values.map(|v| r[v].parse::<f64>().unwrap())).collect::<Vec<_>>()
    };
    for mode in ["greedy", "sample"] {
        let alone = returns("runs/1", &["--mode", mode]);
        assert_eq!(alone.len(), 2);
        // Its own adversaries by name: nothing changes.
        assert_eq!(returns("runs/1", &["--mode", mode, "--opponent", "adversary=runs/1"]), alone);
        // Either of the two may be called the opponent; both draw alike.
        let crossed = returns("runs/1", &["--mode", mode, "--opponent", "adversary=runs/2"]);
        assert_ne!(crossed, alone);
        assert_eq!(returns("runs/2", &["--mode", mode, "--opponent", "agent=runs/1"]), crossed);
    }
    // In one directory: nothing is mixed up, and nothing is played again.
    let play = |rest: &[&str]| {
        let attacker = "{ learned_attacker = { agents = [\"agent\"], steps = 200 } }=1";
        let arguments = ["sweep", "runs/1", "--axis", noise, "--axis", attacker, "--episodes", "8"];
        let answer = place.succeed(&arguments.into_iter().chain(rest.iter().copied()).collect::<Vec<_>>());
        (answer.err, place.read("sweeps/robustness/results.csv"))
    };
    let against = ["--opponent", "adversary=runs/2", "--metric", "return_agent"];
    let (_, alone) = play(&[]);
    let (said, crossed) = play(&against);
    assert!(said.contains("attackers/") && !said.contains("counts the returns"), "an attacker learns against each: {said}");
    assert_ne!(alone, crossed);
    assert_eq!(play(&[]), (String::new(), alone));
    assert_eq!(play(&against), (String::new(), crossed));
    let message = place.fail(2, &["sweep", "runs/1", "--axis", noise, "--opponent", "wolf=runs/2"]);
    assert!(message.contains("no such agent or group") && message.contains("group adversary"), "{message}");
    let message = place.fail(2, &["sweep", "runs/1", "--axis", noise, "--opponent", "adversary"]);
    assert!(message.contains("names no run"), "{message}");
    let twice = ["--opponent", "adversary=runs/2", "--opponent", "adversary_0=runs/2"];
    let message = place.fail(2, &["sweep", "runs/1", "--axis", noise].into_iter().chain(twice).collect::<Vec<_>>());
    assert!(message.contains("adversary_0 twice"), "{message}");
    let all = ["--opponent", "adversary=runs/2", "--opponent", "agent=runs/2"];
    let message = place.fail(2, &["sweep", "runs/1", "--axis", noise].into_iter().chain(all).collect::<Vec<_>>());
    assert!(message.contains("leaves no agent"), "{message}");
    let message = place.fail(2, &["sweep", "runs/1", "--axis", noise, "--opponent", "adversary=runs/3"]);
    assert!(message.contains("runs/3"), "{message}");
}

/// A field of a Parquet file as CSV has it.
fn in_csv(field: &Field) -> String {
    match field {
        Field::Null => String::new(),
        Field::Str(text) => text.clone(),
        Field::ULong(number) => number.to_string(),
        Field::Double(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_attacker_learns_once_and_hurts() {
    let place = Place::new();
    let mut arguments = vec!["train", TINY, "env=bandit", "agent.ppo.critic=local", "regularizer=none", "--output", "runs/bandit"];
    arguments.extend(BASE);
    arguments.push("total_steps=20000");
    place.succeed(&arguments);
    let axis = "{ learned_attacker = { steps = 20000 } }=0.5,1";
    let attack = |rest: &[&str]| {
        let arguments: Vec<&str> = ["sweep", "runs/bandit", "--axis", axis].into_iter().chain(rest.iter().copied()).collect();
        place.succeed(&arguments)
    };
    let first = attack(&["--episodes", "40", "--jobs", "2"]);
    assert_eq!(first.err.matches("attackers/").count(), 2, "{}", first.err);
    let returns = |name: &str| -> Vec<(String, f64)> {
        let bytes = place.read(name);
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        let header = reader.headers().unwrap().clone();
        let place = |name: &str| header.iter().position(|h| h == name).unwrap();
        let (axis, level, value) = (place("axis"), place("level"), place("return_agent_mean"));
        reader
            .records()
            .map(Result::unwrap)
            .filter(|r| r[axis].starts_with("learned") || &r[axis] == "none")
            .map(|r| (r[level].to_string(), r[value].parse().unwrap()))
            .collect()
    };
    // The arms pay 0.1, 0.9 and 0.5: the attacker wants the first.
    let found = returns("sweeps/robustness/results.csv");
    let [.., (_, nominal), (_, half), (_, whole)] = found.as_slice() else { panic!("{found:?}") };
    assert!(nominal > half && half > whole && *whole < 2.0, "{found:?}");
    // Other episodes, the same attackers.
    let again = attack(&["--episodes", "20"]);
    assert!(!again.err.contains("attackers/"), "{}", again.err);
    // Everything anew, one after the other: the same numbers.
    let table = place.read("sweeps/robustness/results.csv");
    std::fs::remove_dir_all(place.path("sweeps")).unwrap();
    attack(&["--episodes", "20", "--jobs", "1"]);
    assert_eq!(place.read("sweeps/robustness/results.csv"), table);
}

#[test]
fn mistakes_are_named_and_lose_nothing() {
    let (place, runs) = trained();
    let run = runs[0].as_str();
    let refused = |arguments: &[&str], words: &[&str]| {
        let message = place.fail(2, arguments);
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    };
    refused(&["sweep", run, "--axis", "dynamics.viscosity=0.5"], &["`viscosity`", "damping"]);
    refused(&["sweep", run, "--axis", "communication_noise=0.5"], &["hear messages"]);
    refused(&["sweep", run, "--axis", "malicious_action=1.5"], &["at level 1.5", "between 0 and 1"]);
    refused(&["sweep", run, "--axis", "observation_noise=1", "--baseline", "plane"], &["`plane`", "plain"]);
    refused(&["sweep", run, "--axis", "learned_attacker=1.5"], &["at level 1.5", "between 0 and 1"]);
    refused(&["sweep", run, "--axis", "{ learned_attacker = { count = 9 } }=1"], &["`count`", "the 2 agents that can turn"]);
    refused(&["sweep", run, "--axis", "observation_noise=1", "--lipschitz-radius", "0.1,0"], &["lipschitz-radius", "above 0"]);
    refused(&["sweep", run, &runs[1]], &["one sweep at a time", "--axis"]);
    refused(&["sweep", run, "--episodes", "3"], &["--axis"]);
    let mut other = vec!["train", TINY, "name=other", "env.simple_spread.horizon=9", "--output", "runs/other"];
    other.extend(BASE);
    place.succeed(&other);
    refused(&["sweep", run, "runs/other", "--axis", "observation_noise=1"], &["runs/other", "different settings", "simple_spread"]);
    let mut bandit = vec!["train", TINY, "env=bandit", "agent.ppo.critic=local", "--output", "runs/bandit"];
    bandit.extend(BASE);
    place.succeed(&bandit);
    refused(&["sweep", run, "runs/bandit", "--axis", "observation_noise=1"], &["bandit", "simple_spread"]);
    assert!(!place.path("sweeps").exists(), "nothing is begun");

    place.succeed(&["sweep", run, "--axis", "observation_noise=1", "--episodes", "4"]);
    let cells = place.read("sweeps/robustness/cells.csv");
    refused(&["sweep", run, "--axis", "observation_noise=1", "--episodes", "4", "--metric", "return_agents"], &["`return_agents`"]);
    std::fs::remove_dir_all(place.path(&format!("{}/checkpoints", runs[1]))).unwrap();
    let message = place.fail(1, &["sweep", run, &runs[1], "--axis", "observation_noise=1"]);
    assert!(message.contains("no checkpoint in runs/plain-2"), "{message}");
    assert_eq!(place.read("sweeps/robustness/cells.csv"), cells);
    refused(&["sweep", run, "--axis", "observation_noise=1", "--output", "runs"], &["something else"]);
}
