"""PCD: the primary gradient, bent as little as the progress of the other tasks needs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._math import safe_hypot, safe_sqrt, squared_norms
from osgd_jax._tasks import Tasks, numbered
from osgd_jax._validation import (
    check_decay,
    check_positive,
    check_range,
    unless_out_of_range,
)
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._by_task import by_position, index_of
from osgd_jax.weightings._solvers import rounding, shortest_combination
from osgd_jax.weightings._tools import check_num_tasks
from osgd_jax.weightings._unit_rows import UnitRows, unit_rows


class PCDState(NamedTuple):
    """State of `pcd`.

    Attributes:
      norms: root mean squares of the norms of the gradients, `[K]`.
      total: sum of the weights of the steps in these means; 1 for the last step.
    """

    norms: jax.Array
    total: jax.Array


@named
def pcd(
    num_tasks: int,
    tau: float | Sequence[float] | Mapping[str, float] | jax.Array = 0.02,
    decay: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    primary: int | str = 0,
) -> Weighting:
    """Follow one task's gradient as closely as a promise to each other task allows.

    With :math:`v_i` the unbiased running mean of :math:`‖g_i‖²`, the normalized gradients are

    .. math::

       h_i = g_i (v_i + ε)^{-1/2}

    and the direction is the d nearest to the h of the primary task with

    .. math::

       ⟨h_j, d⟩ ≥ τ_j ‖h_j‖²

    for every other task j. It makes at least the share :math:`τ_j` of the progress that a step
    along :math:`h_j` would make. It is then scaled to the length of the primary gradient.

    A primary gradient of zero gives zero. If the promises cannot all be kept, the direction is the
    primary gradient. In float32 this also happens if only directions some hundred times as long as
    the normalized gradients keep them.

    Source: Varam and AlHajri, "Not All Objectives Are Born Equal: Priority-Constrained Descent for
    Hierarchical Multi-Objective Optimization", TMLR 2026, arXiv 2606.29521.

    Args:
      num_tasks: number of tasks K.
      tau: the share, in [0, 1]: a number, or one for each other task, in the order of the tasks or
        by their names.
      decay: decay of the running mean, in [0, 1).
      eps: added to the mean squared norm; with 0, the direction does not change when all gradients
        of a task are multiplied by one number.
      primary: name or index of the task to follow; its name for losses in a dict.

    Returns:
      A weighting with state. The weights are not negative. `tau`, `decay` and `eps` may be traced.

    Raises:
      ValueError: a number out of its range; while tracing, another number of tasks, or other names.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weighting = weightings.pcd(num_tasks=2)
      >>> state = weighting.init()
      >>> for _ in range(3):
      ...     weights, state = weighting.weigh(gramian, state)
      >>> print(weights.round(2))
      [1.15       0.3]
    """
    num_tasks = check_positive("num_tasks", num_tasks)
    tau = check_range("tau", tau, "in [0, 1]", lambda t: (t >= 0) & (t <= 1), most_axes=1)
    decay = check_decay(decay)
    eps = check_range("eps", eps, "at least 0", lambda e: e >= 0)
    if not isinstance(tau, Mapping) and np.shape(tau) not in ((), (num_tasks - 1,)):
        raise ValueError(
            f"tau={tau!r} must be a number, or one for each of the {num_tasks - 1} tasks beside"
            " the primary one."
        )
    if not isinstance(primary, str):
        index_of("primary", primary, numbered(num_tasks))

    def positions(tasks: Tasks) -> tuple[int, Any]:
        index = index_of("primary", primary, tasks)
        others = tasks._replace(names=tasks.names[:index] + tasks.names[index + 1 :])
        return index, by_position("tau", tau, others)

    def for_tasks(tasks: Tasks) -> Weighting:
        index, shares = positions(tasks)
        return pcd(num_tasks, shares, decay, eps, index)

    def init() -> PCDState:
        return PCDState(jnp.zeros(num_tasks), jnp.zeros(()))

    def weigh(
        gramian: jax.Array,
        state: PCDState,
        *,
        losses: jax.Array | None = None,
        key: jax.Array | None = None,
        scales: jax.Array | None = None,
    ) -> tuple[jax.Array, PCDState]:
        del losses, key
        check_num_tasks(num_tasks, gramian, "pcd")
        index, shares = positions(numbered(num_tasks))
        # In units of norms: their squares would leave the range of float32.
        norms = safe_sqrt(squared_norms(gramian)) * (1 if scales is None else scales)
        norms = norms.astype(state.norms.dtype)
        total = 1 + decay * state.total
        means = safe_hypot(jnp.sqrt(1 - 1 / total) * state.norms, norms / jnp.sqrt(total))
        divisors = safe_hypot(means, jnp.sqrt(eps))
        normalized = norms / jnp.where(divisors > 0, divisors, 1)

        shares = jnp.broadcast_to(jnp.asarray(shares), num_tasks - 1)
        own = normalized[index]
        wanted = jnp.insert(shares, index, 0) * normalized / jnp.where(own > 0, own, 1)
        # Beside a primary gradient next to nothing.
        wanted = jnp.minimum(wanted, 1e30)
        weights = _nearest(unit_rows(gramian, scales), wanted.astype(gramian.dtype), index)
        next_state = PCDState(means.astype(state.norms.dtype), total.astype(state.total.dtype))
        return unless_out_of_range(weights, tau, decay, eps), next_state

    return Weighting(init, weigh, scaling="row", for_tasks=for_tasks)


def _nearest(rows: UnitRows, wanted: jax.Array, primary: int) -> jax.Array:
    """Weigh for the d nearest to the unit primary gradient u_p with <u_j, d> >= wanted_j."""
    is_primary = jnp.arange(len(wanted)) == primary
    # The problem is homogeneous; it is solved in numbers of the order of one.
    largest = jnp.maximum(jnp.max(wanted), 1)
    missing = jnp.where(
        is_primary, jnp.finfo(wanted.dtype).min, (wanted - rows.cosines[primary]) / largest
    )
    coefficients = jnp.where(is_primary, 1 / largest, shortest_combination(rows.cosines, missing))

    squared_norm = coefficients @ rows.cosines @ coefficients
    has_direction = squared_norm > 4 * rounding(rows.cosines) * jnp.sum(coefficients) ** 2
    has_direction &= rows.active[primary]
    length = jnp.sqrt(jnp.where(has_direction, squared_norm, 1))
    weights = rows.norms[primary] / length * coefficients / rows.norms
    return jnp.where(has_direction, weights, 0)
