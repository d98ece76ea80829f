//! Fused operations with gradients, one per file, each beside its plain form in candle's own operations: the fallback on
//! devices without a kernel of ours, and the oracle of the tests.
