"""Products and sums of the rows of one parameter, in forms that suit the device."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from osgd_jax._gradients.rows import TaskRows, of_tasks
from osgd_jax._math import at_least_float32

# Up to this many rows are multiplied pair by pair: a product of matrices fills a fraction of the
# units of an accelerator, and of the time of a CPU.
_PAIRWISE_ROWS = 4
# On CPU, elements of all rows together that a core's cache holds.
_BLOCK_ELEMENTS = 2**15
# On CPU, products that are added up one by one; then their sums are.
_SUMMED = 512


def leaf_gramian(scales: jax.Array, leaf: TaskRows, other: TaskRows | None = None) -> jax.Array:
    """Compute the Gramian `[tasks, tasks]` of one leaf's rows over their scales, of `[K]`.

    With the rows of another batch, of the same tasks, compute the symmetrized products with these.
    """
    factors = 1 / of_tasks(scales, leaf.tasks)
    if other is None:
        return row_products(leaf.rows, factors)
    return symmetrized(row_products(leaf.rows, factors, other.rows, factors))


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


def symmetrized(matrix: jax.Array) -> jax.Array:
    """Return the mean of a matrix and its transpose."""
    return 0.5 * matrix + 0.5 * matrix.T


# Compiled separately, so that leaves of one shape are traced once.
@jax.jit
def row_products(rows: jax.Array, factors: jax.Array, *other: jax.Array) -> jax.Array:
    """Multiply the scaled rows by each other, or by the rows and factors given as `other`."""
    if not rows.size:
        return jnp.zeros(2 * rows.shape[:1], factors.dtype)
    if any(any(jax.typeof(each).sharding.spec) for each in (rows, *other[:1])):
        return _products_in_place(rows, factors, *other)
    # Of shorter rows, which stay in cache, it would take longer to compile than it saves; of two
    # batches, blocks are as fast.
    is_long = 1 < len(rows) <= _PAIRWISE_ROWS and rows[0].size > _BLOCK_ELEMENTS
    on_cpu = _products_in_one_pass if is_long and not other else _products_by_block
    return lax.platform_dependent(rows, factors, *other, cpu=on_cpu, default=_products_in_place)


def _pairs(count: int, *, both_ways: bool = False) -> list[tuple[int, int]]:
    """List the pairs of rows to multiply, `i >= j` unless both ways."""
    return [(i, j) for i in range(count) for j in range(count if both_ways else i + 1)]


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
    pairs = _pairs(len(scaled))
    sums = lax.reduce(
        [scaled[i] * scaled[j] for i, j in pairs],
        [jnp.zeros_like(factors[0])] * len(pairs),
        lambda total, each: [a + b for a, b in zip(total, each, strict=True)],
        (1,),
    )
    total = _matrix([each.sum() for each in sums], pairs)
    if even == flat.shape[1]:
        return total
    return total + _products_by_block(flat[:, even:], factors)


@_products_in_one_pass.defjvp
def _(primals, tangents):
    # What JAX derives from such a reduction halves it again and again.
    return jax.jvp(_products_by_block, primals, tangents)


def _products_by_block(rows: jax.Array, factors: jax.Array, *other: jax.Array) -> jax.Array:
    """Multiply the rows by each other as matrices, cut so that they fit into a core's cache.

    One pass over long rows; on 2 CPU cores, 8 rows of a million take half as long as pair by pair.
    """
    count = len(rows)
    sets = [(each.reshape(count, -1), f) for each, f in _sets(rows, factors, *other)]
    length = sets[0][0].shape[1]
    size = min(max(_BLOCK_ELEMENTS // (count * len(sets)), 1), length)
    num_blocks = (length - 1) // size
    first = length - num_blocks * size

    def products(start: jax.Array | int, size: int) -> jax.Array:
        blocks = [
            lax.dynamic_slice_in_dim(flat, start, size, axis=1).astype(f.dtype) * f[:, None]
            for flat, f in sets
        ]
        return lax.dot_general(
            blocks[0], blocks[-1], (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
        )

    def add_block(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + products(first + i * size, size)

    total = products(0, first)
    return lax.fori_loop(0, num_blocks, add_block, total) if num_blocks else total


def _products_in_place(rows: jax.Array, factors: jax.Array, *other: jax.Array) -> jax.Array:
    """Multiply the rows by each other in their own shape, in which they may be sharded."""
    count = len(rows)
    scaled = [
        [each[i].astype(f.dtype) * f[i] for i in range(count)]
        for each, f in _sets(rows, factors, *other)
    ]
    if count <= _PAIRWISE_ROWS:
        pairs = _pairs(count, both_ways=bool(other))
        return _matrix([jnp.sum(scaled[0][i] * scaled[-1][j]) for i, j in pairs], pairs)
    matrices = [jnp.stack(each) for each in scaled]
    # Contracted as they are: flattening would gather a parameter that is sharded over devices.
    axes = tuple(range(1, matrices[0].ndim))
    replicated = NamedSharding(jax.typeof(matrices[0]).sharding.mesh, PartitionSpec())
    return jnp.tensordot(
        matrices[0],
        matrices[-1],
        (axes, axes),
        precision=lax.Precision.HIGHEST,
        out_sharding=replicated,
    )


def _sets(rows: jax.Array, factors: jax.Array, *other: jax.Array) -> list[tuple]:
    """Return the rows and factors of one batch or of two."""
    return [(rows, factors), other] if other else [(rows, factors)]


def _matrix(products: list[jax.Array], pairs: list[tuple[int, int]]) -> jax.Array:
    """Arrange products of the pairs of `_pairs` as a matrix."""
    of_pair = dict(zip(pairs, products, strict=True))
    count = pairs[-1][0] + 1
    entries = [
        of_pair[(i, j) if (i, j) in of_pair else (j, i)] for i in range(count) for j in range(count)
    ]
    return jnp.stack(entries).reshape(count, count)
