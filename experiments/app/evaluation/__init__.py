"""Parts of `experiments.evaluate`: examples, mistakes, tables and pictures."""
