//! Runs the command itself.
