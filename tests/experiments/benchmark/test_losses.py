"""All ways to many losses give the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np

import osgd_jax
from experiments.benchmark import losses


def test_ways_to_many_losses_give_the_same():
    ways, args = losses.of_examples(3)
    ours, *others = (way(*args) for way in ways.values())
    ways, args = losses.of_heads(2)
    rows, summed = (way(*args) for way in ways.values())
    weights = jnp.ones(2)
    for a, b in [*((ours, each) for each in others), (osgd_jax.combine(rows, weights), summed)]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)
