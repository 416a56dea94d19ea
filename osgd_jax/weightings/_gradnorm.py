"""GradNorm: weights learned so that the tasks' gradients have norms in step with their progress."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from osgd_jax._math import safe_sqrt, squared_norms
from osgd_jax._validation import check_positive
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._learned import EPS_ROOT, learn, start_learning
from osgd_jax.weightings._tools import check_losses, check_num_tasks


class GradNormState(NamedTuple):
    """State of `gradnorm`: arrays `[K]`, and that of Adam."""

    weights: jax.Array
    initial_losses: jax.Array
    seen: jax.Array
    optimizer: Any


@named
def gradnorm(
    num_tasks: int, alpha: float | jax.Array = 1.5, learning_rate: float | jax.Array = 0.025
) -> Weighting:
    """Learn weights that give larger gradients to tasks that train slowly.

    Let :math:`r_i` be the loss of task i over its first loss, divided by the mean of these ratios,
    and m the mean of :math:`w_i ‖g_i‖`. With m and :math:`r_i` as constants, Adam takes a step on
    :math:`∑_i |w_i ‖g_i‖ - m r_i^α|`. The weights are then divided by their mean. The norms are
    divided by m, so that the learning rate does not depend on the scale of the gradients. No weight
    falls below a thousandth, so that no task is lost.

    The first loss is that of the first step in which the task's gradient is not zero.

    Source: Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm: Gradient Normalization for Adaptive
    Loss Balancing in Deep Multitask Networks", ICML 2018.

    Args:
      num_tasks: number of tasks K.
      alpha: α, strength of the pull towards equal progress.
      learning_rate: learning rate of the weights.

    Returns:
      A weighting with state that needs the losses, which must be positive.

    Raises:
      ValueError: while tracing, without losses, or with another number of tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weighting = weightings.gradnorm(num_tasks=2, learning_rate=0.25)
      >>> state = weighting.init()
      >>> for losses in ([1.0, 1.0], [0.5, 0.9], [0.2, 0.8]):
      ...     weights, state = weighting.weigh(gramian, state, losses=jnp.array(losses))
      >>> print(weights.round(2))
      [1.23 0.77]
    """
    num_tasks = check_positive("num_tasks", num_tasks)
    optimizer = optax.adam(learning_rate, eps_root=EPS_ROOT)

    def init() -> GradNormState:
        ones = jnp.ones(num_tasks)
        return GradNormState(
            ones, ones, jnp.zeros(num_tasks, bool), start_learning(optimizer, ones)
        )

    def weigh(
        gramian: jax.Array,
        state: GradNormState,
        *,
        losses: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, GradNormState]:
        del key
        check_num_tasks(num_tasks, gramian, "gradnorm")
        losses = check_losses(losses, gramian, "gradnorm").astype(state.weights.dtype)
        squares = squared_norms(gramian).astype(state.weights.dtype)
        active = squares > 0
        count = jnp.maximum(jnp.sum(active, dtype=losses.dtype), 1)
        initial_losses = jnp.where(active & ~state.seen, losses, state.initial_losses)

        norms = safe_sqrt(squares)
        mean_norm = jnp.sum(state.weights * norms) / count
        norms = norms / jnp.where(mean_norm > 0, mean_norm, 1)
        ratios = jnp.where(active, losses / jnp.where(initial_losses > 0, initial_losses, 1), 0)
        mean_ratio = jnp.sum(ratios) / count
        rates = ratios / jnp.where(mean_ratio > 0, mean_ratio, 1)
        progress = jnp.where(rates > 0, jnp.where(rates > 0, rates, 1) ** alpha, 0)
        distance = state.weights * norms - progress

        weights, optimizer_state = learn(
            optimizer, jnp.sign(distance) * norms, state.optimizer, state.weights, active
        )
        weights = jnp.maximum(weights, 1e-3)
        total_before = jnp.sum(state.weights, where=active)
        total = jnp.sum(weights, where=active)
        normalized = weights * total_before / jnp.where(total > 0, total, 1)
        weights = jnp.where(active, normalized, state.weights)
        next_state = GradNormState(weights, initial_losses, state.seen | active, optimizer_state)
        return state.weights.astype(gramian.dtype), next_state

    return Weighting(init, weigh, scaling="common")
