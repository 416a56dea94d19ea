"""Dynamic weight average: more weight for losses that fall slowly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from osgd_jax._math import softmax_of_active, squared_norms
from osgd_jax._validation import check_positive, check_range, unless_out_of_range
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._tools import check_losses, check_num_tasks


class DWAState(NamedTuple):
    """State of `dwa`.

    Attributes:
      step: steps in the current period.
      periods: number of whole periods, up to two.
      totals: sums of the losses in the current period, `[K]`.
      counts: number of terms of each, `[K]`.
      means: mean losses of the last period and the one before, `[2, K]`.
    """

    step: jax.Array
    periods: jax.Array
    totals: jax.Array
    counts: jax.Array
    means: jax.Array


@named
def dwa(
    num_tasks: int, temperature: float | jax.Array = 2.0, period: float | jax.Array = 100
) -> Weighting:
    """Weigh the tasks by the rate at which their mean losses changed over the last two periods.

    With :math:`r_i` the mean loss of task i in the last period over that in the period before, the
    weights are

    .. math::

       w = K softmax(r / T)

    During the first two periods the weights are one. A period is an epoch in the paper.

    Source: Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019.

    Args:
      num_tasks: number of tasks K.
      temperature: T; the larger, the more equal the weights.
      period: number of steps whose losses are averaged.

    Returns:
      A weighting with state that needs the losses.

    Raises:
      ValueError: `period` below one or `temperature` not positive; while tracing, no losses, or
        another number of tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weighting = weightings.dwa(num_tasks=2, period=1)
      >>> state = weighting.init()
      >>> for losses in ([1.0, 1.0], [0.5, 0.9], [0.2, 0.8]):
      ...     weights, state = weighting.weigh(gramian, state, losses=jnp.array(losses))
      >>> print(weights.round(2))
      [0.9 1.1]
    """
    temperature = check_range("temperature", temperature, "above zero", lambda t: t > 0)
    period = check_range("period", period, "at least 1", lambda p: p >= 1)
    num_tasks = check_positive("num_tasks", num_tasks)

    def init() -> DWAState:
        zero, zeros = jnp.zeros((), jnp.int32), jnp.zeros(num_tasks)
        return DWAState(zero, zero, zeros, zeros, jnp.ones((2, num_tasks)))

    def weigh(
        gramian: jax.Array,
        state: DWAState,
        *,
        losses: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, DWAState]:
        del key
        check_num_tasks(num_tasks, gramian, "dwa")
        losses = check_losses(losses, gramian, "dwa").astype(state.totals.dtype)
        active = squared_norms(gramian) > 0

        last, before = state.means
        rates = last / jnp.where(before != 0, before, 1)
        rates = jnp.where(state.periods < 2, 1, rates)
        weights = jnp.sum(active, dtype=rates.dtype) * softmax_of_active(
            rates / temperature, active
        )
        weights = unless_out_of_range(weights, period)

        totals = state.totals + jnp.where(active, losses, 0)
        counts = state.counts + active.astype(state.counts.dtype)
        means = jnp.where(counts > 0, totals / jnp.maximum(counts, 1), last)
        ends = state.step + 1 == period
        next_state = DWAState(
            jnp.where(ends, 0, state.step + 1),
            jnp.minimum(state.periods + ends.astype(state.periods.dtype), 2),
            jnp.where(ends, 0, totals),
            jnp.where(ends, 0, counts),
            jnp.where(ends, jnp.stack([means, last]), state.means),
        )
        return weights.astype(gramian.dtype), next_state

    return Weighting(init, weigh, scaling="common")
