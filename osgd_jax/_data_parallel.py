"""Task gradients split over the devices of a mesh axis, inside `jax.shard_map`.

To sum one gradient over the devices, as a step of plain SGD does, moves as many bytes as to
reduce-scatter it and to all-gather the sum. Here every row is reduce-scattered, the Gramian is the
sum of those of the shares, so that all devices have the same weights, and the weighted sum alone is
all-gathered: (K + 1) / 2 times the bytes of SGD, less where not all losses reach all parameters.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from osgd_jax._task_rows import TaskRows

AxisName = str | tuple[str, ...]


def check_varying(leaves: Sequence[TaskRows], axis_name: AxisName) -> None:
    """Raise a ValueError for gradients that were summed over the devices already."""
    # Under `check_vma=False` no type names any axis. A row may be constant, but not all are.
    varying = jax.typeof(lax.axis_index(axis_name)).manual_axis_type.varying
    if not any(varying <= jax.typeof(leaf.rows).manual_axis_type.varying for leaf in leaves):
        raise ValueError(
            f"axis_name={axis_name!r}, but the task gradients are the same on all its devices:"
            " jax.grad sums the gradients of replicated parameters. Take each device's own, with"
            f" respect to jax.lax.pcast(params, {axis_name!r}, to='varying')."
        )


def scatter(leaf: TaskRows, axis_name: AxisName) -> TaskRows:
    """Average rows over the devices; each keeps an equal share of each, flat: `[tasks, share]`."""
    if not leaf.tasks:
        return leaf
    num_devices = lax.axis_size(axis_name)
    padding = -math.prod(leaf.rows.shape[1:]) % num_devices
    # Row by row, so that none has to wait in full size for the pullbacks of the other losses.
    rows = [jnp.pad(leaf.rows[i].ravel(), (0, padding)) for i in range(len(leaf.tasks))]
    shares = [lax.psum_scatter(row, axis_name, tiled=True) / num_devices for row in rows]
    return dataclasses.replace(leaf, rows=jnp.stack(shares))


def gather(combined: jax.Array, leaf: TaskRows, axis_name: AxisName) -> jax.Array:
    """Put the shares of one update together, in the shape of the parameter that `leaf` is for."""
    if not leaf.tasks:
        return combined
    shape = leaf.rows.shape[1:]
    whole = lax.all_gather(combined, axis_name, tiled=True, to="invarying")
    return whole[: math.prod(shape)].reshape(shape)


def total(values: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """The sum over the devices; the values themselves if `axis_name` is None."""
    return values if axis_name is None else lax.psum(values, axis_name)


def largest(values: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """The maximum over the devices of values >= 0, where a NaN counts as infinity."""
    if axis_name is None:
        return values
    # A maximum over GPUs may pass over a NaN, never over an infinity.
    return lax.pmax(jnp.where(jnp.isnan(values), jnp.inf, values), axis_name)
