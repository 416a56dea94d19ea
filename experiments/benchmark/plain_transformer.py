"""A Transformer with one output and its decoder, as one would write them without the library."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = Mapping[str, Any]
Cache = list[tuple[jax.Array, jax.Array]]

_UNITS_PER_CHANNEL = 8 / 3


class Sizes(NamedTuple):
    """Sizes of a Transformer.

    Attributes:
      vocab_size: tokens.
      heads: of the attention.
      head_dim: channels of each.
      units: of the gated MLP.
      depth: layers.
    """

    vocab_size: int
    heads: int
    head_dim: int
    units: int
    depth: int

    @property
    def width(self) -> int:
        """Channels of the state."""
        return self.heads * self.head_dim

    def multiply_adds(self, length: int) -> int:
        """For each token of a text of this length, counted as `osgd_jax.cost` does."""
        layer = 4 * self.width + 2 * length + 3 * self.units
        return self.width * (self.depth * layer + self.vocab_size)


def sizes_for(
    multiply_adds: float, *, vocab_size: int, head_dim: int, depth: int, length: int
) -> Sizes:
    """The sizes of usual proportions whose multiply-adds for each token are nearest to these."""

    def with_heads(heads: int) -> Sizes:
        nothing = Sizes(vocab_size, heads, head_dim, 0, depth)
        left = multiply_adds - nothing.multiply_adds(length)
        return nothing._replace(units=round(left / (3 * depth * nothing.width)))

    def oddness(sizes: Sizes) -> float:
        return abs(sizes.units / sizes.width - _UNITS_PER_CHANNEL)

    return min(map(with_heads, range(1, 65)), key=oddness)


def initial_params(sizes: Sizes) -> Params:
    """Random ones."""
    keys = iter(jax.random.split(jax.random.key(0), 2 + 4 * sizes.depth))
    width, units = sizes.width, sizes.units

    def draw(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) * shape[0] ** -0.5

    def layer() -> Params:
        scales = {"norm_1": jnp.ones(width), "norm_2": jnp.ones(width)}
        attention = {"qkv": draw(width, 3 * width), "out": draw(width, width)}
        return {**scales, **attention, "up": draw(width, 2 * units), "down": draw(units, width)}

    layers = [layer() for _ in range(sizes.depth)]
    ends = {"embedding": draw(sizes.vocab_size, width), "head": draw(width, sizes.vocab_size)}
    return {**ends, "layers": layers, "norm": jnp.ones(width)}


def forward(
    sizes: Sizes, params: Params, tokens: jax.Array, cache: Cache | None = None, start: Any = 0
) -> tuple[jax.Array, Cache]:
    """Logits `[batch, length, vocab_size]` of tokens, the first of which is at position `start`."""
    x = params["embedding"][tokens]
    positions = start + jnp.arange(tokens.shape[1])
    kept = []
    for k, layer in enumerate(params["layers"]):
        heads = (_norm(x, layer["norm_1"]) @ layer["qkv"]).reshape(
            *tokens.shape, 3, sizes.heads, sizes.head_dim
        )
        queries, keys, values = (heads[:, :, i] for i in range(3))
        queries, keys = _rotate(queries, positions), _rotate(keys, positions)
        if cache is not None:
            keys, values = (
                lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
                for old, new in zip(cache[k], (keys, values), strict=True)
            )
            kept.append((keys, values))
        mask = jnp.arange(keys.shape[1]) <= positions[:, None]
        found = jax.nn.dot_product_attention(queries, keys, values, mask=mask[None, None])
        x = x + found.reshape(x.shape) @ layer["out"]
        gate, up = jnp.split(_norm(x, layer["norm_2"]) @ layer["up"], 2, axis=-1)
        x = x + (jax.nn.silu(gate) * up) @ layer["down"]
    return _norm(x, params["norm"]) @ params["head"], kept


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale


def _rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    angles = positions[:, None] * 1e4 ** (-jnp.arange(half) / half)
    cos, sin = (each(angles)[:, None] for each in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Decoder:
    """Continues one text with the likeliest tokens, by a cache of keys and values.

    Args:
      sizes: of the Transformer.
      max_length: positions of the cache.
    """

    def __init__(self, sizes: Sizes, max_length: int):
        self._params = initial_params(sizes)
        shape = 1, max_length, sizes.heads, sizes.head_dim
        self._empty = lambda: [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(sizes.depth)]
        self._step = jax.jit(functools.partial(_next_token, sizes), donate_argnums=1)

    def stream(self, prompt: np.ndarray, count: int) -> Iterator[int]:
        """`count` new tokens, each on the host before the next is begun."""
        cache, tokens, start = self._empty(), prompt[None], 0
        for _ in range(count):
            token, cache = self._step(self._params, cache, tokens, start)
            start += tokens.shape[1]
            tokens = np.asarray(token)
            yield int(tokens[0, 0])


def _next_token(
    sizes: Sizes, params: Params, cache: Cache, tokens: jax.Array, start: Any
) -> tuple[jax.Array, Cache]:
    logits, cache = forward(sizes, params, tokens, cache, start)
    return logits[:, -1:].argmax(-1), cache
