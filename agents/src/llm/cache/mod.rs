//! Stores of past keys and values.
