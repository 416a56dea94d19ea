"""Causal attention with rotary positions, over what is at hand or over a cache of what came before.

Positions enter by the rotation of queries and keys alone (Su et al. 2021, arXiv 2104.09864): the
first half of the channels of a head and the second are the two coordinates, as in Llama.
"""

import dataclasses
import functools
from typing import Self

import jax
import jax.numpy as jnp
from jax import lax

_THETA = 10_000.0


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "values", "lengths"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Past:
    """The keys and values of earlier positions, for one attention.

    Attributes:
      keys: `[batch, heads, max_length, head_dim]`, rotated; the product with the queries wants
        them in this order.
      values: the same shape.
      lengths: `[batch]`, the positions that are filled; what comes is put after them.
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array

    def positions(self, count: int) -> jax.Array:
        """Those of the next `count` tokens, `[batch, count]`."""
        return self.lengths[:, None] + jnp.arange(count)

    def extended(self, keys: jax.Array, values: jax.Array) -> Self:
        """With the keys and values of the next tokens; those beyond `max_length` are dropped."""
        return dataclasses.replace(
            self,
            keys=_put_heads(self.keys, self.lengths, keys),
            values=_put_heads(self.values, self.lengths, values),
        )


def put(buffer: jax.Array, starts: jax.Array, new: jax.Array) -> jax.Array:
    """Write `new`, `[batch, count, …]`, into `buffer`, `[batch, max_length, …]`, from `starts`.

    What does not fit is dropped.
    """
    # On CPU a scatter takes many times as long as an update of a slice.
    if new.shape[:2] == (1, 1):
        return lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), starts[0], axis=1)
    rows = jnp.arange(starts.shape[0])[:, None]
    positions = starts[:, None] + jnp.arange(new.shape[1])
    return buffer.at[rows, positions].set(new.astype(buffer.dtype), mode="drop")


def _put_heads(buffer: jax.Array, starts: jax.Array, new: jax.Array) -> jax.Array:
    """As `put`, into `[batch, heads, max_length, head_dim]`."""
    new = new.astype(buffer.dtype)
    if new.shape[:2] == (1, 1):
        return lax.dynamic_update_slice_in_dim(buffer, new.swapaxes(1, 2), starts[0], axis=2)
    rows = jnp.arange(starts.shape[0])[:, None]
    positions = starts[:, None] + jnp.arange(new.shape[1])
    return buffer.at[rows, :, positions].set(new, mode="drop")


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotate `[batch, length, heads, head_dim]` by `positions`, `[batch or 1, length]`."""
    half = x.shape[-1] // 2
    wide = jnp.promote_types(x.dtype, jnp.float32)
    speeds = jnp.asarray(_THETA, wide) ** (-jnp.arange(half, dtype=wide) / half)
    angles = positions[..., None, None].astype(wide) * speeds
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(wide), x[..., half:].astype(wide)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def attend(
    queries: jax.Array, keys: jax.Array, values: jax.Array, past: Past | None
) -> tuple[jax.Array, Past | None]:
    """Let each position read itself and all earlier ones.

    Args:
      queries: `[batch, length, heads, head_dim]`, not yet rotated.
      keys: the same shape.
      values: the same shape.
      past: of earlier positions; None where these are the first.

    Returns:
      What each position has read, of the same shape, and the past for the positions to come.
    """
    length = queries.shape[1]
    seen = jnp.arange(length)[None] if past is None else past.positions(length)
    queries, keys = rotate(queries, seen), rotate(keys, seen)
    read_to = jnp.arange(length)
    if past is not None:
        past = past.extended(keys, values)
        keys, values = past.keys.swapaxes(1, 2), past.values.swapaxes(1, 2)
        read_to = jnp.arange(keys.shape[1])
    mask = read_to <= seen[..., None]
    return _dot_product_attention(queries, keys, values, mask[:, None]), past


def _dot_product_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array
) -> jax.Array:
    if queries.dtype != jnp.float64:
        return jax.nn.dot_product_attention(queries, keys, values, mask=mask)
    # The library takes the softmax in float32, whatever the dtype.
    scores = jnp.einsum("btnh,bsnh->bnts", queries, keys) / jnp.sqrt(queries.shape[-1])
    shares = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", shares, values)
