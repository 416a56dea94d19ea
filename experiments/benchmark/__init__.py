"""Benchmarks: `python -m experiments.benchmark --help` lists them."""
