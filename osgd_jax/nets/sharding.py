"""Arrays on a mesh with Explicit axes, where the program and not the compiler says what is split.

The nets compute each example where it is: they keep the split of the batch, and gather the
parameters that are split, as fully sharded data parallel training does. Without Explicit axes these
functions return what they get.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec


def read(variable: nnx.Variable) -> jax.Array:
    """Return the array of a Variable, whole on each device; its gradient is split as it is."""
    array = variable[...]
    sharding = jax.typeof(array).sharding
    if not any(sharding.spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def write(variable: nnx.Variable, array: jax.Array) -> None:
    """Set the array of a Variable and keep its sharding."""
    sharding = jax.typeof(variable[...]).sharding
    if any(sharding.spec):
        array = jax.sharding.reshard(array, sharding)
    # Not `variable[...] = …`, which looks for the sharding of the new value: under a trace that
    # takes a time that grows with all that is traced before.
    variable.set_value(array)


def look_up(table: jax.Array, indices: jax.Array) -> jax.Array:
    """Return the rows of a whole table at indices that may be split; NaN out of its range."""
    # Only an index without a sign is out of range below zero as well. It has 32 bits at most, as a
    # gather cuts off the others.
    if indices.dtype.itemsize == 8:
        indices = jnp.minimum(indices.astype(jnp.uint64), jnp.iinfo(jnp.uint32).max)
    unsigned = indices.astype(jnp.uint32)
    sharding = jax.typeof(indices).sharding
    split = any(sharding.spec)
    rows = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, None)) if split else None
    return table.at[unsigned].get(mode="fill", fill_value=jnp.nan, out_sharding=rows)
