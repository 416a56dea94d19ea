"""The Gramian of the task gradients, and their weighted sum."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from osgd_jax import _row_blocks, _scopes
from osgd_jax._dtypes import at_least_float32
from osgd_jax._task_rows import ArrayTree, TaskRows, is_task_rows, of_tasks
from osgd_jax.weightings._tools import safe_sqrt, squared_norms

# Up to this many rows are multiplied pair by pair: a product of matrices fills a fraction of the
# units of an accelerator, and of the time of a CPU.
_PAIRWISE_ROWS = 4
# On CPU, elements of all rows together that a core's cache holds.
_BLOCK_ELEMENTS = 2**15
# On CPU, products that are added up one by one; then their sums are.
_SUMMED = 512


def gramian(grads: ArrayTree) -> jax.Array:
    """Compute the inner products of the task gradients over all parameters, G = J Jᵀ.

    Args:
      grads: a tree of `TaskRows` or of arrays `[K, *parameter.shape]`.

    Returns:
      Array `[K, K]` in float32, or float64 where a gradient is float64.

    Raises:
      ValueError: a tree without leaves, leaves that disagree on K, or are not of a real floating
        dtype.
    """
    leaves = leaves_of(grads)
    leaves = _row_blocks.merge(leaves, [0] * len(leaves)).rows
    scales = scales_of(leaves)
    products = [leaf_gramian(leaf, scales) for leaf in leaves]
    (scaled,) = _scopes.one_group(leaves).sum(products, leaves)
    return scales[:, None] * scaled * scales[None]


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

    Args:
      gramian: array `[K, K]`, as from `gramian`.

    Returns:
      Array `[K, K]`. The cosine with a gradient of zero is zero.
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
        _check_against(params, [path for path, _ in flat], leaves, treedef)
    for (path, _), leaf in zip(flat, leaves, strict=True):
        if leaf.num_tasks != leaves[0].num_tasks:
            raise ValueError(
                f"the gradient at {jax.tree_util.keystr(path)} has {leaf.num_tasks} tasks (leading"
                f" axis), others have {leaves[0].num_tasks}; all must have the same."
            )
    return leaves


def check_dtype(name: str, dtype: Any) -> None:
    """Raise a ValueError for a dtype that is no real floating one of 16 bits or more."""
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 16:
        raise ValueError(
            f"{name} has dtype {dtype}; it must be of a real floating dtype of at least 16 bits,"
            " such as bfloat16."
        )


def _check_against(params: ArrayTree, paths: list, leaves: list[TaskRows], treedef: Any) -> None:
    if jax.tree.structure(params) != treedef:
        raise ValueError(
            f"the task gradients have the structure {treedef}; params have"
            f" {jax.tree.structure(params)}."
        )
    for path, leaf, param in zip(paths, leaves, jax.tree.leaves(params), strict=True):
        if leaf.rows.shape[1:] != jnp.shape(param):
            hint = ""
            if leaf.rows.shape == jnp.shape(param):
                hint = (
                    " Ordinary gradients have no task axis: take them by osgd_jax.task_grads, and"
                    " let wrappers that accumulate, such as optax.MultiSteps, stand after this in"
                    " optax.chain, not around it."
                )
            raise ValueError(
                f"the gradient at {jax.tree_util.keystr(path) or 'the root'} has shape"
                f" {leaf.rows.shape} with the task axis in front; the parameter has shape"
                f" {jnp.shape(param)}.{hint}"
            )


def accumulation_dtype(leaves: Sequence[TaskRows]) -> jnp.dtype:
    """Return float32, or a wider dtype where a gradient has it."""
    return at_least_float32(*(leaf.rows.dtype for leaf in leaves))


def max_abs(leaf: TaskRows, dtype: Any) -> jax.Array:
    """Find the largest magnitude in each row, `[tasks]`."""
    parameter_axes = tuple(range(1, leaf.rows.ndim))
    return jnp.max(jnp.abs(leaf.rows), axis=parameter_axes, initial=0).astype(dtype)


def scales_of(leaves: Sequence[TaskRows]) -> jax.Array:
    """Compute the `row_scales` of the tasks' gradients over all leaves."""
    if not leaves:
        raise ValueError("there is no gradient in the tree, so the number of tasks is unknown.")
    dtype = accumulation_dtype(leaves)
    largest = [max_abs(leaf, dtype) for leaf in leaves]
    return row_scales(_scopes.one_group(leaves).max(largest, leaves)[0])


def row_scales(largest: jax.Array) -> jax.Array:
    """Find the powers of two that bring gradients of these magnitudes to the order of one."""
    # Subnormal numbers count as zero: processors differ in whether they compute with them.
    scalable = jnp.isfinite(largest) & (largest >= jnp.finfo(largest.dtype).tiny)
    _, exponents = jnp.frexp(jnp.where(scalable, largest, 1))
    # At most 2^126 in float32, whose reciprocal is no subnormal: compilers divide by multiplying.
    exponents = jnp.minimum(exponents - 1, jnp.finfo(largest.dtype).maxexp - 2)
    return jnp.ldexp(jnp.ones_like(largest), exponents)


