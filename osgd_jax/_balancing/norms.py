"""Transformations of task gradients, for use before `aggregate` in a chain."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from osgd_jax._balancing import common, gramians, scopes, sharded
from osgd_jax._balancing.blocks import merge
from osgd_jax._gradients.rows import (
    ArrayTree,
    TaskRows,
    is_task_rows,
    of_tasks,
)
from osgd_jax._math import safe_sqrt
from osgd_jax._tasks import Tasks
from osgd_jax._validation import check_range
from osgd_jax.weightings._by_task import by_position
from osgd_jax.weightings._tools import Numbers, numbers_like


def clip_task_norms(max_norm: Numbers) -> optax.GradientTransformationExtraArgs:
    """Scale down each task's gradient whose norm over all parameters is above a limit.

    This is `optax.clip_by_global_norm` for each task. It takes and returns task gradients, so put
    it before `aggregate` or `orthogonalize` in `optax.chain`. It cannot precede one with an
    `axis_name`, because each device would clip the gradients of its examples.

    Args:
      max_norm: the largest norm that passes unchanged, above zero: one number, or one for each
        task, by name for losses in a dict.

    Returns:
      A transformation of task gradients.

    Raises:
      ValueError: `max_norm` is not above zero; from `update`, as `aggregate`, for limits that are
        not one for each task, and for gradients that differ between the devices of a mesh axis,
        inside `jax.shard_map` (not detected with `check_vma=False`).

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import osgd_jax
      >>> params, grads = jnp.zeros(2), jnp.array([[6.0, 8.0], [0.0, 1.0]])
      >>> clip = osgd_jax.clip_task_norms(5.0)
      >>> clipped, _ = clip.update(grads, clip.init(params), params)
      >>> print(clipped.round(2))
      [[3. 4.]
       [0. 1.]]
      >>> tx = optax.chain(clip, osgd_jax.orthogonalize(), optax.sgd(0.1))
    """
    checked = check_range("max_norm", max_norm, "above zero", lambda norm: norm > 0, most_axes=1)

    def factors(norms: jax.Array, tasks: Tasks) -> jax.Array:
        limits = by_position("max_norm", checked, tasks)
        if np.ndim(limits):
            limits = numbers_like("max_norm", limits, norms)
        return jnp.minimum(limits / jnp.where(norms == 0, 1, norms), 1)

    return _scale_tasks(factors)


def normalize_task_norms() -> optax.GradientTransformationExtraArgs:
    """Scale each task's gradient to norm one over all parameters; a zero gradient stays zero.

    It takes and returns task gradients, so put it before `aggregate` or `orthogonalize` in
    `optax.chain`. Like `clip_task_norms`, it cannot precede one with an `axis_name`.

    Returns:
      A transformation of task gradients.

    Raises:
      ValueError: from `update`, as `clip_task_norms`.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> params, grads = jnp.zeros(2), jnp.array([[0.0, 2.0], [3.0, 0.0]])
      >>> tx = osgd_jax.normalize_task_norms()
      >>> normalized, _ = tx.update(grads, tx.init(params), params)
      >>> print(normalized.round(2))
      [[0. 1.]
       [1. 0.]]
    """
    return _scale_tasks(
        lambda norms, _: jnp.where(norms == 0, 0, 1 / jnp.where(norms == 0, 1, norms))
    )


def task_norms(grads: ArrayTree) -> jax.Array:
    """Compute the norm of each task's gradient over all parameters.

    Args:
      grads: a tree of `TaskRows` or of arrays `[K, *parameter.shape]`.

    Returns:
      Array `[K]` in float32, or float64 where a gradient is float64.

    Raises:
      ValueError: a tree without leaves, leaves that disagree on K, or are not of a real floating
        dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> print(osgd_jax.task_norms({"w": jnp.array([[3.0, 4.0], [0.0, 2.0]])}))
      [5. 2.]
    """
    leaves = [block.rows[0] for block in merge([gramians.leaves_of(grads)])]
    scales = gramians.scales_of(leaves)
    sums = [_squares(leaf, 1 / scales) for leaf in leaves]
    (squares,) = scopes.one_group(leaves).sum(sums, leaves)
    return scales * safe_sqrt(squares)


def _squares(leaf: TaskRows, factors: jax.Array) -> jax.Array:
    """Compute the squared norm of each row times its factor, `[tasks]`."""
    factors = of_tasks(factors, leaf.tasks).reshape(-1, *[1] * (leaf.rows.ndim - 1))
    scaled = leaf.rows.astype(factors.dtype) * factors
    return jnp.sum(jnp.square(scaled), axis=tuple(range(1, leaf.rows.ndim)))


def _scale_tasks(
    factors: Callable[[jax.Array, Tasks], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    def update(
        updates: ArrayTree,
        state: Any,
        params: ArrayTree | None = None,
        *,
        losses: Any = None,
        **extra_args: Any,
    ):
        del extra_args
        leaves = gramians.leaves_of(updates, params)
        if not leaves:
            return updates, state
        sharded.check_same(
            leaves,
            "average them first, by jax.lax.pmean, and leave out axis_name in what comes after",
        )
        scales = factors(task_norms(updates), common.tasks_of(leaves, losses))

        def scale(leaf: TaskRows | jax.Array):
            if isinstance(leaf, TaskRows):
                rows = scale_rows(leaf.rows, of_tasks(scales, leaf.tasks))
                return dataclasses.replace(leaf, rows=rows)
            return scale_rows(leaf, scales)

        def scale_rows(rows: jax.Array, scales: jax.Array) -> jax.Array:
            scales = scales.reshape(-1, *[1] * (rows.ndim - 1))
            return (scales * rows.astype(scales.dtype)).astype(rows.dtype)

        return jax.tree.map(scale, updates, is_leaf=is_task_rows), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
