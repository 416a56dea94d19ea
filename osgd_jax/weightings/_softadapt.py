"""SoftAdapt: more weight for losses that fall slowly or rise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._math import softmax_of_active, squared_norms
from osgd_jax._validation import check_positive, check_range
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._tools import check_losses, check_num_tasks


class SoftAdaptState(NamedTuple):
    """State of `softadapt`: each task's last loss, `[K]`, and whether there was one, `[K]`."""

    last: jax.Array
    seen: jax.Array


@named
def softadapt(num_tasks: int, beta: float | jax.Array = 0.1) -> Weighting:
    """Weigh the tasks by the softmax of beta times the change of their losses since the last step.

    With :math:`L(t)` the losses at step t, the weights are

    .. math::

       w = softmax(β (L(t) - L(t - 1)))

    They are equal at the first step. Changes are absolute, so losses far below one get nearly equal
    weights: choose `beta` by the size of the losses, or pass their logarithms. `smooth` makes the
    weights less noisy.

    This is the original variant of the three in the paper, with first-order differences. The others
    divide the changes by their sum, or multiply the exponentials by the losses.

    Source: Heydari, Thompson and Mehmood, "SoftAdapt: Techniques for Adaptive Loss Weighting of
    Neural Networks with Multi-Part Loss Functions", arXiv 1912.12355, 2019.

    Args:
      num_tasks: number of tasks K.
      beta: β; the larger, the more weight for losses that fall slowly; below zero, for losses that
        fall fast. It may be traced.

    Returns:
      A weighting with state that needs the losses.

    Raises:
      ValueError: `beta` is not finite; while tracing, no losses, or another number of tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weighting = weightings.softadapt(num_tasks=2, beta=10.0)
      >>> state = weighting.init()
      >>> for losses in ([1.0, 1.0], [0.5, 0.9], [0.2, 0.8]):
      ...     weights, state = weighting.weigh(gramian, state, losses=jnp.array(losses))
      >>> print(weights.round(2))
      [0.12 0.88]
    """
    beta = check_range("beta", beta, "finite", lambda b: abs(b) < np.inf)
    num_tasks = check_positive("num_tasks", num_tasks)

    def init() -> SoftAdaptState:
        return SoftAdaptState(jnp.zeros(num_tasks), jnp.zeros(num_tasks, bool))

    def weigh(
        gramian: jax.Array,
        state: SoftAdaptState,
        *,
        losses: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, SoftAdaptState]:
        del key
        check_num_tasks(num_tasks, gramian, "softadapt")
        losses = check_losses(losses, gramian, "softadapt").astype(state.last.dtype)
        active = squared_norms(gramian) > 0
        changes = jnp.where(state.seen, losses - state.last, 0)
        weights = softmax_of_active(beta * changes, active)
        next_state = SoftAdaptState(jnp.where(active, losses, state.last), state.seen | active)
        return weights.astype(gramian.dtype), next_state

    return Weighting(init, weigh, scaling="common")
