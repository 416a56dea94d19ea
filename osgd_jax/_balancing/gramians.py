"""The Gramian of the task gradients, and their weighted sum."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from osgd_jax._balancing import scopes
from osgd_jax._balancing.blocks import merge
from osgd_jax._balancing.gramian_kernels import combine_leaf, row_products, symmetrized
from osgd_jax._gradients.rows import (
    ArrayTree,
    TaskRows,
    accumulation_dtype,
    densify,
    is_task_rows,
    max_abs,
    of_tasks,
)
from osgd_jax._math import safe_sqrt, squared_norms
from osgd_jax._validation import structure_error

# What gradients look like that have no task axis.
_ORDINARY = (
    " Ordinary gradients have no task axis: take task gradients by osgd_jax.task_grads or"
    " osgd_jax.value_and_task_grads."
)


def gramian(grads: ArrayTree, others: ArrayTree | None = None) -> jax.Array:
    """Compute the inner products of the task gradients over all parameters, G = J Jᵀ.

    Gradients of one batch share the noise of that batch, so that G is biased: its expectation is
    the Gramian of the true gradients plus the covariance of the noise, which is most of G late in
    training. Given `others`, task gradients of a second, independent batch at the same parameters,
    this computes (J Jₒᵀ + Jₒ Jᵀ) / 2 instead, whose expectation is the Gramian of the true
    gradients. It is not positive semidefinite, and a number on its diagonal can be negative.

    Gradients of the step before are not independent, because that step moved the parameters along
    their noise. The guide "Do my losses conflict?" has recipes for two halves of a batch and for
    all pairs of several batches.

    Args:
      grads: a tree of `TaskRows` or of arrays `[K, *parameter.shape]`.
      others: task gradients of the same losses and parameters for another batch, or None.

    Returns:
      Array `[K, K]`, symmetric, in float32, or float64 where a gradient is float64.

    Raises:
      ValueError: a tree without leaves, leaves that disagree on K, or are not of a real floating
        dtype; `others` with another structure, other shapes or other tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> first, second = jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 1.0], [2.0, 1.0]])
      >>> print(osgd_jax.gramian(first))
      [[1. 1.]
       [1. 2.]]
      >>> print(osgd_jax.gramian(first, second))
      [[0.  1.5]
       [1.5 3. ]]
    """
    if others is not None:
        return _cross_gramian(*paired(grads, others))
    blocks = merge([leaves_of(grads)])
    scales = scales_of([block.rows[0] for block in blocks])
    products = [block.gramian(scales) for block in blocks]
    (scaled,) = scopes.one_group(blocks).sum(products, blocks)
    return scales[:, None] * scaled * scales[None]


def _cross_gramian(leaves: list[TaskRows], others: list[TaskRows]) -> jax.Array:
    blocks = merge([leaves, others])
    dtype = accumulation_dtype([*leaves, *others])
    scales, other_scales = (
        scales_of(list(batch)).astype(dtype)
        for batch in zip(*(block.rows for block in blocks), strict=True)
    )
    products = [
        row_products(
            block.rows[0].rows,
            1 / of_tasks(scales, block.tasks),
            block.rows[1].rows,
            1 / of_tasks(other_scales, block.tasks),
        )
        for block in blocks
    ]
    (scaled,) = scopes.one_group(blocks).sum(products, blocks)
    return symmetrized(scales[:, None] * scaled * other_scales[None])


def paired(
    grads: ArrayTree, others: ArrayTree, params: ArrayTree | None = None
) -> tuple[list[TaskRows], list[TaskRows]]:
    """Check task gradients of two batches; give both leaves of the same tasks.

    Raises:
      ValueError: as `leaves_of`, or they do not fit each other.
    """
    leaves, other_leaves = leaves_of(grads, params), leaves_of(others)
    flat, treedef = jax.tree_util.tree_flatten_with_path(others, is_leaf=is_task_rows)
    paths = [path for path, _ in flat]
    if treedef != jax.tree.structure(grads, is_leaf=is_task_rows):
        raise structure_error(others, grads, ("others", "grads"), is_leaf=is_task_rows)
    for path, leaf, other in zip(paths, leaves, other_leaves, strict=True):
        ours, theirs = ((each.num_tasks, *each.rows.shape[1:]) for each in (leaf, other))
        if ours != theirs:
            raise ValueError(
                f"others at {jax.tree_util.keystr(path) or 'the root'} must have shape {ours}, with"
                f" the task axis in front, as grads have; got {theirs}."
            )
    _check_names(paths * 2, leaves + other_leaves)
    both = [_of_same_tasks(*each) for each in zip(leaves, other_leaves, strict=True)]
    return [leaf for leaf, _ in both], [other for _, other in both]


def _of_same_tasks(leaf: TaskRows, other: TaskRows) -> tuple[TaskRows, TaskRows]:
    if leaf.tasks == other.tasks:
        return leaf, other
    everything = tuple(range(leaf.num_tasks))
    dense = [dataclasses.replace(x, rows=densify(x), tasks=everything) for x in (leaf, other)]
    return dense[0], dense[1]


def combine(grads: ArrayTree, weights: jax.Array) -> ArrayTree:
    """Compute the weighted sum of the task gradients, Jᵀw.

    Args:
      grads: a tree of `TaskRows` or of arrays `[K, *parameter.shape]`.
      weights: array `[K]`.

    Returns:
      The tree with an array of the parameter's shape, in the gradient's dtype, for each leaf.

    Raises:
      ValueError: leaves that disagree on K or are not of a real floating dtype, or `weights` of
        another shape than `[K]`.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> grads = {"w": jnp.array([[1.0, 0.0], [-1.0, 1.0]])}
      >>> osgd_jax.combine(grads, jnp.array([2.0, 1.0]))
      {'w': Array([1., 1.], dtype=float32)}
    """
    leaves = leaves_of(grads)
    weights = jnp.asarray(weights)
    if leaves and weights.shape != (leaves[0].num_tasks,):
        raise ValueError(
            f"weights has shape {weights.shape}; the gradients are of {leaves[0].num_tasks} tasks"
            f" and need shape ({leaves[0].num_tasks},)."
        )
    treedef = jax.tree.structure(grads, is_leaf=is_task_rows)
    return treedef.unflatten([combine_leaf(leaf, weights) for leaf in leaves])


def task_cosines(gramian: jax.Array) -> jax.Array:
    """Compute the cosines of the angles between the task gradients.

    Gradients of one batch share its noise, so their cosines do not tell whether the losses agree.
    Pass an unbiased Gramian to `diagnose` instead: a negative number on its diagonal gives NaN
    here.

    Args:
      gramian: array `[K, K]`, as from `gramian`.

    Returns:
      Array `[K, K]`. The cosine with a gradient of zero is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> print(osgd_jax.task_cosines(jnp.array([[1.0, -1.0], [-1.0, 4.0]])))
      [[ 1.  -0.5]
       [-0.5  1. ]]
    """
    norms = safe_sqrt(squared_norms(gramian))
    inverse = jnp.where(norms == 0, 0, 1 / jnp.where(norms == 0, 1, norms))
    return inverse[:, None] * gramian * inverse[None]


def leaves_of(grads: ArrayTree, params: ArrayTree | None = None) -> list[TaskRows]:
    """Check task gradients; give every leaf the form of `TaskRows`, dense ones with all K tasks."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(grads, is_leaf=is_task_rows)
    leaves: list[TaskRows] = []
    for path, leaf in flat:
        name = f"the gradient at {jax.tree_util.keystr(path) or 'the root'}"
        if not isinstance(leaf, TaskRows):
            leaf = jnp.asarray(leaf)
            if leaf.ndim == 0 or leaf.shape[0] == 0:
                raise ValueError(
                    f"{name} has shape {leaf.shape}; it needs a leading axis of K >= 1 tasks, as"
                    " from osgd_jax.task_grads or jax.jacrev of stacked losses."
                )
            leaf = TaskRows(leaf, tuple(range(leaf.shape[0])), leaf.shape[0])
        known = tuple(sorted(set(leaf.tasks) & set(range(leaf.num_tasks))))
        if known != leaf.tasks or leaf.rows.shape[:1] != (len(known),) or leaf.num_tasks < 1:
            raise ValueError(
                f"{name} has rows of shape {leaf.rows.shape} for the tasks {leaf.tasks} of"
                f" {leaf.num_tasks}; it needs a row for each, in ascending order, and K >= 1 tasks."
            )
        check_dtype(name, leaf.rows.dtype)
        leaves.append(leaf)
    if params is not None:
        if jax.tree.structure(params) != treedef:
            names = "the task gradients", "params"
            raise structure_error(grads, params, names, is_leaf=is_task_rows)
        _check_against(params, [path for path, _ in flat], leaves)
    for (path, _), leaf in zip(flat, leaves, strict=True):
        if leaf.num_tasks != leaves[0].num_tasks:
            raise ValueError(
                f"the gradient at {jax.tree_util.keystr(path)} has {leaf.num_tasks} tasks (leading"
                f" axis), others have {leaves[0].num_tasks}; all must have the same.{_ORDINARY}"
            )
    _check_names([path for path, _ in flat], leaves)
    return leaves


