//! Sweeps: a grid of ordinary runs, their outcomes in one table, and what follows from it.
//!
//! ```text
//! sweeps/NAME/
//!     sweep.toml       the sweep with every default filled in
//!     base.toml        the experiment that it varies, word for word
//!     cells/CELL/      an ordinary run directory, and train.log with what the run said
//!     results.csv      one line per finished cell: labels, seed, the commit that made it, outcomes
//!     selected.csv     one line per seed and family of settings, if settings are selected
//!     table.txt        means over seeds with 95 % intervals
//!     plots/           pictures
//! ```
//!
//! The runs of a sweep know nothing of it. Evaluations of finished cells under other conditions can therefore be added
//! as a second step over the directories below `cells/`.

pub mod analysis;
pub mod directory;
pub mod execute;
pub mod outcome;
pub mod picture;
pub mod program;
