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


def of(make, key=None):
    return lambda value: osgd_jax.aggregate(make(value), "all", key)


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
    losses = LOSSES[None] * jnp.array([[1, 1, 1], [0.7, 0.6, 0.9], [0.6, 0.3, 0.8]])
    return jax.lax.scan(step, tx.init(ROWS[0]), (rows, losses))[1]


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_vmap_over_two_values_is_each_of_them(name):
    make, values = HYPERPARAMETERS[name]
    found = jax.jit(jax.vmap(lambda value: three_steps(make, value)))(jnp.stack(values))
    for update, value in zip(found, values, strict=True):
        expected = jax.jit(lambda value=value: three_steps(make, value))()
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(*found)


# Values that raise an error where they are known.
OUT_OF_RANGE = {
    "cagrad": (of(weightings.cagrad), -1.0),
    "constant": (of(weightings.constant), np.array([1.0, np.inf, 1.0], np.float32)),
    "dwa, temperature": (of(lambda value: weightings.dwa(K, value)), 0.0),
    "dwa, period": (of(lambda value: weightings.dwa(K, period=value)), 0),
    "fairgrad": (of(weightings.fairgrad), 0.2),
    "gradvac": (of(lambda value: weightings.gradvac(K, value)), 1.5),
    "inverse_norms": (of(lambda value: weightings.inverse_norms(K, value)), 1.0),
    "order, twice the same": (of(weightings.orthogonal), jnp.array([0, 0, 1])),
    "order, from one": (of(weightings.orthogonal), jnp.array([1, 2, 3])),
    "order, negative": (of(weightings.orthogonal), jnp.array([-1, 0, 1])),
    "pcd, tau": (of(lambda value: weightings.pcd(K, value)), 2.0),
    "pcd, decay": (of(lambda value: weightings.pcd(K, decay=value)), -0.5),
    "pcd, eps": (of(lambda value: weightings.pcd(K, eps=value)), -1.0),
    "relobralo, alpha": (of(lambda value: weightings.relobralo(K, value), key=0), 2.0),
    "relobralo, rho": (of(lambda value: weightings.relobralo(K, rho=value), key=0), 2.0),
    "relobralo, temperature": (
        of(lambda value: weightings.relobralo(K, temperature=value), key=0),
        0.0,
    ),
    "softadapt": (of(lambda value: weightings.softadapt(K, value)), np.inf),
    "stch": (of(weightings.stch), 0.0),
    "graddrop": (lambda leak: osgd_jax.graddrop(0, leak), 1.5),
    "moco": (lambda rate: osgd_jax.moco(K, rate), 1.5),
    "moco, gamma": (lambda rate: osgd_jax.moco(K, gamma=rate), -1.0),
    "db_mtl": (lambda beta: osgd_jax.db_mtl(K, beta), -0.5),
    "excess_mtl": (lambda size: osgd_jax.excess_mtl(K, size), -1.0),
    "clip_task_norms": (
        lambda norm: optax.chain(osgd_jax.clip_task_norms(norm), osgd_jax.orthogonalize()),
        -1.0,
    ),
}
for name in ("aligned_mtl", "config", "dualproj", "stch", "upgrad"):
    make = getattr(weightings, name)
    for kind, value in (("negative", [1.0, -1, 1]), ("zeros", [0.0, 0, 0])):
        OUT_OF_RANGE[f"{name}, {kind}"] = (
            of(lambda p, make=make: make(preference=p)),
            jnp.array(value),
        )


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_out_of_range_is_an_error_where_it_is_known_and_nan_where_it_is_traced(name):
    make, value = OUT_OF_RANGE[name]
    if not name.startswith("order"):
        with pytest.raises(ValueError, match="must be"):
            make(np.asarray(value))
    updates = jax.jit(lambda value: three_steps(make, value))(value)
    # From the second step on: a running mean starts without its decay.
    assert np.isnan(updates[-1]).any()


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
