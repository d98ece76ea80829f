//! How robust trained policies are: run × perturbation × level, evaluated on the same episodes.
//!
//! ```text
//! sweeps/NAME/
//!     cells.csv        one line per finished cell, as it was evaluated
//!     results.csv      the same cells in order, with their method; .parquet if wanted
//!     summary.csv      means over seeds, per method, axis and level; .parquet if wanted
//!     table.txt        statistics per axis
//!     attackers/       policies of learned attackers, one directory each
//!     report.html      tables and pictures in one file
//!     plots/           pictures
//! ```

pub mod attacker;
pub mod axis;
pub mod cell;
pub mod cross_play;
pub mod evaluate;
pub mod pooled;
pub mod recovery;
pub mod report;
mod summary;
pub mod tidy;
