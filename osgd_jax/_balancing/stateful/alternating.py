"""Methods that take the gradient of one loss a step and remember the others."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from osgd_jax import weightings
from osgd_jax._balancing import sharded
from osgd_jax._balancing.aggregate import aggregate
from osgd_jax._balancing.sharded import AxisName
from osgd_jax._gradients.rows import TaskRows
from osgd_jax._math import at_least_float32
from osgd_jax._tasks import Tasks, numbered
from osgd_jax._validation import (
    check_decay,
    check_positive,
    check_range,
    unless_out_of_range,
)
from osgd_jax.weightings._by_task import index_of


class TaskMomentaState(NamedTuple):
    """State of `task_momenta`.

    Attributes:
      momenta: running means, `[K, *parameter.shape]`, in float32 or wider.
      totals: sums of the weights in these means, `[K]`.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> state = osgd_jax.task_momenta(num_tasks=2).init(jnp.zeros(3))
      >>> state.momenta.shape, state.totals.shape
      ((2, 3), (2,))
    """

    momenta: Any
    totals: jax.Array


def task_momenta(
    num_tasks: int | Sequence[str], decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Turn the gradient of one loss a step into task gradients, for `aggregate` after it.

    The transformation keeps an unbiased running mean of the gradients of each loss and returns the
    means of all losses. Before its first turn, a loss has a gradient of zero and takes no part.

    Args:
      num_tasks: number of losses K, or their names.
      decay: decay of the running means, from one turn of a loss to its next.

    Returns:
      A transformation. Its `update(grads, state, params=None, *, task)` takes the gradient of the
      loss `task`, an index from 0, which may be traced, or one of the names. It returns task
      gradients, `TaskRows` where there are names. A gradient that is not finite makes the row of
      its loss NaN and is not remembered. A traced index out of range does the same to the nearest
      row.

    Raises:
      ValueError: `num_tasks` below 1 or `decay` outside [0, 1); from `update`, a task index that is
        not an integer, or that is known and out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import osgd_jax
      >>> tx = optax.chain(
      ...     osgd_jax.task_momenta(num_tasks=2), osgd_jax.aggregate(osgd_jax.weightings.pcgrad())
      ... )
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for task, grad in enumerate(jnp.array([[1.0, 0.0], [-1.0, 1.0]])):
      ...     updates, state = tx.update(grad, state, params, task=task)
      >>> print(updates.round(2))
      [0.5 1.5]
    """
    names = None
    if isinstance(num_tasks, Sequence) and not isinstance(num_tasks, str):
        names = tuple(num_tasks)
    count = check_positive("num_tasks", num_tasks if names is None else len(names))
    decay = check_decay(decay)

    def init(params: Any) -> TaskMomentaState:
        momenta = jax.tree.map(lambda param: jnp.stack([_zeros(param)] * count), params)
        return TaskMomentaState(momenta, jnp.zeros(count))

    def update(updates: Any, state: Any, params: Any = None, *, task: Any = -1, **extra_args: Any):
        del params, extra_args
        if isinstance(task, str):
            task = index_of("task", task, Tasks(names) if names else numbered(count))
        wanted = f"a task index below num_tasks={count}: tx.update(..., task=step % K)"
        if not jnp.issubdtype(jnp.result_type(task), jnp.integer):
            raise ValueError(f"task={task!r} must be {wanted}.")
        checked = check_range("task", task, wanted, lambda i: (i >= 0) & (i < count))
        updates = jax.tree.map(lambda grad: unless_out_of_range(grad, checked), updates)
        task = jnp.clip(task, 0, count - 1)
        # 1 + decay + decay^2 + ...: the mean of a first turn is its gradient.
        total = 1 + decay * state.totals[task]

        def follow(momentum: jax.Array, grad: jax.Array) -> jax.Array:
            change = grad.astype(momentum.dtype) - momentum[task]
            return momentum.at[task].add(change / total.astype(momentum.dtype))

        means = jax.tree.map(follow, state.momenta, updates)
        new_state = TaskMomentaState(means, state.totals.at[task].set(total))
        if names:
            tasks = tuple(range(count))
            rows = jax.tree.map(lambda mean: TaskRows(mean, tasks, count, names), means)
        else:
            rows = means
        return rows, _unless_spoiled(new_state, state, updates)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_implied_variance(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Divide updates as Adam divides its unbiased momentum."""

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(_zeros, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates: Any, state: Any, params: Any = None):
        del params
        count = state.count + 1

        def bias(decay: float, like: jax.Array) -> jax.Array:
            return 1 - lax.pow(jnp.asarray(decay, like.dtype), count)

        mu = jax.tree.map(lambda mean: mean * bias(b1, mean), updates)
        grads = jax.tree.map(lambda new, old: (new - b1 * old) / (1 - b1), mu, state.mu)
        nu = jax.tree.map(lambda grad, old: b2 * old + (1 - b2) * grad**2, grads, state.nu)
        scaled = jax.tree.map(
            lambda mean, square: mean / (jnp.sqrt(square / bias(b2, square)) + eps), updates, nu
        )
        new_state = optax.ScaleByAdamState(count, mu, nu)
        return scaled, _unless_spoiled(new_state, state, updates)

    return optax.GradientTransformation(init, update)


def _zeros(param: Any) -> jax.Array:
    return jnp.zeros_like(param, at_least_float32(jnp.result_type(param)))


def _unless_spoiled(new_state: Any, state: Any, updates: Any) -> Any:
    """Return the new state, or the old one if a number in the updates is not finite."""
    finite = jax.tree.reduce(lambda ok, leaf: ok & jnp.all(jnp.isfinite(leaf)), updates, True)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)


def m_config(
    learning_rate: optax.ScalarOrSchedule,
    num_tasks: int | Sequence[str],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Apply M-ConFIG: Adam along `weightings.config` of momenta, from one gradient a step.

    A step costs the gradient of one loss instead of all K. This is less than a step of Adam on the
    sum if each loss has a separate forward pass, as in physics-informed nets. The state holds K + 2
    copies of the parameters. Take the losses in turn: `task=step % K`.

    Source: Liu, Chu and Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural
    Networks", ICLR 2025, arXiv 2408.11104. In the paper, training starts when each loss has had a
    turn.

    Args:
      learning_rate: a number or a schedule.
      num_tasks: number of losses K, or their names.
      b1: decay of the momenta, from one turn of a loss to its next.
      b2: decay of the mean of the squares.
      eps: added to its root.
      axis_name: inside `jax.shard_map` or `jax.pmap`, the mesh axis (or axes) that the batch is
        split over. Each device then gives the gradient of the loss on its own examples, as for
        `aggregate`, and all take the step for their mean.

    Returns:
      A transformation. Its `update(grads, state, params=None, *, task)` takes the gradient of the
      loss `task`, an index from 0, which may be traced, or one of the names. A traced index out
      of range makes the update NaN and leaves the state as it was.

    Raises:
      ValueError: as `task_momenta`; a decay outside [0, 1), or `eps` below zero.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> tx = osgd_jax.m_config(0.1, num_tasks=2)
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for task, grad in enumerate(jnp.array([[1.0, 0.0], [-1.0, 1.0]])):
      ...     updates, state = tx.update(grad, state, params, task=task)
      >>> print(updates.round(2))
      [-0.05 -0.07]
    """
    b1, b2 = check_decay(b1, "b1"), check_decay(b2, "b2")
    eps = check_range("eps", eps, "at least 0", lambda eps: eps >= 0)
    chained = optax.chain(
        task_momenta(num_tasks, b1),
        aggregate(weightings.config(), "all", axis_name=() if axis_name else None),
        _scale_by_implied_variance(b1, b2, eps),
        optax.scale_by_learning_rate(learning_rate),
    )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any):
        # Averaged here, one gradient is sent; by `aggregate` it would be K.
        updates = sharded.average(updates, axis_name)
        return chained.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(chained.init, update)
