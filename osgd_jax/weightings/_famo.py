"""FAMO: all losses made to fall at the same relative rate, from the losses alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from osgd_jax._math import softmax_of_active, squared_norms
from osgd_jax._validation import check_positive
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._learned import EPS_ROOT, learn, start_learning
from osgd_jax.weightings._tools import check_losses, check_num_tasks


class FAMOState(NamedTuple):
    """State of `famo`.

    Attributes:
      logits: logits of the tasks' shares, `[K]`.
      log_losses: logarithms of the losses of the step before, `[K]`.
      seen: tasks whose `log_losses` is known, `[K]`.
      optimizer: state of Adam.
    """

    logits: jax.Array
    log_losses: jax.Array
    seen: jax.Array
    optimizer: Any


@named
def famo(
    num_tasks: int, learning_rate: float | jax.Array = 0.025, weight_decay: float | jax.Array = 1e-3
) -> Weighting:
    """Weigh each task by its share over its loss, with shares learned from how the losses change.

    With z the softmax of learned logits and L the losses, the weights are

    .. math::

       w_i = (z_i / L_i) / ∑_j (z_j / L_j)

    Adam with L2 regularization raises the share of a loss whose logarithm has fallen by less than
    the average, weighted by z.

    The change of the losses is measured between consecutive steps, each on its batch. The paper
    evaluates the losses a second time after each step instead.

    Source: Liu, Feng, Stone and Liu, "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023.

    Args:
      num_tasks: number of tasks K.
      learning_rate: learning rate of the logits.
      weight_decay: L2 regularization of the logits.

    Returns:
      A weighting with state that needs the losses, which must be positive.

    Raises:
      ValueError: while tracing, without losses, or with another number of tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weighting = weightings.famo(num_tasks=2, learning_rate=0.5)
      >>> state = weighting.init()
      >>> for losses in ([1.0, 1.0], [0.5, 0.9], [0.2, 0.8]):
      ...     weights, state = weighting.weigh(gramian, state, losses=jnp.array(losses))
      >>> print(weights.round(2))
      [0.35 0.65]
    """
    num_tasks = check_positive("num_tasks", num_tasks)
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.adam(learning_rate, eps_root=EPS_ROOT)
    )

    def init() -> FAMOState:
        zeros = jnp.zeros(num_tasks)
        return FAMOState(zeros, zeros, jnp.zeros(num_tasks, bool), start_learning(optimizer, zeros))

    def weigh(
        gramian: jax.Array,
        state: FAMOState,
        *,
        losses: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, FAMOState]:
        del key
        check_num_tasks(num_tasks, gramian, "famo")
        losses = check_losses(losses, gramian, "famo").astype(state.logits.dtype)
        active = squared_norms(gramian) > 0
        log_losses = jnp.log(jnp.maximum(losses, 1e-8))

        comparable = active & state.seen
        shares = softmax_of_active(state.logits, comparable)
        decrease = jnp.where(comparable, state.log_losses - log_losses, 0)
        gradient = shares * (decrease - shares @ decrease)
        logits, optimizer_state = learn(
            optimizer, gradient, state.optimizer, state.logits, comparable
        )

        # z_i / L_i over their sum.
        weights = softmax_of_active(logits - log_losses, active)
        next_state = FAMOState(
            logits,
            jnp.where(active, log_losses, state.log_losses),
            state.seen | active,
            optimizer_state,
        )
        return weights.astype(gramian.dtype), next_state

    return Weighting(init, weigh, scaling="common")
