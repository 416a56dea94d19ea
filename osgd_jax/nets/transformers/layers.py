"""The layers of Transformers, each of which can be one stripe of a wider one.

As for images (`stripes.py`), a stripe takes the new channels of its input and a *memory* of the
channels that earlier stripes of the layer have read, and returns the memory for the next stripe.
Attention is cut by heads, the gated MLP by units.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from osgd_jax._math import at_least_float32, result_type
from osgd_jax._validation import check_positive
from osgd_jax.nets.layers import Layers, draw_normal
from osgd_jax.nets.sharding import look_up, read
from osgd_jax.nets.stripes import extend
from osgd_jax.nets.transformers.attention import attend

_EPSILON = 1e-6
_SMALL = 0.02


class Part(NamedTuple):
    """A part of a layer: a stripe, all stripes before it, or the whole.

    Attributes:
      channels: of the state.
      heads: of the attention.
      units: of the MLP.
    """

    channels: int
    heads: int
    units: int

    def __add__(self, other: Any) -> "Part":
        return Part(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Part(0, 0, 0)


class RMSNorm(nnx.Module):
    """Division by the root mean square over the channels (Zhang and Sennrich 2019).

    Args:
      features: channels of the input.
      param_dtype: of the scale.
    """

    def __init__(self, features: int, *, param_dtype: DTypeLike = float):
        features = check_positive("features", features)
        self.scale = nnx.Param(jnp.asarray(np.ones(features), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize `[…, features]`; return the same shape and dtype."""
        scale = read(self.scale)
        y = x.astype(at_least_float32(x.dtype, scale.dtype))
        scale = jnp.expand_dims(scale.astype(y.dtype), range(x.ndim - 1))
        y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + _EPSILON) * scale
        return y.astype(x.dtype)


