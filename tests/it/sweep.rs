//! Sweeps: grids of tiny runs.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::command::{Place, TINY, names};

/// Two noises, three methods of which one ignores the noise, two seeds: ten cells.
fn file(changes: &str) -> String {
    format!(
        r#"
name = "grid"
base = "{TINY}"
seeds = [1, 2]
set = ["total_steps=600", "robustness=[]", "eval.every_steps=0", "log.tensorboard=false"{changes}]
metrics = ["return_agent_mean", "return_agent_mean_normalised"]

[[axis]]
name = "noise"
[axis.values]
strong = ["perturb.0.observation_noise.magnitude=0.5"]
none = ["perturb=[]"]

[[axis]]
name = "method"
[axis.values]
plain = ["regularizer=none", "agent.ppo.learning_rate=0.01"]
"rate 0.03" = ["agent.ppo.learning_rate=0.03"]
"rate 0.05" = ["agent.ppo.learning_rate=0.05"]
best = {{ set = ["perturb=[]", "agent.ppo.learning_rate=0.02"], ignores = ["noise"] }}

[[skip]]
noise = ["none"]
method = ["rate 0.05"]

[compare]
axis = "method"
to = "plain"

[select]
axis = "method"
by = "length"

[normalise]
axis = "method"
value = "best"

[[figure]]
name = "return"
title = "A grid"
x = "noise"
series = "method"

[[path]]
name = "path"
x = "step"
y = "return_agent_mean"
series = "noise"

[[interpolate]]
column = "return_agent_mean"
along = "step"
at = [384, 1e9]
"#
    )
}

/// The ten cells of [`file`], in the order of `results.csv`, without their seeds.
const CELLS: [(&str, &str); 6] =
    [("strong", "plain"), ("strong", "rate 0.03"), ("strong", "rate 0.05"), ("any", "best"), ("none", "plain"), ("none", "rate 0.03")];

type Line = BTreeMap<String, String>;

fn csv(place: &Place, name: &str) -> Vec<Line> {
    let bytes = place.read(name);
    let mut reader = csv::Reader::from_reader(bytes.as_slice());
    let header = reader.headers().unwrap().clone();
    reader.records().map(|r| header.iter().map(str::to_string).zip(r.unwrap().iter().map(str::to_string)).collect()).collect()
}

fn cell(noise: &str, method: &str, seed: &str) -> String {
    format!("sweeps/grid/cells/{noise}__{}__seed{seed}", method.replace(' ', "_"))
}

