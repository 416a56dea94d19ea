"""What `experiments.evaluate` is made of: the examples, mistakes, tables and pictures."""
