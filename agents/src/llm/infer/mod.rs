//! Weights packed once, decoded many times; no tape.
