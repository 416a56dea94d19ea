"""Uncertainty weighting: each loss over twice a variance that is learned with it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from osgd_jax._math import squared_norms
from osgd_jax._validation import check_positive
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._learned import EPS_ROOT, learn, start_learning
from osgd_jax.weightings._tools import check_losses, check_num_tasks


class UncertaintyState(NamedTuple):
    """State of `uncertainty`: the logarithms of the variances, `[K]`, and that of Adam."""

    log_variances: jax.Array
    optimizer: Any


@named
def uncertainty(num_tasks: int, learning_rate: float | jax.Array = 0.025) -> Weighting:
    """Weigh each task by one over twice a learned variance.

    With :math:`L_i` the losses and :math:`s_i` the standard deviations, the weights are
    :math:`1 / (2 s_i²)`. Adam on the logarithms of the variances, from zero, minimizes

    .. math::

       ∑_i (L_i / (2 s_i²) + log s_i)

    Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for
    Scene Geometry and Semantics", CVPR 2018.

    Args:
      num_tasks: number of tasks K.
      learning_rate: learning rate of the logarithms.

    Returns:
      A weighting with state that needs the losses.

    Raises:
      ValueError: while tracing, without losses, or with another number of tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weighting = weightings.uncertainty(num_tasks=2, learning_rate=0.5)
      >>> state = weighting.init()
      >>> for losses in ([1.0, 4.0], [1.0, 3.0]):
      ...     weights, state = weighting.weigh(gramian, state, losses=jnp.array(losses))
      >>> print(weights.round(2))
      [0.5        0.3]
    """
    num_tasks = check_positive("num_tasks", num_tasks)
    optimizer = optax.adam(learning_rate, eps_root=EPS_ROOT)

    def init() -> UncertaintyState:
        zeros = jnp.zeros(num_tasks)
        return UncertaintyState(zeros, start_learning(optimizer, zeros))

    def weigh(
        gramian: jax.Array,
        state: UncertaintyState,
        *,
        losses: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, UncertaintyState]:
        del key
        check_num_tasks(num_tasks, gramian, "uncertainty")
        losses = check_losses(losses, gramian, "uncertainty").astype(state.log_variances.dtype)
        weights = jnp.exp(-state.log_variances) / 2
        log_variances, optimizer_state = learn(
            optimizer,
            0.5 - losses * weights,
            state.optimizer,
            state.log_variances,
            squared_norms(gramian) > 0,
        )
        # A loss of zero would let the variance shrink for ever.
        log_variances = jnp.clip(log_variances, -40, 40)
        return weights.astype(gramian.dtype), UncertaintyState(log_variances, optimizer_state)

    return Weighting(init, weigh, scaling="common")