class Product(nnx.Module):
    """A matrix product without bias.

    Args:
      layers: gives keys and dtypes.
      in_features: channels of the input, memory included.
      out_features: channels of the output.
      scale: standard deviation of the initial kernel.
    """

    def __init__(self, layers: Layers, in_features: int, out_features: int, *, scale: float):
        shape = in_features, out_features
        self.kernel = nnx.Param(draw_normal(layers.rngs, shape, scale, layers.param_dtype))
        self.dtype = layers.dtype

    def __call__(self, x: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
        """Map `[…, in_features]` to `[…, out_features]`, of `dtype` if one is given."""
        kernel = read(self.kernel)
        computed = self.dtype or result_type(x, kernel)
        return jnp.matmul(x.astype(computed), kernel.astype(computed), preferred_element_type=dtype)


class Embedding(nnx.Module):
    """A vector for each token, or a stripe of it; NaN for a token outside of the vocabulary."""

    def __init__(self, layers: Layers, vocab_size: int, features: int):
        shape = vocab_size, features
        self.table = nnx.Param(draw_normal(layers.rngs, shape, _SMALL, layers.param_dtype))
        self.dtype = layers.dtype

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map `[batch, length]` to `[batch, length, features]`."""
        found = look_up(read(self.table), tokens)
        return found if self.dtype is None else found.astype(self.dtype)


class Attention(nnx.Module):
    """Normalization and causal attention, or one stripe of it; its result is added to the state.

    Args:
      layers: gives keys and dtypes.
      head_dim: channels of a head.
      new: channels that leave, and heads, of this stripe.
      old: heads that earlier stripes have made, and channels that they have read.
      features: channels of the state that are normalized here.
      damping: of the initial output, as there are many layers.
    """

    def __init__(
        self, layers: Layers, head_dim: int, new: Part, old: Part, features: int, damping: float
    ):
        inherited = (new + old).channels - features
        self.norm = RMSNorm(features, param_dtype=layers.param_dtype)
        read, made = inherited + features, (old + new).heads * head_dim
        self.project = Product(layers, read, 3 * new.heads * head_dim, scale=read**-0.5)
        self.out = Product(layers, made, new.channels, scale=damping * made**-0.5)
        self.num_heads, self.head_dim = new.heads, head_dim
        self.past = nnx.data(None)

    @property
    def dtype(self) -> DTypeLike:
        """Return the dtype of keys and values."""
        kernel = self.project.kernel[...]
        return self.project.dtype or kernel.dtype

    def __call__(
        self, x: jax.Array, read: jax.Array | None = None, heads: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Compute what is added to the state.

        Args:
          x: `[batch, length, features]`.
          read: what earlier stripes have read, normalized.
          heads: what their heads have found.

        Returns:
          `[batch, length, new.channels]`, and `read` and `heads` with this stripe's.
        """
        read = extend(read, self.norm(x))
        # Length first, then heads: the batch may have any size (`export`).
        parts = self.project(read).reshape(*read.shape[:2], 3, -1, self.head_dim)
        found, past = attend(*(parts[:, :, i] for i in range(3)), past=self.past)
        if past is not None:
            self.past = nnx.data(past)
        heads = extend(heads, found.reshape(*read.shape[:2], -1))
        return self.out(heads), (read, heads)


class GatedMLP(nnx.Module):
    """Normalization and a gated MLP (Shazeer 2020, arXiv 2002.05202), or one stripe of it.

    Its arguments, and those of a call, are as for `Attention`, with units for heads.
    """

    def __init__(self, layers: Layers, new: Part, old: Part, features: int, damping: float):
        inherited = (new + old).channels - features
        self.norm = RMSNorm(features, param_dtype=layers.param_dtype)
        read, made = inherited + features, (old + new).units
        self.project = Product(layers, read, 2 * new.units, scale=read**-0.5)
        self.out = Product(layers, made, new.channels, scale=damping * made**-0.5)

    def __call__(
        self, x: jax.Array, read: jax.Array | None = None, units: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Compute the increment of the state; see `Attention`."""
        read = extend(read, self.norm(x))
        gate, values = jnp.split(self.project(read), 2, axis=-1)
        units = extend(units, jax.nn.silu(gate) * values)
        return self.out(units), (read, units)


class TransformerLayer(nnx.Module):
    """Attention and a gated MLP, or one stripe of both.

    Args:
      layers: gives keys and dtypes.
      head_dim: channels of a head.
      new: what this layer or stripe makes.
      old: what earlier stripes have made.
      whole_state: the state that comes has the channels of all stripes; else it has those of this
        one, and the memory has the others.
      depth: layers of the last output, which the initial outputs are damped by.
    """

    def __init__(
        self,
        layers: Layers,
        head_dim: int,
        new: Part,
        old: Part = NOTHING,
        *,
        whole_state: bool = True,
        depth: int,
    ):
        features = new.channels + (old.channels if whole_state else 0)
        damping = 1 / math.sqrt(2 * depth)
        self.attention = Attention(layers, head_dim, new, old, features, damping)
        self.mlp = GatedMLP(layers, new, old, features, damping)
        self.remat = layers.remat

    def __call__(self, x: jax.Array, memories: Any = None) -> tuple[jax.Array, Any]:
        """Compute what is added to the state by both.

        Args:
          x: `[batch, length, channels]`, the state, or this stripe of it.
          memories: the result of the same layer of the earlier stripe; None for memories that `x`
            already holds.

        Returns:
          `[batch, length, new.channels]` and the memories: what was read, by attention and MLP;
          heads; units; what the attention has added.
        """
        run: Any = nnx.remat(TransformerLayer._run) if self.remat else TransformerLayer._run
        return run(self, x, memories)

    def _run(self, x: jax.Array, memories: Any) -> tuple[jax.Array, Any]:
        reads, heads, units, added = memories or (None,) * 4
        read, reread = reads or (None, None)
        first, (read, heads) = self.attention(x, read, heads)
        added = extend(added, first)
        second, (reread, units) = self.mlp(x + added, reread, units)
        return first + second, ((read, reread), heads, units, added)


class LanguageHead(nnx.Module):
    """Normalization and the product with the vocabulary, of a state or a stripe of it.

    Args:
      layers: gives keys and dtypes.
      features: channels of the input.
      vocab_size: logits.
    """

    def __init__(self, layers: Layers, features: int, vocab_size: int):
        self.norm = RMSNorm(features, param_dtype=layers.param_dtype)
        self.product = Product(layers, features, vocab_size, scale=_SMALL)

    def __call__(self, x: jax.Array, before: jax.Array | None = None) -> jax.Array:
        """Map `[batch, length, features]` to `[batch, length, vocab_size]`, added to `before`."""
        logits = self.product(self.norm(x), dtype=at_least_float32(x.dtype))
        return logits if before is None else before + logits