def _check_names(paths: list, leaves: list[TaskRows]) -> None:
    """Raise a ValueError for leaves of differently named tasks; those without names fit all."""
    named = [each for each in zip(paths, leaves, strict=True) if each[1].names is not None]
    for path, leaf in named:
        first = named[0][1]
        if (leaf.names, leaf.ordered) != (first.names, first.ordered):
            raise ValueError(
                f"the gradient at {jax.tree_util.keystr(path)} is of the tasks {leaf.names!r},"
                f" others of {first.names!r}; take all of one function of the losses."
            )


def check_dtype(name: str, dtype: Any) -> None:
    """Raise a ValueError unless the dtype is real, floating and has 16 bits or more."""
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 16:
        raise ValueError(
            f"{name} has dtype {dtype}; it must be of a real floating dtype of at least 16 bits,"
            " such as bfloat16."
        )


def _check_against(params: ArrayTree, paths: list, leaves: list[TaskRows]) -> None:
    for path, leaf, param in zip(paths, leaves, jax.tree.leaves(params), strict=True):
        if leaf.rows.shape[1:] != jnp.shape(param):
            hint = ""
            if leaf.rows.shape == jnp.shape(param):
                hint = (
                    f"{_ORDINARY} Let wrappers that accumulate, such as optax.MultiSteps, stand"
                    " after this in optax.chain, not around it."
                )
            raise ValueError(
                f"the gradient at {jax.tree_util.keystr(path) or 'the root'} has shape"
                f" {leaf.rows.shape} with the task axis in front; the parameter has shape"
                f" {jnp.shape(param)}.{hint}"
            )


def scales_of(leaves: Sequence[TaskRows]) -> jax.Array:
    """Compute the `row_scales` of the tasks' gradients over all leaves."""
    if not leaves:
        raise ValueError("there is no gradient in the tree, so the number of tasks is unknown.")
    dtype = accumulation_dtype(leaves)
    largest = [max_abs(leaf, dtype) for leaf in leaves]
    return row_scales(scopes.one_group(leaves).max(largest, leaves)[0])


def row_scales(largest: jax.Array) -> jax.Array:
    """Find the powers of two that bring gradients of these magnitudes to the order of one."""
    # Subnormal numbers count as zero: processors differ in whether they compute with them.
    scalable = jnp.isfinite(largest) & (largest >= jnp.finfo(largest.dtype).tiny)
    _, exponents = jnp.frexp(jnp.where(scalable, largest, 1))
    # At most 2^126 in float32, whose reciprocal is no subnormal: compilers divide by multiplying.
    exponents = jnp.minimum(exponents - 1, jnp.finfo(largest.dtype).maxexp - 2)
    return jnp.ldexp(jnp.ones_like(largest), exponents)