def leaf_gramian(leaf: TaskRows, scales: jax.Array) -> jax.Array:
    """Compute the Gramian `[tasks, tasks]` of one leaf's rows over their scales, of `[K]`."""
    return _row_products(leaf.rows, 1 / of_tasks(scales, leaf.tasks))


# Compiled by itself, so that leaves of one shape are traced once.
@jax.jit
def _row_products(rows: jax.Array, factors: jax.Array) -> jax.Array:
    if not rows.size:
        return jnp.zeros(2 * rows.shape[:1], factors.dtype)
    if any(jax.typeof(rows).sharding.spec):
        return _products_in_place(rows, factors)
    # Of shorter rows, which stay in cache, it would take longer to compile than it saves.
    in_one_pass = 1 < len(rows) <= _PAIRWISE_ROWS and rows[0].size > _BLOCK_ELEMENTS
    on_cpu = _products_in_one_pass if in_one_pass else _products_by_block
    return lax.platform_dependent(rows, factors, cpu=on_cpu, default=_products_in_place)


@jax.custom_jvp
def _products_in_one_pass(rows: jax.Array, factors: jax.Array) -> jax.Array:
    """Multiply all pairs of long rows in one reduction.

    On 2 CPU cores, 3 rows of ten million take half as long as by block.
    """
    flat = rows.reshape(len(rows), -1)
    even = flat.shape[1] - flat.shape[1] % _SUMMED
    scaled = [
        row[:even].reshape(-1, _SUMMED).astype(factors.dtype) * factor
        for row, factor in zip(flat, factors, strict=True)
    ]
    pairs = [(i, j) for i in range(len(scaled)) for j in range(i + 1)]
    sums = lax.reduce(
        [scaled[i] * scaled[j] for i, j in pairs],
        [jnp.zeros_like(factors[0])] * len(pairs),
        lambda total, each: [a + b for a, b in zip(total, each, strict=True)],
        (1,),
    )
    total = _symmetric([each.sum() for each in sums], pairs)
    if even == flat.shape[1]:
        return total
    return total + _products_by_block(flat[:, even:], factors)


@_products_in_one_pass.defjvp
def _(primals, tangents):
    # What JAX derives from such a reduction halves it again and again.
    return jax.jvp(_products_by_block, primals, tangents)


def _products_by_block(rows: jax.Array, factors: jax.Array) -> jax.Array:
    """Multiply the rows by each other as matrices, cut so that they fit into a core's cache.

    One pass over long rows; on 2 CPU cores, 8 rows of a million take half as long as pair by pair.
    """
    count, flat = len(rows), rows.reshape(len(rows), -1)
    size = min(max(_BLOCK_ELEMENTS // count, 1), flat.shape[1])
    num_blocks = (flat.shape[1] - 1) // size
    first = flat.shape[1] - num_blocks * size

    def products(block: jax.Array) -> jax.Array:
        scaled = block.astype(factors.dtype) * factors[:, None]
        return lax.dot_general(
            scaled, scaled, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
        )

    def add_block(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + products(lax.dynamic_slice_in_dim(flat, first + i * size, size, axis=1))

    total = products(flat[:, :first])
    return lax.fori_loop(0, num_blocks, add_block, total) if num_blocks else total


def _products_in_place(rows: jax.Array, factors: jax.Array) -> jax.Array:
    """Multiply the rows by each other in their own shape, in which they may be sharded."""
    count = len(rows)
    scaled = [rows[i].astype(factors.dtype) * factors[i] for i in range(count)]
    if count <= _PAIRWISE_ROWS:
        pairs = [(i, j) for i in range(count) for j in range(i + 1)]
        return _symmetric([jnp.sum(scaled[i] * scaled[j]) for i, j in pairs], pairs)
    matrix = jnp.stack(scaled)
    # Contracted as they are: flattening would gather a parameter that is sharded over devices.
    axes = tuple(range(1, matrix.ndim))
    replicated = NamedSharding(jax.typeof(matrix).sharding.mesh, PartitionSpec())
    return jnp.tensordot(
        matrix, matrix, (axes, axes), precision=lax.Precision.HIGHEST, out_sharding=replicated
    )


def _symmetric(products: list[jax.Array], pairs: list[tuple[int, int]]) -> jax.Array:
    """Arrange products of pairs `(i, j)`, `i >= j`, as a matrix."""
    of_pair = dict(zip(pairs, products, strict=True))
    count = pairs[-1][0] + 1
    entries = [of_pair[max(i, j), min(i, j)] for i in range(count) for j in range(count)]
    return jnp.stack(entries).reshape(count, count)


def combine_leaf(leaf: TaskRows, weights: jax.Array) -> jax.Array:
    """Add up one leaf's rows, with weights `[K]`, in the dtype of the rows."""
    if not leaf.tasks:
        return leaf.rows.sum(axis=0)  # zeros, sharded as the parameter
    dtype = at_least_float32(weights.dtype, leaf.rows.dtype)
    first, *others = [
        weights[task].astype(dtype) * leaf.rows[i].astype(dtype)
        for i, task in enumerate(leaf.tasks)
    ]
    return sum(others, first).astype(leaf.rows.dtype)
