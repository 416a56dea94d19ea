"""The laboratory: everything that studies and benchmarks share."""
