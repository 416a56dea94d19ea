"""Checks that all transformations of task gradients share: losses, keys, numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from osgd_jax import _tasks
from osgd_jax._balancing import gramians
from osgd_jax._balancing.scopes import Groups
from osgd_jax._gradients.rows import ArrayTree, TaskRows, is_task_rows
from osgd_jax._tasks import Tasks

try:
    from optax.experimental import aggregating

    Aggregator = aggregating.Aggregator
except ImportError:  # an older optax
    Aggregator = optax.GradientTransformationExtraArgs


class TaskGradients(NamedTuple):
    """The arguments of an update, checked.

    Attributes:
      leaves: task gradients of each parameter array.
      tree: the same, as they were given.
      params: the parameters, or None.
      tasks: the K tasks.
      losses: `[K]`, or None.
    """

    leaves: list[TaskRows]
    tree: ArrayTree
    params: ArrayTree | None
    tasks: Tasks
    losses: jax.Array | None


class Combine(Protocol):
    """One step of a method: from task gradients to an update."""

    def __call__(
        self, grads: TaskGradients, state: Any, **extra_args: Any
    ) -> tuple[list[jax.Array], Any]:
        """Return an array for each parameter, and the next state."""
        ...


def aggregator(
    init: optax.TransformInitFn, combine: Combine
) -> optax.GradientTransformationExtraArgs:
    """Make a transformation of a function that combines task gradients.

    Its `update` raises a ValueError for gradients or losses that do not fit the rest. A tree
    without arrays is its own update.
    """

    def update(
        updates: ArrayTree,
        state: Any,
        params: ArrayTree | None = None,
        *,
        losses: Any = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, Any]:
        leaves = gramians.leaves_of(updates, params)
        if not leaves:
            return updates, state
        values = None if losses is None else _stacked(losses, leaves[0].num_tasks)
        tasks = tasks_of(leaves, losses)
        grads = TaskGradients(leaves, updates, params, tasks, values)
        combined, next_state = combine(grads, state, **extra_args)
        treedef = jax.tree.structure(updates, is_leaf=is_task_rows)
        return treedef.unflatten(combined), next_state

    return Aggregator(init, update)


def _stacked(losses: Any, num_tasks: int) -> jax.Array:
    """Return the losses, an array or a tree of K scalars, as an array `[K]`.

    Raises:
      ValueError: something else than K real numbers.
    """
    values, _ = _tasks.as_values(losses)
    values = jnp.stack(values) if isinstance(values, tuple) else values
    if len(values) != num_tasks:
        raise ValueError(
            f"losses has {len(values)} losses; the gradients are of {num_tasks} tasks, and each"
            " needs one."
        )
    return values


def tasks_of(leaves: Sequence[TaskRows], losses: Any) -> Tasks:
    """Return the tasks by the names that the gradients have, or else by those of the losses.

    Raises:
      ValueError: the losses are named or ordered in another way than the gradients.
    """
    unnamed = _tasks.numbered(leaves[0].num_tasks)
    named = [Tasks(leaf.names, leaf.ordered) for leaf in leaves if leaf.names is not None]
    tasks = named[0] if named else unnamed
    if losses is None:
        return tasks
    of_losses = _tasks.tasks_of(losses)
    if tasks in (unnamed, of_losses):
        return of_losses
    if of_losses == unnamed and tasks.ordered:
        return tasks
    raise ValueError(
        f"losses are of the tasks {', '.join(map(repr, of_losses.names))}; the gradients are of"
        f" {', '.join(map(repr, tasks.names))}. Pass the losses as their function returned them."
    )


def check_key(key: jax.Array | int | None) -> None:
    """Raise a ValueError for what is neither a seed nor one PRNG key."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    is_seed = isinstance(key, int) or (
        dtype is not None and jnp.issubdtype(dtype, jnp.integer) and shape == ()
    )
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    is_raw = dtype == jnp.uint32 and len(shape) == 1
    if not (key is None or is_seed or is_typed or is_raw):
        found = repr(key) if dtype is None else f"an array of shape {shape} and dtype {dtype}"
        raise ValueError(
            f"key={found} must be an integer seed or one PRNG key, as from jax.random.key(0)."
        )


def random_key(key: jax.Array | int | None) -> jax.Array | None:
    """Make the key to keep in the state, from a key or a seed that `check_key` let pass."""
    if key is None:
        return None
    # A seed may come as an array, from `optax.inject_hyperparams`.
    if isinstance(key, int) or (key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer)):
        return jax.random.key(key)
    # Copied, so that donating the state leaves the caller's key alone.
    return jnp.copy(key)


def split_key(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Return the key for the next state and the one for this step; None for both from None."""
    return (None, None) if key is None else tuple(jax.random.split(key))


def check_one_group(groups: Groups, method: str) -> None:
    """Raise a ValueError where a method with a state per task is given several groups."""
    if groups.num_groups > 1:
        raise ValueError(
            f"{method} keeps a state per task, for one Gramian; with this scope there are"
            f" {groups.num_groups} groups of parameters. Use scope='shared' or scope='all'."
        )


def saturate(weights: jax.Array, largest: jax.Array) -> jax.Array:
    """Keep the weighted sum of finite gradients finite, where it would leave the dtype's range."""
    scales = jnp.maximum(gramians.row_scales(largest), 1)
    share = jnp.finfo(largest.dtype).max / largest.shape[-1]
    limit = share / scales / jnp.maximum(largest / scales, 1)
    return jnp.clip(weights, -limit, limit)


def unless_spoiled(next_state: Any, state: Any, finite: Any) -> Any:
    """Return the next state; the old one where a gradient, or what was finite in it, is not.

    A NaN that is remembered would never go away, and a weighting may hide it.
    """
    for new, old in zip(jax.tree.leaves(next_state), jax.tree.leaves(state), strict=True):
        if jnp.issubdtype(jnp.result_type(new), jnp.inexact):
            finite &= jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))
    return jax.tree.map(
        lambda new, old: jnp.where(finite, jnp.asarray(new, jnp.result_type(old)), old),
        next_state,
        state,
    )
