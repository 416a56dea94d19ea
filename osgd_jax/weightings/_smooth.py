"""CR-MOGM: the weights of another weighting, averaged over the steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from osgd_jax._math import squared_norms
from osgd_jax._validation import check_decay, check_positive
from osgd_jax.weightings._base import Weighting, named, resolve
from osgd_jax.weightings._tools import check_num_tasks


class SmoothState(NamedTuple):
    """State of `smooth`.

    Attributes:
      weights: running means of the weights, `[K]`.
      seen: tasks whose running mean has begun, `[K]`.
      weighting: state of the weighting.
    """

    weights: jax.Array
    seen: jax.Array
    weighting: Any


@named
def smooth(weighting: Weighting, num_tasks: int, decay: float | jax.Array) -> Weighting:
    """Replace the weights of a weighting by their running mean over the steps.

    With a the decay and w the weights of a step, the running means start at the first weights and
    follow

    .. math::

       λ ← a λ + (1 - a) w

    Weights from one noisy batch alone can keep a method from converging; the means need not. In
    the paper the decay grows towards one as the learning rate falls: pass `decay` through
    `optax.inject_hyperparams` with a schedule.

    A step in which the gradient of a task is zero does not change the mean of the task.

    Source: Zhou, Zhang, Jiang, Zhong, Gu and Zhu, "On the Convergence of Stochastic Multi-Objective
    Gradient Manipulation and Beyond", NeurIPS 2022 (CR-MOGM).

    Args:
      weighting: any of `osgd_jax.weightings`.
      num_tasks: number of tasks K.
      decay: decay of the running mean, in [0, 1); it may be traced.

    Returns:
      A weighting with state that needs what `weighting` needs.

    Raises:
      ValueError: `decay` out of range; while tracing, as `weighting`, or another number of tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weighting = weightings.smooth(weightings.upgrad(), num_tasks=2, decay=0.9)
      >>> state = weighting.init()
      >>> for _ in range(3):
      ...     weights, state = weighting.weigh(gramian, state)
      >>> print(weights.round(2))
      [1.   0.62]
    """
    decay = check_decay(decay)
    num_tasks = check_positive("num_tasks", num_tasks)

    def init() -> SmoothState:
        return SmoothState(jnp.zeros(num_tasks), jnp.zeros(num_tasks, bool), weighting.init())

    def weigh(
        gramian: jax.Array, state: SmoothState, **kwargs: jax.Array | None
    ) -> tuple[jax.Array, SmoothState]:
        weights, weighting_state = weighting.weigh(gramian, state.weighting, **kwargs)
        check_num_tasks(num_tasks, gramian, "smooth")
        active = squared_norms(gramian) > 0
        dtype, weights = weights.dtype, weights.astype(state.weights.dtype)
        means = decay * state.weights + (1 - decay) * weights
        means = jnp.where(active & state.seen, means, jnp.where(active, weights, state.weights))
        next_state = SmoothState(
            means.astype(state.weights.dtype), state.seen | active, weighting_state
        )
        return means.astype(dtype), next_state

    return weighting._replace(
        init=init,
        weigh=weigh,
        for_tasks=lambda tasks: smooth(resolve(weighting, tasks), num_tasks, decay),
    )
