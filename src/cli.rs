//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Robust reinforcement learning: train, attack, evaluate and plot from one binary.
#[derive(Debug, Parser)]
#[command(name = "steadfast", version, about, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; without a command the default recipe is trained.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const AFTER_HELP: &str = "\
Examples:
  steadfast                                     train the default recipe (spread-ernie)
  steadfast train cartpole-ppo seed=3           train another recipe with another seed
  steadfast eval runs/spread-ernie-seed0 --observation-noise 0.2
  steadfast plot runs/* -o curves.svg

Exit codes: 0 done, 1 the run failed, 2 wrong arguments or configuration.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a policy and measure how robust it is
    Train(TrainArgs),
    /// Evaluate the policy of a run, with or without perturbations
    Eval(EvalArgs),
    /// Train and evaluate a grid of experiments, or evaluate trained runs under perturbations of many strengths
    Sweep(SweepArgs),
    /// Train one cell of a sweep, for as long as the sweep runs
    #[command(name = crate::experiment::sweep::execute::CELL_COMMAND, hide = true)]
    SweepCell {
        /// Run directory
        run: PathBuf,
    },
    /// Draw learning curves or robustness curves of runs
    Plot(PlotArgs),
    /// Write labelled pairs of trajectory segments of runs, with wrong labels if asked for
    Preferences(PreferencesArgs),
    /// Rank the pairs of a preference file by how likely their label is wrong
    Audit(AuditArgs),
    /// Let a language model write
    #[cfg(feature = "llm")]
    Generate(GenerateArgs),
    /// Write the language model of a run into a folder that Hugging Face's transformers loads
    #[cfg(feature = "llm")]
    Export(ExportArgs),
    /// Show examples as a language model sees them: tokens, mask, template
    #[cfg(feature = "llm")]
    ShowBatch(ShowBatchArgs),
    /// List, show or copy the recipes that come with the program
    #[command(subcommand)]
    Recipe(RecipeCommand),
    /// Print all defaults, check a configuration, or show it resolved
    #[command(subcommand)]
    Config(ConfigCommand),
    /// List what a configuration can name
    List(ListArgs),
}

/// Arguments of `train`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  steadfast train                                        the default recipe
  steadfast train cartpole-ppo                           a recipe by name
  steadfast train my.toml seed=7 agent.ppo.learning_rate=1e-3
  steadfast train spread-mappo regularizer=lipschitz name=spread-mappo-ernie
  steadfast train spread-ernie --seeds 0,1,2,3,4         five runs, one after the other
  steadfast train --resume runs/spread-ernie-seed0       continue a run that was stopped

A run is written to runs/NAME-seedSEED. A killed run resumes to the same numbers as an uninterrupted one.
`steadfast config defaults` shows every setting; `steadfast recipe list` shows the recipes.")]
pub struct TrainArgs {
    /// Recipe or TOML file, then changes as key.path=value
    #[arg(value_name = "RECIPE|FILE|KEY=VALUE")]
    pub arguments: Vec<String>,
    /// Continue this run from its newest complete checkpoint
    #[arg(long, value_name = "RUN", conflicts_with_all = ["arguments", "output", "seeds"])]
    pub resume: Option<PathBuf>,
    /// Directory of the new run; must not exist or be empty
    #[arg(long, value_name = "DIR", conflicts_with = "seeds")]
    pub output: Option<PathBuf>,
    /// Train once per seed
    #[arg(long, value_name = "SEED,...", value_delimiter = ',', value_parser = seed)]
    pub seeds: Vec<u64>,
}

/// One of several seeds.
fn seed(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| "seeds are comma-separated numbers, as in 1,2,3".to_string())
}

/// File format of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    /// Comma-separated values
    Csv,
    /// Apache Parquet, compressed with Snappy
    Parquet,
}

impl TableFormat {
    /// How names of such files end.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }
}

/// A radius of a ball.
fn radius(text: &str) -> Result<f64, String> {
    let value = text.trim().parse::<f64>().ok().filter(|radius| radius.is_finite() && *radius > 0.0);
    value.ok_or_else(|| "radii are comma-separated numbers above 0, as in 0.01,0.1".to_string())
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steadfast eval runs/spread-ernie-seed0
  steadfast eval RUN --observation-noise 0.2 --noise-law uniform
  steadfast eval RUN --malicious-action 0.3 --agents agent_0
  steadfast eval RUN --perturb '{ observation_noise = { magnitude = 0.2, scale = [1, 1, 0, 0] } }'

The result is printed and appended to eval.csv of the run.")]
pub struct EvalArgs {
    /// Run directory
    pub run: PathBuf,
    /// Episodes; as many as the run's configuration says if not given
    #[arg(long, value_name = "N")]
    pub episodes: Option<usize>,
    /// Add noise of this magnitude to what agents observe
    #[arg(long, value_name = "MAGNITUDE", allow_negative_numbers = true)]
    pub observation_noise: Option<f64>,
    /// Law of that noise
    #[arg(long, value_enum, value_name = "LAW", requires = "observation_noise")]
    pub noise_law: Option<Law>,
    /// Replace actions by random ones with this probability
    #[arg(long, value_name = "PROBABILITY", allow_negative_numbers = true)]
    pub malicious_action: Option<f64>,
    /// Names or groups of the agents that are perturbed; all if not given
    #[arg(long, value_name = "AGENT,...", value_delimiter = ',')]
    pub agents: Vec<String>,
    /// A perturbation as an inline TOML table; may be repeated
    #[arg(long, value_name = "TABLE")]
    pub perturb: Vec<String>,
    /// How actions are chosen; as the run's configuration says if not given
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Option<Mode>,
    /// Checkpoint to evaluate, by its step; the newest complete one if not given
    #[arg(long, value_name = "STEP")]
    pub checkpoint: Option<u64>,
}

/// Laws of observation noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Law {
    /// Normal
    Gaussian,
    /// Uniform between -magnitude and magnitude
    Uniform,
    /// -magnitude or magnitude
    Sign,
}

/// Ways of choosing actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Most likely action
    Greedy,
    /// Draw from the policy
    Sample,
}

/// Arguments of `sweep`.
#[derive(Debug, Args)]
#[command(after_help = SWEEP_HELP)]
pub struct SweepArgs {
    /// Recipe of a sweep, its TOML file, or the directory of an earlier sweep; with --axis the directories of trained runs; with
    /// --report-only also results.csv of such evaluations
    #[arg(required = true, value_name = "RECIPE|FILE|DIR|RUN")]
    pub sweep: Vec<String>,
    /// Evaluate runs under this perturbation at these strengths; may be repeated
    #[arg(long, value_name = "NAME=LEVEL,...")]
    pub axis: Vec<String>,
    /// Episodes per run, perturbation and level
    #[arg(long, value_name = "N", default_value_t = 100, requires = "axis", conflicts_with_all = ["report_only", "dry_run"])]
    pub episodes: usize,
    /// Seed of the episodes, which are the same for all runs and levels
    #[arg(long, value_name = "SEED", default_value_t = 1000, requires = "axis", conflicts_with_all = ["report_only", "dry_run"])]
    pub episode_seed: u64,
    /// How actions are chosen; as the runs' configurations say if not given
    #[arg(long, value_enum, value_name = "MODE", requires = "axis", conflicts_with_all = ["report_only", "dry_run"])]
    pub mode: Option<Mode>,
    /// Agents (a name or a group) that another run's policy plays, the same one against all; may be repeated
    #[arg(long, value_name = "AGENTS=RUN", requires = "axis", conflicts_with_all = ["report_only", "dry_run"])]
    pub opponent: Vec<String>,
    /// Name of the runs that the others are compared with; those without regulariser if not given, of tables the first
    #[arg(long, value_name = "NAME")]
    pub baseline: Option<String>,
    /// Radii of the balls of observations over which the policies' Lipschitz constants are bounded
    #[arg(long, value_name = "RADIUS,...", value_delimiter = ',', default_value = "0.01,0.1", value_parser = radius, requires = "axis",
        conflicts_with_all = ["report_only", "dry_run"])]
    pub lipschitz_radius: Vec<f64>,
    /// return_agent_mean, return_team_sum, return_GROUP of a group of agents, or metric_NAME of the world; return_agent_mean if not given
    #[arg(long, value_name = "NAME")]
    pub metric: Option<String>,
    /// File format of the two tables for other programs, results and summary; csv if not given
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<TableFormat>,
    /// Directory of the sweep; sweeps/NAME if not given, sweeps/robustness with --axis, sweeps/report for tables
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Cells to train or evaluate at once; one per core if not given
    #[arg(long, value_name = "N", conflicts_with_all = ["report_only", "dry_run"], value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Train nothing: write the table and the pictures of the cells that are finished, or of tables
    #[arg(long, conflicts_with = "axis")]
    pub report_only: bool,
    /// Train nothing: check all cells and list them
    #[arg(long, conflicts_with_all = ["report_only", "axis"])]
    pub dry_run: bool,
}

const SWEEP_HELP: &str = r#"A sweep file:
  name = "losses"
  base = "pendulum-r3m"              # a recipe, or an experiment file beside this one
  seeds = [1, 2, 3]
  set = ["total_steps=50000"]        # changes for every cell
  metrics = ["return_agent_mean"]    # columns of results.csv for the table and the pictures

  [[axis]]
  name = "noise"
  [axis.values]                      # label = changes
  none = ["reward.noise=none"]
  "uniform 30 %" = ["reward.noise=uniform", "reward.noise.uniform.rate=0.3"]

  [[axis]]
  name = "method"
  [axis.values]
  cross_entropy = ["reward.loss=cross_entropy"]
  "r3m 0.1" = ["reward.loss=r3m", "reward.loss.r3m.lambda=0.1"]
  "r3m 0.3" = ["reward.loss=r3m", "reward.loss.r3m.lambda=0.3"]
  # Run once for all labels of another axis:
  true_reward = { set = ["reward=none"], ignores = ["noise"] }

  # All that follows may be left out.
  [[skip]]                           # leaves out combinations
  noise = ["none"]
  method = ["r3m 0.1"]
  [compare]                          # differences, paired by seed
  axis = "method"
  to = "cross_entropy"
  [select]                           # adds `r3m selected`, the best setting of each seed, of labels
  axis = "method"                    # that agree up to the first space; chosen by a column that is
  by = "reward_validation_accuracy"  # itself reported, it would look better than it is
  best = "highest"                   # or "lowest"
  [normalise]                        # adds return_agent_mean_normalised: 0 for return_first,
  axis = "method"                    # the return before training, 1 for these cells
  value = "true_reward"
  [[figure]]                         # one panel per metric and label of further axes
  name = "losses"
  x = "noise"
  series = "method"
  [[path]]                           # one column of eval.csv against another during training, a
  name = "path"                      # line through the means over seeds at each evaluation
  x = "step"                         # or such as metric_kl
  y = "length"
  series = "method"
  [[interpolate]]                    # adds return_agent_mean_at_step_20000 and so on: its value
  column = "return_agent_mean"       # where another column of eval.csv first is 20000, by linear
  along = "step"                     # interpolation between evaluations; blank where it never is
  at = [20000, 40000]

In changes {seed} is the cell's seed and {AXIS} its label as directories are named with it, so that
a sweep can use what another one trained: sweeps/OTHER/cells/{noise}__{method}__seed{seed}. Write
{{name}} for the text {name}.

Every cell is an ordinary run in sweeps/NAME/cells. The same command goes on with a sweep that was
stopped: finished cells are kept, others continue from their checkpoints. A cell that fails does not
stop the others; it is tried again next time.

With --axis trained runs are evaluated instead, on the same episodes at every level: tables with
intervals and pictures per perturbation, and one HTML page. Finished cells are never played again.
An axis is a perturbation (see `steadfast list perturbations`), dynamics.CONSTANT, worst_agent
(random actions of the one agent, found per run and level, whose malice hurts most), attack_linf or
attack_l2 (observations changed by projected gradient ascent on the policy), attack_value_linf or
attack_value_l2 (observations that the policy's critic values least or, where action values are
learned, at which it does what has the least value), learned_attacker (an agent that is turned by an
attacker trained against the others; the level is the probability that it obeys at a step; trained
attackers are kept), or an inline table.

With --report-only and results.csv of such evaluations, from one machine or several, their cells are
put together and reported; no policy is needed for that.

With --opponent the agents that it names follow another run's policy, as --mode or that run says.
Perturbations of observations and actions reach them too unless `agents` says otherwise:
--axis '{ observation_noise = { agents = ["adversary"] } }=0.5'.

Examples:
  steadfast sweep runs/spread-* --axis observation_noise=0.1,0.2,0.4 --axis dynamics.mass=-0.5,1
  steadfast sweep runs/spread-* --axis '{ malicious_action = { count = 1 } }=0.25,0.5,1'
  steadfast sweep runs/spread-* --axis '{ learned_attacker = { count = 1, steps = 200000 } }=0.5,1'
  steadfast sweep runs/tag-* --opponent agent=RUN --metric return_adversary --axis worst_agent=1
  steadfast sweep pendulum-learning-rate --dry-run
  steadfast sweep my-sweep.toml --jobs 4
  steadfast sweep sweeps/losses --report-only
  steadfast sweep here/results.csv there/results.csv --report-only --baseline plain"#;

/// Arguments of `plot`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steadfast plot runs/spread-ernie-seed0                      both pictures into runs/spread-ernie-seed0/plots
  steadfast plot runs/spread-* -o curves.png                  learning curves, averaged over seeds
  steadfast plot runs/spread-* --kind robustness -o noise.svg
  steadfast plot RUN --metric train/policy_loss -o loss.svg")]
pub struct PlotArgs {
    /// Run directories; runs that differ in their seeds only are averaged
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Picture to write, .svg or .png; into plots/ of the first run if not given
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What to draw; everything there is data for if neither this nor --output is given, else the learning curve
    #[arg(long, value_enum, value_name = "KIND")]
    pub kind: Option<PlotKind>,
    /// return_agent_mean, return_team_sum, length, terminated, a column metric_NAME of eval.csv, or a name from metrics.jsonl
    #[arg(long, default_value = crate::run::results::DEFAULT_METRIC, value_name = "NAME")]
    pub metric: String,
}

/// Arguments of `preferences`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steadfast preferences runs/pendulum-ppo-seed0 -o pairs.jsonl
  steadfast preferences runs/pendulum-* -o pairs.parquet --pairs 4000 --segment-steps 50
  steadfast preferences RUN -o wrong.jsonl --noise '{ irrational = { exponent = 0.33 } }'
  steadfast audit wrong.jsonl
  steadfast train pendulum-r3m reward.file=wrong.jsonl reward.noise=none reward.stages=1

Segments come in equal parts from the untrained policy and from every checkpoint that a run has kept; each
says which policy it is from. `steadfast list noise` shows the annotators.")]
pub struct PreferencesArgs {
    /// Run directories of one environment
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// File to write, .jsonl or .parquet; an existing file is not overwritten
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Labelled pairs
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub pairs: u64,
    /// Segments that are paired at random; twice as many as pairs if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=20_000_000))]
    pub segments: Option<u64>,
    /// Steps per segment
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub segment_steps: u64,
    /// Who labels, as an inline TOML table; an annotator without errors if not given
    #[arg(long, value_name = "TABLE")]
    pub noise: Option<String>,
    /// Seed of segments, pairs and labels
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Leave the untrained policy out
    #[arg(long)]
    pub trained_only: bool,
}

/// Arguments of `audit`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steadfast audit pairs.jsonl                          into pairs-audit/
  steadfast audit pairs.parquet -o suspects --skip-bad-rows
  steadfast audit pairs.jsonl --lambda 0.9 --folds 10 --force
  steadfast audit pairs.jsonl --model models/qwen
  steadfast audit pairs.jsonl --loss '{ label_smoothing = { epsilon = 0.2 } }'

FILE is JSONL or Parquet with `chosen`, `rejected` and optionally `prompt` (texts or conversations),
or with pairs of trajectory segments as `steadfast preferences` writes them.

A pair is judged by models that have not seen its label: linear in words, marks and length for
texts, small networks for segments. The lower its margin, the likelier the chosen one should have
been rejected. If the file says which labels are wrong (`flipped`), the audit measures how many of
them it finds; no model sees that column.

Into DIR go audit.csv (all labelled pairs, the most suspicious first), summary.json, and a picture:
precision and recall where the truth is known, else the margins. `steadfast list losses` shows the
losses.")]
pub struct AuditArgs {
    /// Preference file, JSONL or Parquet
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Directory to write; beside FILE and called NAME-audit if not given. Must not exist or be empty
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Write into a directory that is not empty
    #[arg(long)]
    pub force: bool,
    /// Leave out rows that cannot be used, instead of stopping at the first
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Judge texts by transformers that start from the language model in this folder or run, not by words and marks
    #[cfg(feature = "llm")]
    #[arg(long, value_name = "FOLDER|RUN")]
    pub model: Option<PathBuf>,
    /// Most tokens of a text with its prompt, with --model; what is longer loses its end, which is counted
    #[cfg(feature = "llm")]
    #[arg(long, value_name = "N", requires = "model", value_parser = clap::value_parser!(u32).range(2..=131_072))]
    pub max_tokens: Option<u32>,
    /// Loss of the models: a name, or an inline TOML table with its settings
    #[arg(long, value_name = "NAME|TABLE", default_value = "r3m")]
    pub loss: String,
    /// R3M's price of explaining a label away; 0.75 if not given
    #[arg(long, value_name = "LAMBDA", allow_negative_numbers = true)]
    pub lambda: Option<f64>,
    /// Parts of the pairs, each judged by a model that learns from the others; with 1, a model judges what it has seen
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub folds: u16,
    /// Most passes of learning; 3 for texts and 10 for segments if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub epochs: Option<u32>,
    /// Seed of the folds and of the networks
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Worker threads; one per core if not given. The result does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// Arguments of `generate`.
#[cfg(feature = "llm")]
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steadfast generate runs/topic-pretrain-seed0 'topic1 filler3 filler0 filler2' -n 4
  steadfast generate models/qwen 'Why is the sky blue?' --chat --greedy --max-new-tokens 200
  steadfast generate MODEL --file prompts.txt --seed 3 --log-probs > answers.jsonl
  echo 'Once upon a time' | steadfast generate MODEL

MODEL is a folder as Hugging Face writes it, or a finished run. A prompt that is not given as an argument is
read from --file or from standard input, one per line; each gets -n completions. Completions go to standard
output: as they are written if there is one of them, else each on a line of its own.")]
pub struct GenerateArgs {
    /// Folder with a model, or run directory
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// What the model goes on from
    #[arg(value_name = "PROMPT", conflicts_with = "file")]
    pub prompt: Option<String>,
    /// Prompts, one per line
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Put the prompt into the model's chat template, as a message of the user
    #[arg(long)]
    pub chat: bool,
    /// A message of the system before it
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Completions per prompt
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub samples: u32,
    /// Most tokens of a completion
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_new_tokens: u32,
    /// Divides the logits; low values stay close to what is most likely
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub temperature: f64,
    /// Draw only from so many most likely tokens; 0 means all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Draw only from the most likely tokens that have this share together
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f64,
    /// Divides the positive logits of tokens that were seen, multiplies the negative ones
    #[arg(long, value_name = "PENALTY", default_value_t = 1.0)]
    pub repetition_penalty: f64,
    /// Always take the most likely token
    #[arg(long)]
    pub greedy: bool,
    /// End a completion after this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Seed of the draws
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Answer in lines of JSON with tokens and their log-probabilities
    #[arg(long)]
    pub log_probs: bool,
    /// Where the model is read: cpu, cuda or cuda:N; tokens are drawn on the CPU
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
}

/// Arguments of `export`.
#[cfg(feature = "llm")]
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steadfast export runs/topic-dpo-seed0 -o topic-dpo
  steadfast export RUN --checkpoint 200 -o early

The folder has config.json, model.safetensors and the tokenizer's files. It is there completely or not at all.")]
pub struct ExportArgs {
    /// Run directory
    pub run: PathBuf,
    /// How weights are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = ExportFormat::Safetensors)]
    pub format: ExportFormat,
    /// Folder to write; must not exist or be empty
    #[arg(short, long, value_name = "FOLDER")]
    pub output: PathBuf,
    /// Checkpoint to write, by its step; the finished model if not given, or the newest checkpoint of a run that goes on
    #[arg(long, value_name = "STEP")]
    pub checkpoint: Option<u64>,
}

/// Ways of writing weights.
#[cfg(feature = "llm")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// All weights in one safetensors file, as transformers reads them
    Safetensors,
}

/// Arguments of `show-batch`.
#[cfg(feature = "llm")]
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steadfast show-batch topic-dpo -n 2
  steadfast show-batch runs/topic-dpo-seed0
  steadfast show-batch my.toml data.file.path=other.jsonl")]
pub struct ShowBatchArgs {
    /// Recipe, TOML file or run directory, then changes as key.path=value
    #[arg(required = true, value_name = "RECIPE|FILE|RUN|KEY=VALUE")]
    pub arguments: Vec<String>,
    /// Examples to show, from the first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub examples: u16,
}

/// Kinds of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlotKind {
    /// Metric against steps of training
    Learning,
    /// Metric against the strength of a perturbation
    Robustness,
}

/// Commands about recipes.
#[derive(Debug, Subcommand)]
pub enum RecipeCommand {
    /// List all recipes
    List,
    /// Print a recipe
    Show {
        /// Name of the recipe
        name: String,
    },
    /// Copy a recipe to a file, as a starting point
    Copy {
        /// Name of the recipe
        name: String,
        /// File to write; NAME.toml if not given. An existing file is not overwritten
        file: Option<PathBuf>,
    },
}

/// Commands about configurations.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting with its default and meaning
    Defaults {
        /// Settings of language models that learn from given examples
        #[arg(long)]
        language: bool,
    },
    /// Check a recipe or file
    Check {
        /// Recipe or TOML file, then changes as key.path=value
        #[arg(required = true, value_name = "RECIPE|FILE|KEY=VALUE")]
        arguments: Vec<String>,
    },
    /// Print a recipe or file with all defaults and changes filled in
    Show {
        /// Recipe or TOML file, then changes as key.path=value
        #[arg(required = true, value_name = "RECIPE|FILE|KEY=VALUE")]
        arguments: Vec<String>,
    },
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// What to list
    #[arg(value_enum)]
    pub what: Listed,
}

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Listed {
    /// Worlds, for [env.NAME]
    Envs,
    /// Algorithms, for [agent.NAME]
    Agents,
    /// Penalties, for [regularizer.NAME]
    Regularizers,
    /// Perturbations, for `[[perturb]]` and `[[robustness]]`
    Perturbations,
    /// Annotators and their errors, for [reward.noise.NAME]
    Noise,
    /// Losses of learned rewards, for [reward.loss.NAME]
    Losses,
    /// Margins of language models, for [objective.preference.margin.NAME]
    Margins,
    /// What language models learn from given examples, for [objective.NAME]
    #[cfg(feature = "llm")]
    Objectives,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn the_sweep_in_the_help_is_valid() {
        let text = SWEEP_HELP.split("A sweep file:").nth(1).unwrap().split("In changes").next().unwrap();
        let sweep = crate::config::sweep::parse("help", text, std::path::Path::new("")).unwrap();
        // Two noises by three methods less one, and the reference, by three seeds.
        assert_eq!(crate::config::sweep::cells(&sweep).unwrap().len(), 18);
        assert!(SWEEP_HELP.lines().all(|line| line.chars().count() <= 100));
    }
}
