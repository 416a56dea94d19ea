"""FAMO, GradNorm and uncertainty weighting over many steps, against float64 NumPy.

The references are written from the papers, with Adam as published: each task counts
the steps in which it takes part.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osgd_jax import weightings

pytestmark = pytest.mark.numerical

K, STEPS = 3, 60
# The last task joins after twenty steps, the first pauses for ten.
ACTIVE = np.ones((STEPS, K), bool)
ACTIVE[:20, 2] = ACTIVE[30:40, 0] = False
_RNG = np.random.default_rng(0)
LOSSES = np.geomspace(1, [0.05, 0.4, 0.9], STEPS) * _RNG.uniform(0.8, 1.2, (STEPS, K))
NORMS = _RNG.uniform(0.5, 3, (STEPS, K))


class Adam:
    """Adam for one number."""

    def __init__(self, rate):
        self.rate, self.count, self.first, self.second = rate, 0, 0.0, 0.0

    def step(self, value, slope):
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope**2
        first = self.first / (1 - 0.9**self.count)
        second = self.second / (1 - 0.999**self.count)
        return value - self.rate * first / (np.sqrt(second) + 1e-8)


def famo(rate=0.025, decay=1e-3):
    logits, adams, before = np.zeros(K), [Adam(rate) for _ in range(K)], np.full(K, np.nan)
    for losses, active in zip(LOSSES, ACTIVE, strict=True):
        together = active & ~np.isnan(before)
        if together.any():
            shares = np.where(together, np.exp(logits), 0)
            shares /= shares.sum()
            fall = np.where(together, np.log(before) - np.log(losses), 0)
            for i in np.flatnonzero(together):
                jacobian = shares[i] * ((np.arange(K) == i) - shares)
                logits[i] = adams[i].step(logits[i], jacobian @ fall + decay * logits[i])
        before = np.where(active, losses, before)
        weights = np.where(active, np.exp(logits) / losses, 0)
        yield weights / weights.sum()


def gradnorm(rate=0.025, alpha=1.5):
    weights, adams, first = np.ones(K), [Adam(rate) for _ in range(K)], np.full(K, np.nan)
    for losses, norms, active in zip(LOSSES, NORMS, ACTIVE, strict=True):
        yield weights.copy()
        first = np.where(active & np.isnan(first), losses, first)
        mean = (weights * norms)[active].mean()
        ratios = losses / first
        targets = mean * (ratios / ratios[active].mean()) ** alpha
        total = weights[active].sum()
        for i in np.flatnonzero(active):
            slope = np.sign(weights[i] * norms[i] - targets[i]) * norms[i] / mean
            weights[i] = max(adams[i].step(weights[i], slope), 1e-3)
        weights[active] *= total / weights[active].sum()


def uncertainty(rate=0.025):
    logarithms, adams = np.zeros(K), [Adam(rate) for _ in range(K)]
    for losses, active in zip(LOSSES, ACTIVE, strict=True):
        yield 0.5 * np.exp(-logarithms)
        for i in np.flatnonzero(active):
            slope = 0.5 - losses[i] / 2 * np.exp(-logarithms[i])
            logarithms[i] = adams[i].step(logarithms[i], slope)


@pytest.mark.parametrize("reference", [famo, gradnorm, uncertainty], ids=lambda f: f.__name__)
def test_path(reference, x64):
    weighting = getattr(weightings, reference.__name__)(K)

    def step(state, inputs):
        losses, norms, active = inputs
        gramian = jnp.diag(jnp.where(active, norms, 0) ** 2)
        weights, state = weighting.weigh(gramian, state, losses=losses)
        return state, weights

    _, found = jax.lax.scan(step, weighting.init(), (LOSSES, NORMS, ACTIVE))
    expected = np.array(list(reference()))
    np.testing.assert_allclose(np.where(ACTIVE, found, 0), np.where(ACTIVE, expected, 0), rtol=1e-6)


def test_the_first_step_of_a_task_is_as_long_as_the_rate_whenever_it_joins():
    weighting = weightings.uncertainty(2, learning_rate=0.01)
    state = weighting.init()
    for i in range(51):
        gramian = jnp.diag(jnp.array([1.0, float(i == 50)]))
        _, state = weighting.weigh(gramian, state, losses=jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(abs(state.log_variances[1]), 0.01, rtol=0.02)
