"""Nested Transformers on text: `python -m experiments.study.language`."""
