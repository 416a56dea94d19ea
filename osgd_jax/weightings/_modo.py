"""MoDo: weights that follow the shortest direction by one projected step for each update."""

import jax
import jax.numpy as jnp

from osgd_jax._validation import check_positive, check_range, unless_out_of_range
from osgd_jax.weightings import _simplex
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._tools import check_num_tasks


@named
def modo(num_tasks: int, gamma: float | jax.Array = 0.1, rho: float | jax.Array = 0.1) -> Weighting:
    """Move the weights by one step towards those of the shortest convex combination.

    MoDo (multi-objective gradient with double sampling) takes a step of projected stochastic
    descent on :math:`‖Jᵀ w‖² + ρ ‖w‖²`,

    .. math::

       w ← Π(w - γ (G w + ρ w))

    with the projection Π onto the simplex, from equal weights. The descent is unbiased if G is the
    Gramian of two independent batches: pass the gradients of the second one as
    `tx.update(grads, state, params, others=second_grads)`. The update is along the mean of both
    batches' gradients.

    Source: Chen, Fernando, Ying and Chen, "Three-Way Trade-Off in Multi-Objective Learning:
    Optimization, Generalization and Conflict-Avoidance", NeurIPS 2023; the update along both
    batches is equation (2.9) of the version in JMLR 2024. With a third batch for the update, the
    NeurIPS paper's algorithm costs half as much again.

    Args:
      num_tasks: number of tasks K.
      gamma: γ, rate of the weights. The useful size depends on that of the gradients.
      rho: ρ, regularization, towards equal weights.

    Returns:
      A weighting with state: the weights, `[K]`, which are non-negative and sum to one.

    Raises:
      ValueError: `gamma` not above zero or `rho` negative; while tracing, another number of tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> tx = osgd_jax.aggregate(osgd_jax.weightings.modo(num_tasks=2))
      >>> params = jnp.zeros(2)
      >>> grads, others = jnp.array([[1.0, 0.0], [-1.0, 1.0]]), jnp.array([[0.8, 0.2], [-1.0, 1.2]])
      >>> updates, state = tx.update(grads, tx.init(params), params, others=others)
      >>> print(updates.round(2))
      [0.02 0.56]
    """
    num_tasks = check_positive("num_tasks", num_tasks)
    gamma = check_range("gamma", gamma, "above zero", lambda g: g > 0)
    rho = check_range("rho", rho, "at least zero", lambda r: r >= 0)

    def init() -> jax.Array:
        return jnp.ones(num_tasks) / num_tasks

    def weigh(
        gramian: jax.Array,
        state: jax.Array,
        *,
        losses: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        del losses, key
        check_num_tasks(num_tasks, gramian, "modo")
        active = _simplex.present(gramian)
        # So that no sum leaves the range.
        limit = float(jnp.finfo(gramian.dtype).max) / (4 * num_tasks)
        before = _simplex.shares(state.astype(gramian.dtype), active)
        slope = jnp.clip(gramian, -limit, limit) @ before + rho * before
        weights = _simplex.project(before - gamma * slope, active)
        remembered = _simplex.remember(weights, state, active)
        return unless_out_of_range(weights, gamma, rho), remembered

    return Weighting(init, weigh, cross=True)
