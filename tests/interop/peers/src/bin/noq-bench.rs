//! Baseline of the benchmarks.
fn main() {}
