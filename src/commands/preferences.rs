//! `steadfast preferences`.

use std::path::Path;

use steadfast_agents::Learner;
use steadfast_envs::SeedTree;
use steadfast_reward::dataset::{CollectedSegments, PreferenceWriter, Row};
use steadfast_reward::{NoiseConfig, RewardError, SegmentSpec};
use tracing::info;

use super::print;
use crate::cli::PreferencesArgs;
use crate::config::ExperimentConfig;
use crate::config::load::inline;
use crate::experiment::{build, reward};
use crate::failure::{Failure, Result};
use crate::run::checkpoint;
use crate::run::directory::RunDirectory;

/// Lets the policies of runs act, and writes labelled pairs of segments of what they did.
pub fn run(arguments: &PreferencesArgs) -> Result<()> {
    let noise: NoiseConfig = arguments.noise.as_deref().map_or_else(|| Ok(NoiseConfig::default()), |text| inline("--noise", text))?;
    noise.validate().map_err(|e| {
        let message = format!("in --noise, `{}`: {e}", noise.name());
        Failure::usage(message, "`steadfast list noise` shows the annotators, `steadfast config defaults` their settings")
    })?;
    let output = &arguments.output;
    if output.exists() {
        return Err(Failure::usage(format!("{} exists", output.display()), "choose another --output, or remove it first"));
    }
    if !output.extension().is_some_and(|extension| extension == "jsonl" || extension == "parquet") {
        return Err(Failure::usage(format!("cannot tell the format from the name {}", output.display()), "end it in .jsonl or .parquet"));
    }

    let cannot_write = |e: RewardError| Failure::run_with_help(e.to_string(), "choose another --output");
    // Before anything slow: nothing stays of it under its own name until all is written.
    let mut writer = PreferenceWriter::create(output).map_err(cannot_write)?;

    let mut runs = Vec::new();
    for path in &arguments.runs {
        let run = RunDirectory::open(path)?;
        let config = run.online_config()?;
        runs.push((run, config));
    }
    let first = &runs[0].1;
    if let Some((run, _)) = runs.iter().find(|(_, config)| config.env != first.env) {
        let message = format!("{} and {} act in different worlds", runs[0].0.path().display(), run.path().display());
        return Err(Failure::usage(message, "give runs with equal [env] tables"));
    }
    let spec = first.env.build().map_err(|e| Failure::caused("cannot build the world", e))?.spec().clone();
    SegmentSpec::of(&spec).map_err(|e| usage(&e, "give runs of another world"))?;
    let steps = arguments.segment_steps as usize;
    if steps > spec.horizon {
        let message = format!("--segment-steps is {steps}, but an episode of `{}` has {} steps", spec.name, spec.horizon);
        return Err(Failure::usage(message, "give at most that many"));
    }

    let policies: Vec<Acting<'_>> =
        runs.iter().map(|(run, config)| Acting::of(run, config, !arguments.trained_only)).collect::<Result<Vec<_>>>()?.concat();
    if policies.is_empty() {
        return Err(Failure::usage("the runs have no checkpoints yet", "leave --trained-only away, or wait for the first checkpoint"));
    }
    let n_segments = arguments.segments.unwrap_or(2 * arguments.pairs).max(2) as usize;
    let seeds = SeedTree::new(arguments.seed).child("preferences");
    let collection = build::thread_pool(first.threads)?.install(|| {
        let mut all = CollectedSegments::default();
        for (i, policy) in policies.iter().enumerate() {
            // As even as it goes: the first policies give one more.
            let n = n_segments / policies.len() + usize::from(i < n_segments % policies.len());
            if n > 0 {
                let mut learner = policy.learner(&spec)?;
                let name = policy.name(runs.len() > 1);
                info!(policy = name, segments = n, "collecting");
                merge(&mut all, reward::collect(policy.config, learner.as_mut(), n, steps, &name, seeds.index(i as u64))?);
            }
        }
        Ok(all)
    })?;
    let pairs = reward::pair_up(&collection.segments, arguments.pairs as usize, steps, "", seeds)?;
    let scale = reward::return_scale(&collection, spec.horizon);
    let (labelled, report) =
        noise.label(pairs, scale.as_ref(), seeds.child("noise")).map_err(|e| Failure::caused("the pairs cannot be labelled", e))?;
    labelled.into_iter().try_for_each(|preference| writer.write(&Row::Segments(preference))).map_err(cannot_write)?;
    writer.finish().map_err(cannot_write)?;
    print(&format!(
        "{}: {} pairs of {} segments from {} policies; {} wrong labels ({:.1} %), {} equal, {} skipped, {} without a truth\n",
        output.display(),
        report.pairs - report.dropped,
        collection.segments.len(),
        policies.len(),
        report.flipped,
        100.0 * report.rate,
        report.equal,
        report.dropped,
        report.ties_in_truth,
    ))
}

/// Adds the segments of another policy, and its episodes to the mean.
fn merge(all: &mut CollectedSegments, more: CollectedSegments) {
    all.return_mean = match (all.return_mean, more.return_mean) {
        (Some(a), Some(b)) => {
            let (n, m) = (all.n_episodes as f64, more.n_episodes as f64);
            Some((n * a + m * b) / (n + m))
        }
        (one, other) => one.or(other),
    };
    all.env_steps += more.env_steps;
    all.n_episodes += more.n_episodes;
    all.segments.extend(more.segments);
}

/// A policy of a run.
#[derive(Clone)]
struct Acting<'a> {
    run: &'a Path,
    config: &'a ExperimentConfig,
    /// The checkpoint; the untrained policy if absent.
    step: Option<u64>,
    checkpoints: std::path::PathBuf,
}

impl<'a> Acting<'a> {
    /// All policies that a run has.
    fn of(run: &'a RunDirectory, config: &'a ExperimentConfig, with_untrained: bool) -> Result<Vec<Self>> {
        let checkpoints = run.checkpoints();
        // The checkpoint of step 0 is the untrained policy as well.
        let trained = checkpoint::list(&checkpoints).into_iter().filter(|&step| step > 0).map(Some);
        let steps = with_untrained.then_some(None).into_iter().chain(trained);
        Ok(steps.map(|step| Self { run: run.path(), config, step, checkpoints: checkpoints.clone() }).collect())
    }

    fn name(&self, with_run: bool) -> String {
        let policy = self.step.map_or_else(|| "untrained".to_string(), |step| format!("step {step}"));
        let run = self.run.file_name().unwrap_or_default().to_string_lossy();
        if with_run { format!("{run} {policy}") } else { policy }
    }

    fn learner(&self, spec: &steadfast_envs::EnvSpec) -> Result<Box<dyn Learner>> {
        let mut learner =
            build::learner(self.config, &build::Ground::default(), spec).map_err(|e| Failure::caused("cannot build the learner", e))?;
        if let Some(step) = self.step {
            let path = self.checkpoints.join(checkpoint::name(step));
            let found = checkpoint::load(&path).map_err(|e| Failure::caused(format!("{} cannot be used", path.display()), e))?;
            let unfit = |e| Failure::caused(format!("{} does not fit the configuration", path.display()), e);
            learner.load_policy(&found.learner).map_err(unfit)?;
        }
        Ok(learner)
    }
}

fn usage(error: &RewardError, help: &str) -> Failure {
    Failure::usage(error.to_string(), help)
}
