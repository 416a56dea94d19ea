"""The common part of methods with a memory as large as the Jacobian."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from osgd_jax._balancing import common, gramians, scopes, sharded
from osgd_jax._balancing.gramian_kernels import combine_leaf
from osgd_jax._balancing.scopes import Groups, Scope
from osgd_jax._gradients.rows import (
    ArrayTree,
    TaskRows,
    accumulation_dtype,
    densify,
    is_task_rows,
)
from osgd_jax._math import at_least_float32
from osgd_jax._validation import check_positive, check_range, flatten_like
from osgd_jax.weightings._tools import check_losses, check_num_tasks


class MemoryState(NamedTuple):
    """State of `moco`, `db_mtl` and `excess_mtl`.

    Attributes:
      memory: what is remembered of the gradients, `[K, *parameter.shape]` for each parameter, in
        float32 or wider.
      tasks: what is remembered of each task.
      steps: number of steps taken.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> state = osgd_jax.moco(num_tasks=2).init(jnp.zeros(3))
      >>> state.memory.shape, state.tasks.shape, int(state.steps)
      ((2, 3), (2,), 0)
    """

    memory: ArrayTree
    tasks: Any
    steps: jax.Array


class Step(NamedTuple):
    """The result of one step of a method.

    Attributes:
      rows: the rows to be combined, one array `[K, *parameter.shape]` for each parameter.
      weights: the weights of the rows, `[K]`.
      memory: the next memory, as `rows`.
      tasks: the next state of the tasks.
    """

    rows: list[jax.Array]
    weights: jax.Array
    memory: list[jax.Array]
    tasks: Any


class StepFn(Protocol):
    """One step of a method on the gradients of a group of parameters."""

    def __call__(
        self,
        gradients: list[jax.Array],
        state: MemoryState,
        groups: Groups,
        losses: jax.Array | None,
    ) -> Step:
        """Return the rows to combine and the next state, given `state.memory` as a list."""
        ...


def with_memory(
    method: str, num_tasks: int, scope: Scope, tasks: Any, step: StepFn, needs_losses: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Make a transformation of a method that remembers the gradients of one group.

    The memory of parameters outside the group is zero, and kept so that its structure follows from
    `init(params)` alone. A step whose gradients are not finite gives NaN in every array of the
    group and does not change the state, because a NaN in the memory would never go away.
    """
    scopes.check_name(scope)
    num_tasks = check_positive("num_tasks", num_tasks)

    def init(params: ArrayTree) -> Any:
        def zeros(param: Any) -> jax.Array:
            gramians.check_dtype("a parameter", jnp.result_type(param))
            dtype = at_least_float32(jnp.result_type(param))
            # Stacked, so that the sharding of the parameters is kept.
            return jnp.stack([jnp.zeros_like(param, dtype)] * num_tasks)

        return MemoryState(jax.tree.map(zeros, params), tasks(), jnp.zeros((), jnp.int32))

    def combine(
        grads: common.TaskGradients, state: MemoryState, **extra_args: Any
    ) -> tuple[list[jax.Array], MemoryState]:
        del extra_args
        leaves, dtype = grads.leaves, accumulation_dtype(grads.leaves)
        sharded.check_same(leaves, "average them first, by jax.lax.pmean")
        own = jnp.ones(leaves[0].num_tasks, dtype)
        check_num_tasks(num_tasks, own, method)
        losses = check_losses(grads.losses, own, method) if needs_losses else None
        groups = scopes.group(scope, leaves, grads.tree, grads.params)
        common.check_one_group(groups, method)
        alone = [combine_leaf(leaf, own) for leaf in leaves]
        if groups.num_groups == 0:
            return alone, state

        memory = _memory_of(state, grads)
        gradients = [jnp.asarray(densify(leaf)).astype(dtype) for leaf in leaves]
        # By default, accelerators round what they multiply to bfloat16 or TF32.
        with jax.default_matmul_precision("highest"):
            new = step(gradients, state._replace(memory=memory), groups, losses)

        finite = jnp.all(jnp.isfinite(largest_of(gradients, groups)))
        if losses is not None:
            finite &= jnp.all(jnp.isfinite(losses))
        weights = common.saturate(new.weights[None], largest_of(new.rows, groups)[None])[0]
        weights = jnp.where(finite, weights, jnp.nan)
        together = [
            combine_rows(rows, weights, leaf) for rows, leaf in zip(new.rows, leaves, strict=True)
        ]
        treedef = jax.tree.structure(grads.tree, is_leaf=is_task_rows)
        kept = treedef.unflatten(groups.select(memory, new.memory))
        next_state = MemoryState(kept, new.tasks, state.steps + 1)
        next_state = common.unless_spoiled(next_state, state, finite)
        return groups.select(alone, together), next_state

    return common.aggregator(init, combine)


def _memory_of(state: MemoryState, grads: common.TaskGradients) -> list[jax.Array]:
    """Return the memory as a list.

    Raises:
      ValueError: the gradients are not for the parameters of the state.
    """
    remedy = "The state is for other parameters; init(params) makes one for these."
    names = "the state", "the task gradients"
    memory = flatten_like(state.memory, grads.tree, names, remedy, is_leaf=is_task_rows)
    for rows, leaf in zip(memory, grads.leaves, strict=True):
        if rows.shape[1:] != leaf.rows.shape[1:]:
            raise ValueError(
                f"a gradient has shape {leaf.rows.shape} with the task axis in front; the state is"
                f" for a parameter of shape {rows.shape[1:]}."
            )
    return memory


def combine_rows(rows: jax.Array, weights: jax.Array, leaf: TaskRows) -> jax.Array:
    """Add up dense rows with weights, in the dtype of the gradient."""
    dense = TaskRows(rows, tuple(range(leaf.num_tasks)), leaf.num_tasks)
    return combine_leaf(dense, weights).astype(leaf.rows.dtype)


def largest_of(rows: list[jax.Array], groups: Groups) -> jax.Array:
    """Find the largest magnitude in the rows of each task over the group, `[K]`."""
    return groups.max([jnp.max(jnp.abs(r), axis=_parameter_axes(r), initial=0) for r in rows])[0]


def sum_of(rows: list[jax.Array], groups: Groups) -> jax.Array:
    """Add up the rows of each task over the group, `[K]`."""
    return groups.sum([jnp.sum(r, axis=_parameter_axes(r)) for r in rows])[0]


def by_task(values: jax.Array, rows: jax.Array) -> jax.Array:
    """Shape one number for each task, `[K]`, to multiply rows `[K, ...]`."""
    return values.reshape(-1, *[1] * (rows.ndim - 1))


def rate_at(rate: optax.ScalarOrSchedule, steps: jax.Array) -> Any:
    """Return the rate after this many steps, from a number or a schedule."""
    return rate(steps) if callable(rate) else rate


def check_rate(rate: optax.ScalarOrSchedule, name: str, most: float) -> optax.ScalarOrSchedule:
    """Check a number between zero and `most`, as `check_range`; a schedule is returned as it is."""
    limit = "at least 0" if np.isinf(most) else f"between 0 and {most:g}"
    if callable(rate):
        return rate
    return check_range(name, rate, limit, lambda rate: (rate >= 0) & (rate <= most))


def _parameter_axes(rows: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, rows.ndim))
