//! Run directories: the whole truth about a run.
//!
//! ```text
//! runs/spread-ernie-seed0/
//!     config.toml          resolved settings
//!     manifest.json        what made the run: version, commit, machine, start
//!     metrics.jsonl        one line per logged update; the same bytes for the same configuration
//!     timing.jsonl         wall-clock figures of the same updates
//!     eval.csv             one line per evaluation
//!     episodes.csv         one line per evaluation episode
//!     reward.csv           one line per fit of a learned reward; reward_epochs.csv has its passes
//!     preferences.jsonl    what the reward was learned from; preferences_test.jsonl, which only measures, goes when the run ends
//!     tensorboard/         the metrics as TensorBoard events
//!     checkpoints/step-NNNNNNNNNNNN/   learner.safetensors engine.safetensors progress.json, reward.safetensors if one is learned
//!     plots/               pictures of the finished run
//!     summary.json         exists once the run is finished
//! ```

pub mod arrays;
pub mod audit;
pub mod checkpoint;
pub mod directory;
pub mod log;
pub mod manifest;
pub mod metrics;
#[cfg(feature = "llm")]
pub mod model;
pub mod results;
pub mod reward;
pub mod tensorboard;

/// Version of everything written into a run directory. Raised when old programs could misread new files.
pub const FORMAT_VERSION: u32 = 1;
