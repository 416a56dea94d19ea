"""One loss a step: M-ConFIG against its formulas in float64, and what a step costs."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import osgd_jax
from osgd_jax import weightings
from tests.helpers.run_on_eight import run_on_eight

K, B1, B2, EPS, RATE = 3, 0.9, 0.99, 1e-8, 0.1


def config(rows):
    """The direction of ConFIG: equal cosines with all rows, as long as their components add up."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    direction = np.linalg.pinv(unit) @ np.ones(len(rows))
    direction /= np.linalg.norm(direction)
    return (rows @ direction).sum() * direction


def m_config_reference(gradients, tasks):
    """The updates of each step, from gradients `[steps, P]`."""
    size = gradients.shape[1]
    momenta, turns = np.zeros((K, size)), np.zeros(K, int)
    old, square, updates = np.zeros(size), np.zeros(size), []
    for step, (gradient, task) in enumerate(zip(gradients, tasks, strict=True), 1):
        momenta[task] = B1 * momenta[task] + (1 - B1) * gradient
        turns[task] += 1
        had = turns > 0
        direction = config(momenta[had] / (1 - B1 ** turns[had])[:, None])
        biased = direction * (1 - B1**step)
        implied = (biased - B1 * old) / (1 - B1)
        old = biased
        square = B2 * square + (1 - B2) * implied**2
        updates.append(-RATE * direction / (np.sqrt(square / (1 - B2**step)) + EPS))
    return np.array(updates)


def as_params(vector):
    return {"a": vector[:6].reshape(2, 3), "b": vector[6:]}


def as_vector(params):
    return np.concatenate([np.ravel(params["a"]), params["b"]])


@pytest.mark.parametrize("in_turn", [True, False])
def test_m_config(in_turn):
    rng = np.random.default_rng(0)
    steps = 30
    tasks = np.arange(steps) % K if in_turn else rng.integers(0, K, steps)
    gradients = rng.normal(size=(steps, 10)) * np.array([1.0, 30, 0.2])[tasks][:, None]
    tx = osgd_jax.m_config(RATE, K, B1, B2, EPS)
    with jax.enable_x64(True):
        state, found = tx.init(as_params(jnp.zeros(10))), []
        update = jax.jit(tx.update)
        for gradient, task in zip(gradients, tasks, strict=True):
            updates, state = update(as_params(jnp.asarray(gradient)), state, task=task)
            found.append(as_vector(updates))
    np.testing.assert_allclose(found, m_config_reference(gradients, tasks), rtol=1e-8)


def test_task_momenta_suit_any_weighting_and_know_whose_turn_has_come():
    tx = optax.chain(
        osgd_jax.task_momenta(2, 0.5), osgd_jax.aggregate(weightings.sum(), scope="all")
    )
    state = tx.init(jnp.zeros(2))
    first, state = tx.update(jnp.array([1.0, 2.0]), state, task=1)
    np.testing.assert_allclose(first, [1, 2])
    second, state = tx.update(jnp.array([10.0, 0.0]), state, task=0)
    np.testing.assert_allclose(second, [11, 2])
    third, state = tx.update(jnp.array([4.0, 2.0]), state, task=1)
    np.testing.assert_allclose(third, [10 + (0.5 * 1 + 4) / 1.5, 2], rtol=1e-6)


def test_what_is_not_finite_is_not_remembered():
    tx = osgd_jax.m_config(RATE, K)
    update = jax.jit(tx.update)
    _, state = update(jnp.array([1.0, 2.0]), tx.init(jnp.zeros(2)), task=0)
    spoiled, after = update(jnp.array([jnp.nan, 2.0]), state, task=1)
    assert np.isnan(spoiled).all()
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_a_scan_over_steps_of_narrow_parameters():
    tx = osgd_jax.m_config(RATE, 2)
    params = jnp.ones(3, jnp.bfloat16)

    def step(carry, task):
        params, state = carry
        updates, state = tx.update(params * (1 + task), state, params, task=task)
        return (optax.apply_updates(params, updates), state), updates

    (params, _), updates = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(6) % 2)
    assert params.dtype == jnp.bfloat16
    assert (updates < 0).all()


@pytest.mark.parametrize("task", [-1, 2, 0.5, None])
def test_a_task_index_out_of_range(task):
    tx = osgd_jax.task_momenta(2)
    with pytest.raises(ValueError, match=rf"task={task} must be a task index below num_tasks=2"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), task=task)


@pytest.mark.parametrize("task", [-1, 2, 7])
def test_a_traced_task_index_out_of_range_gives_nan_and_is_not_remembered(task):
    tx = osgd_jax.m_config(RATE, 2)
    update = jax.jit(tx.update)
    _, state = update(jnp.array([1.0, 2.0]), tx.init(jnp.zeros(2)), task=0)
    updates, after = update(jnp.array([3.0, 1.0]), state, task=task)
    assert np.isnan(updates).all()
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_steps_of_several_devices_are_those_of_one():
    run_on_eight("one_loss_steps")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b1": 1.0}, "b1=1.0 must be at least 0 and below 1"),
        ({"b2": -0.1}, "b2=-0.1 must be at least 0 and below 1"),
        ({"eps": -1.0}, "eps=-1.0 must be at least 0"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        osgd_jax.m_config(RATE, K, **arguments)


def test_a_step_does_less_than_one_of_adam_on_the_sum():
    """Three losses, each with a separate forward pass, on a net as of physics-informed nets."""
    rng = np.random.default_rng(0)
    sizes = (2, 50, 50, 50, 1)
    params = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in pairwise(sizes)]
    batches = [jnp.asarray(rng.normal(size=(n, 2)), jnp.float32) for n in (1000, 500, 500)]

    def loss(params, points):
        for kernel in params[:-1]:
            points = jnp.tanh(points @ kernel)
        return jnp.mean((points @ params[-1]) ** 2)

    def work(tx, step):
        compiled = jax.jit(step).lower(params, tx.init(params), batches).compile()
        return compiled.cost_analysis()["flops"]

    adam = optax.adam(1e-3)
    turns = osgd_jax.m_config(1e-3, 3)

    def adam_step(params, state, batches):
        grads = jax.grad(lambda p: sum(loss(p, b) for b in batches))(params)
        return adam.update(grads, state, params)

    def turn(task):
        def step(params, state, batches):
            return turns.update(jax.grad(loss)(params, batches[task]), state, params, task=task)

        return work(turns, step)

    whole, each = work(adam, adam_step), [turn(task) for task in range(3)]
    assert np.mean(each) < 0.45 * whole
    assert max(each) < 0.7 * whole
