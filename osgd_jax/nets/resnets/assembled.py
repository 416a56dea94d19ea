"""Assembly of stripes: the widest output of a net nested in width as a plain residual net."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from osgd_jax.nets.norm import GroupNorm

StageT = TypeVar("StageT", bound=nnx.Module)


def assemble(stripes: Sequence[StageT]) -> StageT:
    """Make one module that computes the same as a series of stripes of one structure.

    Args:
      stripes: modules that differ in their channels alone.

    Returns:
      A module of copies. Its convolutions are dense: where a stripe reads no later stripe, the
      kernel is zero. Its normalizations have the channels of all stripes, its linear layers
      are the last stripe's, which read all channels.
    """
    graphdef, _ = nnx.split(stripes[-1])
    states = [dict(nnx.to_flat_state(nnx.state(stripe))) for stripe in stripes]
    joined = {
        path: last.replace(_join(path, [state[path].get_value() for state in states]))
        for path, last in states[-1].items()
    }
    whole = nnx.merge(graphdef, nnx.from_flat_state(joined), copy=True)
    norms = [
        [module for _, module in nnx.iter_modules(module) if isinstance(module, GroupNorm)]
        for module in (whole, *stripes)
    ]
    for norm, *parts in zip(*norms, strict=True):
        norm.parts = sum((part.parts for part in parts), ())
    return whole


def _join(path: tuple[Any, ...], arrays: list[jax.Array]) -> jax.Array:
    if "linear" in path:
        return jnp.array(arrays[-1], copy=True)
    if arrays[0].ndim == 1:
        return jnp.concatenate(arrays)
    most = arrays[-1].shape[-2]
    unread = [(0, 0)] * (arrays[0].ndim - 2)
    padded = [jnp.pad(a, [*unread, (0, most - a.shape[-2]), (0, 0)]) for a in arrays]
    return jnp.concatenate(padded, axis=-1)
