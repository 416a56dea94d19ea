"""The study's candidates: controls, and what was tried to make OSGD better."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import osgd_jax
from experiments.studies.anytime import candidates
from experiments.studies.anytime.candidates import CANDIDATES
from experiments.studies.anytime.problems import SCREEN

_SMALL = dataclasses.replace(SCREEN, name="small", widths=(8, 8), train_size=200, epochs=2)


def _rows(rng, conflict=True):
    rows = rng.normal(size=(3, 20))
    return jnp.array(rows if conflict else np.abs(rows), jnp.float32)


def _norm(tree):
    return float(optax.tree.norm(tree))


def test_control_has_one_direction_and_the_other_length():
    grads = _rows(np.random.default_rng(0))
    params = jnp.zeros(20)
    osgd, total = (
        osgd_jax.orthogonalize(scope="all"),
        osgd_jax.aggregate(osgd_jax.weightings.sum(), "all"),
    )
    control = candidates.with_length_of(total, osgd)
    taken, _ = control.update(grads, control.init(params), params)
    length, _ = osgd.update(grads, osgd.init(params), params)
    np.testing.assert_allclose(_norm(taken), _norm(length), rtol=1e-5)
    np.testing.assert_allclose(taken / _norm(taken), grads.sum(0) / _norm(grads.sum(0)), atol=1e-6)


def test_whole_projections_are_those_of_osgd_and_none_is_the_sum():
    grads = _rows(np.random.default_rng(1))
    gramian = osgd_jax.gramian(grads)
    expected, _ = osgd_jax.weightings.orthogonal().weigh(gramian, ())
    whole, _ = candidates.partial_orthogonal(1.0).weigh(gramian, ())
    none, _ = candidates.partial_orthogonal(0.0).weigh(gramian, ())
    np.testing.assert_allclose(whole, expected, rtol=1e-4)
    np.testing.assert_allclose(none, np.ones(3))


def test_conflicting_projections_only():
    only = candidates.partial_orthogonal(conflicts_only=True)
    aligned = osgd_jax.gramian(_rows(np.random.default_rng(2), conflict=False))
    np.testing.assert_allclose(only.weigh(aligned, ())[0], np.ones(3))
    opposed = jnp.array([[1.0, -0.5], [-0.5, 1.0]])
    np.testing.assert_allclose(only.weigh(opposed, ())[0], [1.5, 1.0], rtol=1e-6)


def test_momentum_of_each_task():
    tx = candidates.trace_tasks(3, 0.9)
    grads = _rows(np.random.default_rng(3))
    state = tx.init(jnp.zeros(20))
    _, state = tx.update(grads, state)
    traced, _ = tx.update(grads, state)
    np.testing.assert_allclose(traced, 1.9 * grads, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CANDIDATES)
def test_candidate_takes_a_finite_step(name):
    method = CANDIDATES[name].make(SCREEN)
    params = {"shared": jnp.ones((4, 3)), "early": jnp.ones(3), "late": jnp.ones(3)}

    def losses_of(params):
        hidden = jnp.tanh(jnp.arange(8.0).reshape(2, 4) @ params["shared"] / 8)
        return tuple(
            jnp.mean((hidden @ params[n] - k) ** 2) + 0.1
            for k, n in enumerate(("early", "late", "late"))
        )

    tx = method.optimizer(optax.constant_schedule(0.01))

    @jax.jit
    def step(params):
        losses, grads = osgd_jax.value_and_task_grads(losses_of)(params)
        direction = osgd_jax.combine(grads, jnp.ones(3))
        if method.balance is not None:
            state = method.balance.init(params)
            direction, _ = method.balance.update(grads, state, params, losses=losses)
        return tx.update(direction, tx.init(params), params)[0]

    assert 0 < _norm(step(params)) < np.inf


def test_mixed_regime_trains_the_last_output_for_half_of_the_steps_and_then_all():
    # In batches of 100, 2 epochs of 200 examples are 4 steps.
    method = CANDIDATES["sgd-mixed"].make(_SMALL)
    grads, params, weights = _rows(np.random.default_rng(4)), jnp.zeros(20), []
    state = method.balance.init(params)
    for _ in range(4):
        update, state = method.balance.update(grads, state, params)
        weights.append(np.linalg.lstsq(grads.T, update)[0])
    np.testing.assert_allclose(weights, [[0, 0, 1]] * 2 + [[1, 1, 1]] * 2, atol=1e-5)


def test_mixed_regime_lets_the_rate_fall_in_each_half():
    falling = optax.linear_schedule(0.4, 0, 4)
    without_momentum = dataclasses.replace(_SMALL, momentum=0.0)
    tx = CANDIDATES["sgd-mixed"].make(without_momentum).optimizer(falling)
    state, rates = tx.init(jnp.ones(1)), []
    for _ in range(4):
        update, state = tx.update(jnp.ones(1), state)
        rates.append(-float(update[0]))
    np.testing.assert_allclose(rates, [0.4, 0.2, 0.4, 0.2], rtol=1e-6)


def test_warm_up_takes_a_share_of_the_steps_of_sgd():
    # In batches of 100, 2 epochs of 200 examples are 4 steps, of which a tenth is less than one; 20
    # epochs are 40 steps, of which the first 4 warm up.
    long = dataclasses.replace(_SMALL, epochs=20)
    params = jnp.ones(3)
    sgd = CANDIDATES["sgd"].make(_SMALL).optimizer(0.1)
    plain, _ = sgd.update(params, sgd.init(params), params)
    for problem, share in ((_SMALL, 1), (long, 1 / 4)):
        tx = CANDIDATES["sgd-warmup"].make(problem).optimizer(0.1)
        update, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(update, share * plain, rtol=1e-6)
