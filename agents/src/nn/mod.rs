//! Networks for control.
