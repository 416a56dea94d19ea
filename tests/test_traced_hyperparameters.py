"""Hyperparameters that are traced: `optax.inject_hyperparams`, `jax.vmap`, and the checks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import osgd_jax
from osgd_jax import weightings

K = 3
ROWS = jnp.asarray(np.random.default_rng(2).normal(size=(K, 6)), jnp.float32)
LOSSES = jnp.array([0.5, 1.0, 2.0])
SHARES = [jnp.array([1.0, 2.0, 3.0]), jnp.array([0.2, 0.5, 0.3])]


def of(make):
    return lambda value: osgd_jax.aggregate(make(value), "all")


# What makes the transformation, and two values of its hyperparameter.
HYPERPARAMETERS = {
    "cagrad": (of(weightings.cagrad), [0.2, 0.8]),
    "cagrad, none": (of(weightings.cagrad), [0.0, 0.8]),
    "fairgrad": (of(weightings.fairgrad), [0.6, 4.0]),
    "fairgrad, large": (of(weightings.fairgrad), [1.0, 20.0]),
    "stch": (of(weightings.stch), [0.3, 2.0]),
    "gradvac": (of(lambda beta: weightings.gradvac(K, beta)), [0.1, 0.9]),
    "constant": (of(weightings.constant), SHARES),
    "dwa": (of(lambda temperature: weightings.dwa(K, temperature, period=1)), [1.0, 3.0]),
    "famo": (of(lambda rate: weightings.famo(K, rate)), [0.01, 0.1]),
    "gradnorm": (of(lambda alpha: weightings.gradnorm(K, alpha, alpha / 10)), [0.5, 2.0]),
    "uncertainty": (of(lambda rate: weightings.uncertainty(K, rate)), [0.01, 0.1]),
    "order": (of(weightings.orthogonal), [jnp.array([2, 0, 1]), jnp.array([0, 2, 1])]),
    "graddrop": (lambda leak: osgd_jax.graddrop(0, leak), [0.2, 0.9]),
    "graddrop, each": (lambda leak: osgd_jax.graddrop(0, leak), [SHARES[0] / 4, SHARES[1]]),
    "moco": (lambda rate: osgd_jax.moco(K, rate, rate, rate), [0.2, 0.9]),
    "db_mtl": (lambda beta: osgd_jax.db_mtl(K, beta), [0.2, 0.9]),
    "excess_mtl": (lambda size: osgd_jax.excess_mtl(K, size), [0.2, 0.9]),
    "osgd": (lambda rate: osgd_jax.osgd(rate, momentum=0.9), [0.2, 0.9]),
}
for name in ("aligned_mtl", "config", "dualproj", "stch", "upgrad"):
    make = getattr(weightings, name)
    HYPERPARAMETERS[f"{name}, preference"] = (of(lambda p, make=make: make(preference=p)), SHARES)


def three_steps(make, value):
    tx = make(value)

    def step(state, inputs):
        rows, losses = inputs
        update, state = tx.update(rows, state, ROWS[0], losses=losses)
        return state, update

    rows = jnp.stack([jnp.roll(ROWS, i, axis=0) for i in range(3)])
    losses = LOSSES * jnp.array([[1, 1, 1], [0.7, 0.6, 0.9], [0.6, 0.3, 0.8]])
    return jax.lax.scan(step, tx.init(ROWS[0]), (rows, losses))[1]


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_vmap_over_two_values_is_each_of_them(name):
    make, values = HYPERPARAMETERS[name]
    found = jax.jit(jax.vmap(lambda value: three_steps(make, value)))(jnp.stack(values))
    for update, value in zip(found, values, strict=True):
        expected = jax.jit(lambda value=value: three_steps(make, value))()
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(*found)


@pytest.mark.parametrize("name", ["cagrad", "fairgrad", "graddrop, each", "upgrad, preference"])
def test_inject_hyperparams(name):
    make, values = HYPERPARAMETERS[name]

    def named(value):
        return make(value)

    tx = optax.inject_hyperparams(named)(value=values[0])
    state = tx.init(ROWS[0])
    update = jax.jit(lambda state: tx.update(ROWS, state, ROWS[0], losses=LOSSES)[0])
    for value in values:
        state.hyperparams["value"] = jnp.asarray(value)
        np.testing.assert_allclose(update(state), three_steps(make, value)[0], rtol=1e-4, atol=1e-5)
