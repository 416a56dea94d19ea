"""SDMGrad: the shortest direction near a preferred one, by projected steps on the weights."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from osgd_jax._math import squared_norms
from osgd_jax._validation import check_decay, check_positive, check_range, unless_out_of_range
from osgd_jax.weightings import _simplex
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._by_task import by_position
from osgd_jax.weightings._tools import (
    Numbers,
    check_num_tasks,
    check_preference,
    preference_like,
)


@named
def sdmgrad(
    num_tasks: int,
    lambda_: float | jax.Array = 0.3,
    preference: Numbers | None = None,
    *,
    learning_rate: float | jax.Array = 10.0,
    momentum: float | jax.Array = 0.5,
    steps: int = 20,
) -> Weighting:
    """Weigh the tasks by the shortest of the directions near a preferred combination.

    With p the preference, SDMGrad (stochastic direction-oriented multi-objective gradient descent)
    minimizes

    .. math::

       ‖Jᵀ (w + λ p)‖²

    over the simplex, from the solution of the update before, and weighs the tasks by
    :math:`(w + λ p) / (1 + λ)`. The descent is unbiased if the Gramian is of two independent
    batches: pass the gradients of the second one as
    `tx.update(grads, state, params, others=second_grads)`. The update is along the mean of both
    batches' gradients; the paper takes a third batch for it.

    The Gramian is divided by the square of the mean norm, as in the authors' code. If no unbiased
    squared norm is positive, the weights do not change.

    Source: Xiao, Ban and Ji, "Direction-oriented Multi-objective Learning: Simple and Provable
    Stochastic Algorithms", NeurIPS 2023. The defaults are those of the authors' code.

    Args:
      num_tasks: number of tasks K.
      lambda_: λ, how strongly the direction is pulled to the preferred one: zero for the direction
        of `mgda`, large for the fixed weights of the preference.
      preference: ratios of the weights of the preferred direction; equal if None.
      learning_rate: rate of the steps on the weights.
      momentum: momentum of these steps, in [0, 1).
      steps: number of these steps for each update.

    Returns:
      A weighting with state: w, `[K]`. The weights are non-negative and sum to one.

    Raises:
      ValueError: an argument out of range; while tracing, another number of tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> tx = osgd_jax.aggregate(osgd_jax.weightings.sdmgrad(num_tasks=2))
      >>> params = jnp.zeros(2)
      >>> grads, others = jnp.array([[1.0, 0.0], [-1.0, 1.0]]), jnp.array([[0.8, 0.2], [-1.0, 1.2]])
      >>> updates, state = tx.update(grads, tx.init(params), params, others=others)
      >>> print(updates.round(2))
      [0.68 0.22]
    """
    num_tasks = check_positive("num_tasks", num_tasks)
    steps = check_positive("steps", steps)
    lambda_ = check_range("lambda_", lambda_, "at least zero", lambda x: x >= 0)
    learning_rate = check_range("learning_rate", learning_rate, "above zero", lambda x: x > 0)
    momentum = check_decay(momentum, "momentum")
    preference = check_preference(preference)

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
        check_num_tasks(num_tasks, gramian, "sdmgrad")
        active = _simplex.present(gramian)
        wanted = _simplex.shares(preference_like(preference, squared_norms(gramian), 1.0), active)
        matrix = _over_mean_norm(gramian, active)
        before = _simplex.shares(state.astype(gramian.dtype), active)
        rates = jnp.asarray(learning_rate, wanted.dtype), jnp.asarray(momentum, wanted.dtype)
        weights = _descend(steps, matrix, before, lambda_ * wanted, active, *rates)
        next_state = _simplex.remember(weights, state, active)
        weights = (weights + lambda_ * wanted) / (1 + lambda_)
        return unless_out_of_range(weights, lambda_, learning_rate, momentum), next_state

    def for_tasks(tasks):
        numbers = by_position("preference", preference, tasks)
        return sdmgrad(
            num_tasks,
            lambda_,
            numbers,
            learning_rate=learning_rate,
            momentum=momentum,
            steps=steps,
        )

    return Weighting(init, weigh, scaling="common", for_tasks=for_tasks, cross=True)


# Compiled separately, so that calls outside of `jit` compile once.
@functools.partial(jax.jit, static_argnums=0)
def _descend(
    steps: int,
    matrix: jax.Array,
    weights: jax.Array,
    fixed: jax.Array,
    active: jax.Array,
    rate: jax.Array,
    momentum: jax.Array,
) -> jax.Array:
    """Take projected steps to the least (w + fixed)ᵀ M (w + fixed) / 2 on the simplex."""

    def step(_, carry):
        weights, velocity = carry
        velocity = momentum * velocity + matrix @ (weights + fixed)
        return _simplex.project(weights - rate * velocity, active), velocity

    return lax.fori_loop(0, steps, step, (weights, jnp.zeros_like(weights)))[0]


def _over_mean_norm(gramian: jax.Array, active: jax.Array) -> jax.Array:
    """Divide by the square of the mean norm of the active tasks; zero where there is none."""
    squares = squared_norms(gramian)
    norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    mean = jnp.sum(norms) / jnp.maximum(jnp.sum(active.astype(norms.dtype)), 1)
    inverse = jnp.where(mean > 0, 1 / jnp.where(mean > 0, mean, 1), 0)
    # Products that are far larger than the squared norms do not leave the range either.
    limit = float(jnp.finfo(gramian.dtype).max) ** 0.5
    return jnp.clip(gramian * inverse * inverse, -limit, limit)
