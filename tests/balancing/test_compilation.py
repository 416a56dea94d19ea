"""Every transformation compiles once: under `jit`, and outside of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import osgd_jax
from tests.weightings.catalogue import CATALOGUE, extra_args

K = 3
PARAMS = {"stem": jnp.ones((2, 3)), "heads": [jnp.ones(2)] * K}
REACH = {"stem": (0, 1, 2), "heads": [(k,) for k in range(K)]}
LOSSES = jnp.array([0.5, 1.0, 2.0])
GRADS = osgd_jax.to_task_rows(
    jax.tree.map(
        lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=(K, *p.shape)), p.dtype),
        PARAMS,
    ),
    REACH,
)
METHODS = {name: osgd_jax.aggregate(entry.make(K), key=0) for name, entry in CATALOGUE.items()}
METHODS |= {
    "random order": osgd_jax.osgd(0.1, momentum=0.9, order="random", key=0),
    "clipped": osgd_jax.clip_task_norms(1.0),
    "graddrop": osgd_jax.graddrop(0),
    "moco": osgd_jax.moco(K),
    "db_mtl": osgd_jax.db_mtl(K),
    "excess_mtl": osgd_jax.excess_mtl(K),
}

compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compilations.append(event) if "backend_compile" in event else None
)


def steps(name, update, number):
    """Take some steps, and return how many compilations each took."""
    state, counts = METHODS[name].init(PARAMS), []
    extra = {} if name == "clipped" else extra_args(name, losses=LOSSES, others=GRADS)
    for _ in range(number):
        before = len(compilations)
        _, state = update(GRADS, state, PARAMS, **extra)
        counts.append(len(compilations) - before)
    return counts


@pytest.mark.parametrize("name", ["moco", "orthogonal", "random order"])
def test_a_compiled_step_is_compiled_once(name):
    counts = steps(name, jax.jit(METHODS[name].update), 3)
    assert counts[0] >= 1
    assert counts[1:] == [0, 0]


@pytest.mark.parametrize("name", METHODS)
def test_a_step_gives_a_state_of_the_type_that_it_took(name):
    """So that a compiled step takes it again: shapes, dtypes and weak types are alike."""
    tx = METHODS[name]
    extra = {} if name == "clipped" else extra_args(name, losses=LOSSES, others=GRADS)
    state = tx.init(PARAMS)
    _, after = jax.eval_shape(lambda state: tx.update(GRADS, state, PARAMS, **extra), state)
    for before, next_one in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        before = jax.typeof(before)
        types = [(each.shape, each.dtype, each.weak_type) for each in (before, next_one)]
        assert types[0] == types[1]


@pytest.mark.parametrize("name", METHODS)
def test_outside_of_jit_the_next_steps_compile_nothing(name):
    assert steps(name, METHODS[name].update, 4)[2:] == [0, 0]
