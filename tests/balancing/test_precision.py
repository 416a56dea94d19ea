"""On accelerators, no product of weights is rounded to a narrower dtype than it is in."""

import re

import jax
import jax.numpy as jnp
import pytest

import osgd_jax
from tests.weightings.catalogue import CATALOGUE, extra_args

K = 3
GRADS = {"a": jnp.ones((K, 8, 8)), "b": jnp.ones((K, 5))}
PARAMS = {name: rows[0] for name, rows in GRADS.items()}
# By array where there is no state: as a batch, products of matrix and vector are of matrices.
WEIGHTINGS = {name: entry.make(K) for name, entry in CATALOGUE.items()}
METHODS = {
    name: osgd_jax.aggregate(each, "all" if jax.tree.leaves(each.init()) else "leaf", key=0)
    for name, each in WEIGHTINGS.items()
}
METHODS |= {
    "moco": osgd_jax.moco(K),
    "db_mtl": osgd_jax.db_mtl(K),
    "excess_mtl": osgd_jax.excess_mtl(K),
}


def products(function, *args, **kwargs):
    """Lower a function for TPU, and return the products in it, as text."""
    lowered = jax.jit(function).trace(*args, **kwargs).lower(lowering_platforms=("tpu",))
    return re.findall(r"stablehlo\.(?:dot_general|convolution).*", lowered.as_text())


@pytest.mark.parametrize("name", METHODS)
def test_products_are_of_the_highest_precision(name):
    tx = METHODS[name]
    extra = extra_args(name, losses=jnp.arange(1.0, K + 1), others=GRADS)
    found = products(tx.update, GRADS, tx.init(PARAMS), PARAMS, **extra)
    for product in found:
        assert "precision = [HIGHEST, HIGHEST]" in product


def test_products_are_found_where_they_are_rounded():
    (product,) = products(jnp.matmul, jnp.ones((8, 8)), jnp.ones((8, 8)))
    assert "HIGHEST" not in product
