"""The training application of osgd_jax: data sets, training, comparison, results."""
