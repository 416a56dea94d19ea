"""Derivatives through one update: those of differences where it is smooth, finite everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import osgd_jax
from tests.weightings import matrices
from tests.weightings.catalogue import CATALOGUE, extra_args

every_weighting = pytest.mark.parametrize("name", sorted(CATALOGUE))
NUM_TASKS = 3


def after_one_update(name, rows, losses):
    """A smooth function of the update that the gradients `[K, P]` and the losses `[K]` give."""
    tx = osgd_jax.aggregate(CATALOGUE[name].make(NUM_TASKS), "all", key=7)
    state = tx.init(rows[0])
    if jax.tree.leaves(state.weighting):
        # The first weights of some follow from the state alone.
        before = jnp.array([1.3, 0.9, 1.1]) * losses
        extra = extra_args(name, losses=before, others=rows[::-1])
        _, state = tx.update(rows, state, rows[0], **extra)
    extra = extra_args(name, losses=losses, others=jnp.flip(rows, axis=1))
    update, _ = tx.update(rows, state, rows[0], **extra)
    return jnp.sum(jnp.sin(jnp.arange(1, update.size + 1)) * update)


def derivatives(name):
    both = jax.value_and_grad(functools.partial(after_one_update, name), argnums=(0, 1))
    return jax.jit(jax.vmap(both))


@every_weighting
def test_equal_to_differences(name, x64):
    rng = np.random.default_rng(5)
    # Linearly independent gradients, conflicting ones, and more of them than parameters.
    stack = rng.normal(size=(4, NUM_TASKS, 6))
    stack[2] -= 0.6 * stack[2].mean(axis=0)
    stack[3] = [[1, 2, 0, 0, 0, 0], [-1, 0.8, 0, 0, 0, 0], [0.2, 1, 0, 0, 0, 0]]
    turned = rng.normal(size=stack.shape)
    turned[3, :, 2:] = 0
    losses, turned_losses = rng.uniform(0.5, 2, (2, 4, NUM_TASKS))
    step = 1e-5 * np.array([0.0, 1.0, -1.0])[:, None, None]
    points = (stack + step[..., None] * turned).reshape(-1, *stack.shape[1:])
    points_losses = (losses + step * turned_losses).reshape(-1, NUM_TASKS)
    values, (by_rows, by_losses) = derivatives(name)(points, points_losses)
    assert by_rows.dtype == jnp.float64
    _, above, below = np.asarray(values).reshape(3, -1)
    found = np.sum(by_rows[:4] * turned, axis=(1, 2)) + np.sum(by_losses[:4] * turned_losses, 1)
    np.testing.assert_allclose(found, (above - below) / 2e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["upgrad", "mgda", "cagrad"])
def test_second_derivatives_of_what_solves_a_problem(name, x64):
    rng = np.random.default_rng(6)
    rows, turned, others = rng.normal(size=(3, NUM_TASKS, 6))
    rows -= 0.6 * rows.mean(axis=0)
    slope = jax.grad(lambda rows: after_one_update(name, rows, jnp.ones(NUM_TASKS)))
    along = jax.jit(lambda rows: jnp.sum(slope(rows) * turned))
    found = jnp.sum(jax.jit(jax.grad(along))(jnp.asarray(rows)) * others)
    above, below = (along(jnp.asarray(rows + step * others)) for step in (1e-5, -1e-5))
    np.testing.assert_allclose(found, (above - below) / 2e-5, rtol=1e-4)


@every_weighting
def test_finite_where_nothing_is_smooth(name):
    zoo = matrices.zoo(NUM_TASKS)
    # The true derivatives leave the range of float32.
    del zoo["rows of all scales"]
    stack = jnp.asarray(matrices.stacked(zoo))
    losses = jnp.broadcast_to(matrices.losses(NUM_TASKS), stack.shape[:2])
    values, gradients = derivatives(name)(stack, losses)
    for i, kind in enumerate(zoo):
        for array in (values, *gradients):
            assert np.isfinite(array[i]).all(), kind


OTHERS = {
    "clip_task_norms": osgd_jax.clip_task_norms(1.0),
    "db_mtl": osgd_jax.db_mtl(NUM_TASKS, scope="all"),
    "excess_mtl": osgd_jax.excess_mtl(NUM_TASKS, scope="all"),
    "graddrop": osgd_jax.graddrop(0),
    "moco": osgd_jax.moco(NUM_TASKS, scope="all"),
    "normalize_task_norms": osgd_jax.normalize_task_norms(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_finite_beside_a_gradient_of_zero(name):
    tx = optax.with_extra_args_support(OTHERS[name])

    def after_two_updates(rows, losses):
        _, state = tx.update(rows, tx.init(rows[0]), rows[0], losses=losses)
        update, _ = tx.update(rows[::-1], state, rows[0], losses=losses)
        return jnp.sum(jnp.sin(update))

    both = jax.jit(jax.value_and_grad(after_two_updates, argnums=(0, 1)))
    for kind in ("typical", "zero row", "zeros", "duplicates"):
        found = both(jnp.asarray(matrices.zoo(NUM_TASKS)[kind]), matrices.losses(NUM_TASKS))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), kind


def test_cosines_and_norms_of_a_gradient_of_zero():
    rows = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    norms = jax.grad(lambda rows: osgd_jax.task_norms(rows).sum())(rows)
    np.testing.assert_allclose(norms, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    cosines = jax.grad(lambda rows: osgd_jax.task_cosines(osgd_jax.gramian(rows)).sum())(rows)
    assert np.isfinite(cosines).all()