#[test]
fn a_grid_is_run_once_and_ends_in_one_table() {
    let place = Place::new();
    place.write("grid.toml", &file(""));
    let dry = place.succeed(&["sweep", "grid.toml", "--dry-run"]).out;
    assert!(dry.contains("any__best__seed2") && dry.contains("12 cells") && !dry.contains("none__rate_0.05"), "{dry}");
    assert!(!place.path("sweeps").exists());
    let answer = place.succeed(&["sweep", "grid.toml", "--jobs", "2"]);
    assert_eq!(names(&place.path("sweeps/grid/plots")), ["path.png", "path.svg", "return.png", "return.svg"]);

    let rows = csv(&place, "sweeps/grid/results.csv");
    let expected: Vec<(String, String, String)> =
        CELLS.iter().flat_map(|(n, m)| ["1", "2"].map(|s| ((*n).to_string(), (*m).to_string(), s.to_string()))).collect();
    let found: Vec<_> = rows.iter().map(|r| (r["noise"].clone(), r["method"].clone(), r["seed"].clone())).collect();
    assert_eq!(found, expected);
    for row in &rows {
        // Every number is that of the cell's own file, digit by digit.
        let evaluations = csv(&place, &format!("{}/eval.csv", cell(&row["noise"], &row["method"], &row["seed"])));
        let (first, last) = (&evaluations[0], evaluations.last().unwrap());
        assert_eq!((first["step"].as_str(), last["step"].as_str()), ("0", "768"));
        let number = |line: &Line, name: &str| line[name].parse::<f64>().unwrap();
        assert_eq!(number(row, "return_first"), number(first, "return_agent_mean"));
        for column in ["return_agent_mean", "return_team_sum", "length", "metric_collisions"] {
            assert_eq!(number(row, column), number(last, column), "{column}");
        }
        let between = 0.5 * (number(first, "return_agent_mean") + number(last, "return_agent_mean"));
        assert!((number(row, "return_agent_mean_at_step_384") - between).abs() < 1e-9, "half way between the two evaluations");
        assert!(!row.contains_key("return_agent_mean_at_step_1000000000"), "no run gets there");
        let config = String::from_utf8(place.read(&format!("{}/config.toml", cell(&row["noise"], &row["method"], &row["seed"])))).unwrap();
        assert!(config.contains(&format!("\nseed = {}\n", row["seed"])) && config.contains("\nthreads = 1\n"), "{config}");
        let rate = match row["method"].as_str() {
            "plain" => "0.01",
            "best" => "0.02",
            other => other.strip_prefix("rate ").unwrap(),
        };
        assert!(config.contains(&format!("learning_rate = {rate}\n")), "{config}");
        assert_eq!(config.contains("magnitude = 0.5"), row["noise"] == "strong");
    }
    // The reference becomes 1 on average.
    let best: Vec<f64> =
        rows.iter().filter(|r| r["method"] == "best").map(|r| r["return_agent_mean_normalised"].parse().unwrap()).collect();
    assert!((best.iter().sum::<f64>() / best.len() as f64 - 1.0).abs() < 1e-9, "{best:?}");

    // All lengths are equal, so the first setting of the family is chosen.
    let selected = csv(&place, "sweeps/grid/selected.csv");
    assert_eq!(selected.len(), 4);
    for row in &selected {
        assert_eq!((row["method"].as_str(), row["selected"].as_str()), ("rate selected", "rate 0.03"));
        let twin = rows.iter().find(|r| r["method"] == "rate 0.03" && r["noise"] == row["noise"] && r["seed"] == row["seed"]).unwrap();
        assert_eq!(row["return_agent_mean"], twin["return_agent_mean"]);
    }
    for text in ["rate selected", "minus plain", "return_agent_mean_normalised", "sweeps/grid/plots/return.png"] {
        assert!(answer.out.contains(text), "{text}: {}", answer.out);
    }
    let mean = |noise: &str, method: &str| {
        let of: Vec<f64> =
            rows.iter().filter(|r| r["noise"] == noise && r["method"] == method).map(|r| r["return_agent_mean"].parse().unwrap()).collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    let line = answer.out.lines().find(|l| l.starts_with("strong") && l.contains("rate 0.03")).unwrap();
    assert!(line.contains(&format!(" {:.3} ± ", mean("strong", "rate 0.03"))), "{line}");
    assert!(line.contains(&format!(" {:.3} ± ", mean("strong", "rate 0.03") - mean("strong", "plain"))), "{line}");
    let picture = String::from_utf8(place.read("sweeps/grid/plots/return.svg")).unwrap();
    for text in ["A grid", "strong", "rate selected", "mean over 2 seeds"] {
        assert!(picture.contains(text), "{text}");
    }

    let picture = String::from_utf8(place.read("sweeps/grid/plots/path.svg")).unwrap();
    for text in ["method = rate selected", "step", "return agent mean", "strong", "thin lines: seeds"] {
        assert!(picture.contains(text), "{text}");
    }

    // Nothing is trained a second time, from the file or from the directory, which is complete in itself.
    let manifest = place.read("sweeps/grid/cells/none__plain__seed1/manifest.json");
    let table = place.read("sweeps/grid/results.csv");
    for arguments in [&["sweep", "grid.toml"][..], &["sweep", "sweeps/grid"], &["sweep", "sweeps/grid", "--report-only"]] {
        std::fs::remove_dir_all(place.path("sweeps/grid/plots")).unwrap();
        let again = place.succeed(arguments);
        assert_eq!(again.out.replace("sweeps/grid", ""), answer.out.replace("sweeps/grid", ""));
        assert_eq!(again.err, "");
        assert_eq!(place.read("sweeps/grid/results.csv"), table);
        assert_eq!(names(&place.path("sweeps/grid/plots")).len(), 4);
    }
    assert_eq!(place.read("sweeps/grid/cells/none__plain__seed1/manifest.json"), manifest);

    // What another program made is not mixed in silently.
    let commit = rows[0]["commit"].clone();
    assert!(rows.iter().all(|r| r["commit"] == commit), "{rows:?}");
    let other = String::from_utf8(manifest.clone()).unwrap();
    let found: serde_json::Value = serde_json::from_str(&other).unwrap();
    assert!(found["commit"].as_str().unwrap().starts_with(&commit));
    let other = other.replace(&format!("\"commit\": {}", found["commit"]), "\"commit\": \"0123456789abcdef\"");
    place.write("sweeps/grid/cells/none__plain__seed1/manifest.json", &other);
    let mixed = place.succeed(&["sweep", "grid.toml"]);
    assert_eq!(mixed.out, answer.out);
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let maker = format!("commit 0123456789, {profile} build,");
    for text in ["of 12 finished cells not all were made by this program", "  11 by this program\n", &maker] {
        assert!(mixed.err.contains(text), "{text}: {}", mixed.err);
    }
    let of_other = |row: &Line| row["commit"] == "0123456789";
    assert_eq!(csv(&place, "sweeps/grid/results.csv").iter().filter(|r| of_other(r)).count(), 1);
    place.write("sweeps/grid/cells/none__plain__seed1/manifest.json", &String::from_utf8(manifest.clone()).unwrap());
    assert_eq!(place.succeed(&["sweep", "grid.toml"]).err, "");

    // The cells are ordinary runs.
    place.succeed(&["eval", "sweeps/grid/cells/none__plain__seed1", "--episodes", "2"]);
    assert_eq!(place.succeed(&["sweep", "grid.toml"]).out, answer.out, "an evaluation by hand changes nothing");

    // Other settings are not mixed in.
    place.write("grid.toml", &file(", \"slots=8\""));
    insta::assert_snapshot!("changed", place.fail(2, &["sweep", "grid.toml"]));
    assert_eq!(place.read("sweeps/grid/results.csv"), table);
    // Fewer labels or seeds leave the other cells alone.
    place.write("grid.toml", &file("").replace("seeds = [1, 2]", "seeds = [2]"));
    let fewer = place.succeed(&["sweep", "grid.toml"]);
    assert!(fewer.err.contains("any__best__seed1"), "{}", fewer.err);
    assert_eq!(csv(&place, "sweeps/grid/results.csv").len(), 6);
}

#[test]
fn a_killed_sweep_goes_on_to_the_same_bytes() {
    let place = Place::new();
    place.write("grid.toml", &file(""));
    place.succeed(&["sweep", "grid.toml", "--jobs", "1", "--output", "whole"]);
    let mut kills = 0;
    let mut seen: BTreeMap<String, std::time::SystemTime> = BTreeMap::new();
    loop {
        let mut child = place.command(&["sweep", "grid.toml", "--jobs", "2"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let finished = || summaries(&place).len();
        let goal = seen.len() + 3;
        let begin = Instant::now();
        while kills < 3 && finished() < goal && begin.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        if kills < 3 {
            // SIGKILL: the sweep gets no chance to stop its cells.
            child.kill().unwrap();
            kills += 1;
        }
        let output = child.wait_with_output().unwrap();
        let now = summaries(&place);
        for (cell, time) in &seen {
            assert_eq!(now.get(cell), Some(time), "{cell} was repeated");
        }
        seen = now;
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), None, "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(kills >= 2);
    for file in ["results.csv", "selected.csv", "table.txt", "sweep.toml", "base.toml", "plots/return.svg"] {
        assert!(place.read(&format!("whole/{file}")) == place.read(&format!("sweeps/grid/{file}")), "{file}");
    }
    for cell in names(&place.path("whole/cells")) {
        crate::command::assert_equal_runs(&place, &format!("whole/cells/{cell}"), &format!("sweeps/grid/cells/{cell}"));
    }
}

/// When which cell was finished.
fn summaries(place: &Place) -> BTreeMap<String, std::time::SystemTime> {
    let cells = place.path("sweeps/grid/cells");
    if !cells.exists() {
        return BTreeMap::new();
    }
    let time = |name: String| {
        let modified = std::fs::metadata(cells.join(&name).join("summary.json")).ok()?.modified().ok()?;
        Some((name, modified))
    };
    names(&cells).into_iter().filter_map(time).collect()
}

#[test]
fn cells_do_not_outlive_the_sweep() {
    let place = Place::new();
    place.write("grid.toml", &file("").replace("total_steps=600", "total_steps=100000000"));
    let mut child = place.command(&["sweep", "grid.toml", "--jobs", "1"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let cell = "sweeps/grid/cells/strong__plain__seed1";
    let begin = Instant::now();
    while !place.path(&format!("{cell}/checkpoints/step-000000000000")).exists() {
        if begin.elapsed() > Duration::from_secs(120) || child.try_wait().unwrap().is_some() {
            child.kill().unwrap();
            panic!("the cell did not begin: {:?}", child.wait().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // A second sweep in the same directory is refused.
    assert!(place.fail(1, &["sweep", "grid.toml"]).contains("another process is writing to sweeps/grid"));
    child.kill().unwrap();
    child.wait().unwrap();
    // The cell gives its lock back when it notices.
    let lock = std::fs::File::open(place.path(&format!("{cell}/run.lock"))).unwrap();
    let begin = Instant::now();
    while lock.try_lock().is_err() {
        assert!(begin.elapsed() < Duration::from_secs(60), "the cell still runs");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_directory_is_as_good_as_the_file() {
    let place = Place::new();
    // No world is chosen here, and no steps without learning a reward are refused unless a sweep sets them.
    let base = "# word for word\nname = \"bare\"\nslots = 2\ntotal_steps = 0\n[agent.ppo]\nrollout_steps = 32\npolicy_hidden = [4]\n";
    place.write("base.toml", base);
    place.fail(2, &["config", "check", "base.toml"]);
    place.write(
        "bare.toml",
        r#"
        name = "bare"
        base = "base.toml"
        seeds = [1]
        set = ["total_steps=64", "env.pendulum.horizon=8", "eval.episodes=2", "log.tensorboard=false", "robustness=[]"]
        axis = [{ name = "epochs", values = { one = ["agent.ppo.epochs=1"], two = ["agent.ppo.epochs=2"] } }]
        "#,
    );
    let first = place.succeed(&["sweep", "bare.toml", "--jobs", "2"]);
    assert_eq!(place.read("sweeps/bare/base.toml"), base.as_bytes());
    let config = place.read("sweeps/bare/cells/two__seed1/config.toml");
    std::fs::rename(place.path("sweeps/bare"), place.path("moved")).unwrap();
    std::fs::remove_file(place.path("base.toml")).unwrap();
    std::fs::remove_dir_all(place.path("moved/cells/two__seed1")).unwrap();
    let again = place.succeed(&["sweep", "moved", "--jobs", "1"]);
    assert_eq!(again.out.replace("moved", "sweeps/bare"), first.out);
    assert_eq!(place.read("moved/cells/two__seed1/config.toml"), config);
    // A sweep whose base is gone leaves nothing behind.
    place.fail(2, &["sweep", "bare.toml"]);
    assert!(!place.path("sweeps/bare").exists());
}

#[test]
fn jobs_are_of_no_use_without_training() {
    let place = Place::new();
    for other in ["--report-only", "--dry-run"] {
        let text = place.fail(2, &["sweep", "pendulum-learning-rate", "--jobs", "2", other]);
        assert!(text.contains(&format!("'--jobs <N>' cannot be used with '{other}'")), "{text}");
    }
}

#[test]
fn a_failed_cell_is_reported_and_the_others_go_on() {
    let place = Place::new();
    let text = r#"
        name = "failing"
        base = "TINY"
        seeds = [1]
        set = ["total_steps=600", "robustness=[]", "log.tensorboard=false"]
        metrics = ["return_agent_mean", "metric_of_huge"]
        [[axis]]
        name = "rate"
        values = { huge = ["agent.ppo.learning_rate=1e38"], small = ["agent.ppo.learning_rate=1e-4"], tiny = ["agent.ppo.learning_rate=1e-5"] }
    "#;
    place.write("failing.toml", &text.replace("TINY", TINY));
    let text = place.fail(1, &["sweep", "failing.toml", "--jobs", "1"]);
    assert!(text.contains("1 of 3 cells failed") && text.contains("huge__seed1: training stopped in update"), "{text}");
    assert!(text.contains("cells/huge__seed1/train.log"), "{text}");
    let labels: Vec<String> = csv(&place, "sweeps/failing/results.csv").iter().map(|r| r["rate"].clone()).collect();
    assert_eq!(labels, ["small", "tiny"]);
    let table = String::from_utf8(place.read("sweeps/failing/table.txt")).unwrap();
    assert!(table.contains("small") && !table.contains("huge"), "{table}");
    // The cell that failed may have the column.
    assert!(text.contains("not in the finished cells so far: metric_of_huge"), "{text}");
    assert!(text.contains("which are left out: metric_of_huge") && !table.contains("metric_of_huge"), "{text}");
    // The cell alone is tried again; without training there is a table of the others.
    let again = place.fail(1, &["sweep", "failing.toml"]);
    assert!(again.contains("finished=2") && again.contains("1 of 3 cells failed"), "{again}");
    let report = place.succeed(&["sweep", "failing.toml", "--report-only"]);
    assert!(report.err.contains("2 of 3 cells are finished"), "{}", report.err);
    assert!(report.err.contains("which are left out: metric_of_huge"), "{}", report.err);
    assert_eq!(names(&place.path("sweeps/failing/plots")), ["outcome.png", "outcome.svg"]);
    // A report that cannot be written does not hide the cells that failed.
    std::fs::remove_dir_all(place.path("sweeps/failing/plots")).unwrap();
    place.write("sweeps/failing/plots", "");
    let both = place.fail(1, &["sweep", "failing.toml"]);
    assert!(both.contains("1 of 3 cells failed") && both.contains("huge__seed1: training stopped in update"), "{both}");
    assert!(both.contains("there is no report of the finished cells") && both.contains("cannot create sweeps/failing/plots"), "{both}");
}

#[test]
fn mistakes_in_a_sweep() {
    let base = |rest: &str| format!("name = \"s\"\nbase = \"cartpole-ppo\"\nseeds = [1, 2]\n{rest}");
    let axis = |values: &str| base(&format!("[[axis]]\nname = \"noise\"\n[axis.values]\n{values}\n"));
    let two = |rest: &str| axis(&format!("none = []\n\"r 1\" = [\"slots=1\"]\n\"r 2\" = [\"slots=2\"]\n{rest}"));
    for (name, text) in [
        ("unknown_key", base("colour = 1\n")),
        ("missing_axis", "name = \"s\"\nbase = \"cartpole-ppo\"\nseeds = [1]\n".to_string()),
        ("empty_seeds", axis("a = []").replace("[1, 2]", "[]")),
        ("missing_base", axis("a = []").replace("cartpole-ppo", "cartpole-pop")),
        ("broken_change", axis("none = []\nstrong = [\"slots=1\", \"agent.ppo.clip_rnage=0.1\"]")),
        ("out_of_range_change", axis("strong = [\"agent.ppo.discount=7\"]")),
        ("wrong_set", axis("a = []").replace("seeds = [1, 2]\n", "seeds = [1, 2]\nset = [\"slots=1\", \"slots=many\"]\n")),
        ("seed_in_change", axis("strong = [\"seed=7\"]")),
        ("no_equals_sign", axis("strong = [\"seed\"]")),
        ("not_a_list", axis("strong = \"slots=1\"")),
        ("unquoted_label", axis("irrational-1/3 = [\"slots=1\"]")),
        ("similar_labels", axis("\"a 1\" = []\n\"a/1\" = []")),
        ("label_any", axis("any = []")),
        ("axis_name", axis("a = []").replace("\"noise\"", "\"reward_noise\"")),
        ("ignores_unknown", axis("a = { ignores = [\"nose\"] }")),
        ("compare_label", two("[compare]\naxis = \"noise\"\nto = \"nane\"")),
        ("select_without_family", axis("a = []\nb = []\n[select]\naxis = \"noise\"\nby = \"length\"")),
        ("figure_axis", two("[[figure]]\nname = \"f\"\nx = \"nois\"")),
        ("skip_label", two("[[skip]]\nnoise = [\"r 3\"]")),
    ] {
        let place = Place::new();
        place.write("my.toml", &text);
        insta::assert_snapshot!(name, place.fail(2, &["sweep", "my.toml"]));
        assert!(!place.path("sweeps").exists(), "{name} left a directory");
    }
    let place = Place::new();
    insta::assert_snapshot!("missing_sweep", place.fail(2, &["sweep", "pendulum-learning-rat"]));
    insta::assert_snapshot!("recipe_of_an_experiment", place.fail(2, &["sweep", "cartpole-ppo"]));
    insta::assert_snapshot!("sweep_as_an_experiment", place.fail(2, &["train", "pendulum-learning-rate"]));
    insta::assert_snapshot!("report_of_nothing", place.fail(2, &["sweep", "pendulum-learning-rate", "--report-only"]));
    std::fs::create_dir_all(place.path("sweeps/pendulum-learning-rate")).unwrap();
    place.write("sweeps/pendulum-learning-rate/notes.txt", "");
    insta::assert_snapshot!("foreign_directory", place.fail(2, &["sweep", "pendulum-learning-rate"]));
}

#[test]
fn a_column_that_does_not_exist_is_shown_in_the_file() {
    let place = Place::new();
    let text = file("").replace("by = \"length\"", "by = \"lenght\"").replace("seeds = [1, 2]", "seeds = [1]");
    place.write("grid.toml", &text);
    let first = place.fail(2, &["sweep", "grid.toml"]);
    assert!(first.contains("not in the finished cells so far: lenght\n") && first.contains("did you mean `length`?"), "{first}");
    assert_eq!(csv(&place, "sweeps/grid/results.csv").len(), 6);
    insta::assert_snapshot!("unknown_column", place.fail(2, &["sweep", "grid.toml", "--report-only"]).replace(TINY, "TINY"));
}

#[test]
fn recipes_of_sweeps_are_listed_shown_and_copied() {
    let place = Place::new();
    let list = place.succeed(&["recipe", "list"]).out;
    let sweeps = list.split("\nSweeps, for `steadfast sweep`:\n").nth(1).unwrap();
    assert!(sweeps.lines().any(|line| line.starts_with("pendulum-learning-rate  ")), "{list}");
    let shown = place.succeed(&["recipe", "show", "pendulum-learning-rate"]).out;
    assert_eq!(place.succeed(&["recipe", "copy", "pendulum-learning-rate", "mine.toml"]).out, "mine.toml\n");
    assert_eq!(place.read("mine.toml"), shown.as_bytes());
    let dry = |name: &str| place.succeed(&["sweep", name, "--dry-run"]).out;
    assert_eq!(dry("mine.toml"), dry("pendulum-learning-rate"));
}
