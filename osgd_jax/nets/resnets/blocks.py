"""Stems, residual blocks and heads, each of which can be one stripe of a wider one.

The blocks are pre-activated (He et al. 2016, arXiv 1603.05027). The *increment* that a block adds
to its stream passes no later nonlinearity, so another stream can add the same increment.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from osgd_jax._validation import check_choice
from osgd_jax.nets.layers import Layers
from osgd_jax.nets.stripes import StripeConv, extend

BLOCKS = ("basic", "bottleneck")
STEMS = ("cifar", "imagenet")
Memories = tuple[jax.Array, ...]


def expansion(block: str) -> int:
    """Return the number of channels that leave a block for each channel of its width."""
    return 4 if block == "bottleneck" else 1


def max_pool(x: jax.Array) -> jax.Array:
    """Take the maximum over three taps, at every second position of each spatial axis."""
    spatial = x.ndim - 2
    window, strides = (1, *(3,) * spatial, 1), (1, *(2,) * spatial, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, "SAME")


class Stem(nnx.Module):
    """The first layer: a 3×3 convolution ("cifar"), or 7×7 and max pooling ("imagenet").

    Args:
      layers: makes the convolution.
      kind: "cifar" or "imagenet", which divides the resolution by four.
      in_channels: channels of the input.
      out_features: channels of the output.

    Raises:
      ValueError: `kind` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> stem = nets.Stem(nets.Layers(nnx.Rngs(0)), "cifar", 3, 4)
      >>> stem(jnp.ones((1, 4, 4, 3))).shape
      (1, 4, 4, 4)
    """

    def __init__(self, layers: Layers, kind: str, in_channels: int, out_features: int):
        check_choice("kind", kind, STEMS)
        size, stride = (7, 2) if kind == "imagenet" else (3, 1)
        self.conv = layers.conv(in_channels, out_features, size=size, stride=stride)
        self.pool = kind == "imagenet"

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[batch, *spatial, in_channels]` to `[batch, *spatial / (1 or 4), out_features]`."""
        x = self.conv(x)
        return max_pool(x) if self.pool else x


class PreactConv(nnx.Module):
    """Normalization of the new channels, ReLU, and a `StripeConv`.

    Args:
      layers: makes the layers.
      inherited: channels in the memory, 0 for the first stripe.
      features: new channels of the input.
      out_features: channels of this stripe of the output.
      size: taps along each spatial axis.
      stride: step along each spatial axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> conv = nets.PreactConv(nets.Layers(nnx.Rngs(0)), 0, 4, 8, size=3)
      >>> y, memory = conv(jnp.ones((1, 4, 4, 4)))
      >>> y.shape
      (1, 4, 4, 8)
    """

    def __init__(
        self,
        layers: Layers,
        inherited: int,
        features: int,
        out_features: int,
        *,
        size: int,
        stride: int = 1,
    ):
        self.norm = layers.normalization(features)
        self.conv = StripeConv(layers, inherited, features, out_features, size=size, stride=stride)

    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Compute one stripe; see `StripeConv`."""
        return self.conv(jax.nn.relu(self.norm(x)), memory)


class ResidualBlock(nnx.Module):
    """A basic (3×3, 3×3) or bottleneck (1×1, 3×3, 1×1) residual block, or one stripe of it.

    Args:
      layers: makes the layers.
      kind: "basic" or "bottleneck".
      features: new channels of the input.
      width: new channels inside the block; `expansion(kind)` times as many leave it.
      inherited: channels of the input that earlier stripes have read.
      inherited_width: channels inside the block that earlier stripes have made.
      stride: of the block's first 3×3 convolution.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> block = nets.ResidualBlock(nets.Layers(nnx.Rngs(0)), "basic", 4, 4)
      >>> increment, memories = block(jnp.ones((1, 4, 4, 4)))
      >>> increment.shape
      (1, 4, 4, 4)
    """

    def __init__(
        self,
        layers: Layers,
        kind: str,
        features: int,
        width: int,
        *,
        inherited: int = 0,
        inherited_width: int = 0,
        stride: int = 1,
    ):
        check_choice("kind", kind, BLOCKS)
        # (size, stride, new input channels, inherited input channels, output channels) of each
        # convolution
        if kind == "basic":
            plan = [
                (3, stride, features, inherited, width),
                (3, 1, width, inherited_width, width),
            ]
        else:
            plan = [
                (1, 1, features, inherited, width),
                (3, stride, width, inherited_width, width),
                (1, 1, width, inherited_width, expansion(kind) * width),
            ]
        self.convs = nnx.List(
            PreactConv(layers, old, new, out, size=size, stride=step)
            for size, step, new, old, out in plan
        )
        self.remat = layers.remat

    def __call__(
        self, x: jax.Array, memories: Sequence[jax.Array | None] | None = None
    ) -> tuple[jax.Array, Memories]:
        """Compute the block's increment.

        Args:
          x: `[batch, *spatial, features]`, the stream's state (or this stripe of it).
          memories: what the same block of the earlier stripe gave, None where nothing is
            inherited.

        Returns:
          The increment, `[batch, *spatial / stride, expansion · width]`, and the memories of the
          convolutions.
        """
        run: Any = nnx.remat(ResidualBlock._run) if self.remat else ResidualBlock._run
        return run(self, x, memories)

    def _run(
        self, x: jax.Array, memories: Sequence[jax.Array | None] | None
    ) -> tuple[jax.Array, Memories]:
        kept = []
        for conv, memory in zip(self.convs, memories or (None,) * len(self.convs), strict=True):
            x, memory = conv(x, memory)
            kept.append(memory)
        return x, tuple(kept)


class SkipBlock(nnx.Module):
    """A `ResidualBlock` with the skip connection around it.

    Args:
      layers: makes the layers.
      kind: "basic" or "bottleneck".
      features: new channels of the input.
      width: new channels inside the block; `expansion(kind)` times as many leave it.
      inherited: channels of the input that earlier stripes have read.
      inherited_width: channels inside the block that earlier stripes have made.
      stride: of the block's first 3×3 convolution.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> block = nets.SkipBlock(nets.Layers(nnx.Rngs(0)), "basic", 4, 4)
      >>> x, memories = block(jnp.ones((1, 4, 4, 4)))
      >>> x.shape
      (1, 4, 4, 4)
    """

    def __init__(
        self,
        layers: Layers,
        kind: str,
        features: int,
        width: int,
        *,
        inherited: int = 0,
        inherited_width: int = 0,
        stride: int = 1,
    ):
        self.block = ResidualBlock(
            layers,
            kind,
            features,
            width,
            inherited=inherited,
            inherited_width=inherited_width,
            stride=stride,
        )
        out = expansion(kind) * width
        same = stride == 1 and out == features
        self.shortcut = (
            None if same else layers.conv(inherited + features, out, size=1, stride=stride)
        )

    def __call__(
        self, x: jax.Array, memories: Sequence[jax.Array | None] | None = None
    ) -> tuple[jax.Array, Memories]:
        """Compute the sum of the skip connection and the increment; see `ResidualBlock`."""
        increment, kept = self.block(x, memories)
        # As in He et al. 2016 a projection takes the normalized input, the first of the memories.
        skip = x if self.shortcut is None else self.shortcut(kept[0])
        return skip + increment, kept


class Head(nnx.Module):
    """Normalization, ReLU, mean over space and a linear classifier, or one stripe of it.

    Args:
      layers: makes the layers.
      features: new channels of the input.
      num_classes: logits.
      inherited: channels that earlier stripes have pooled.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> head = nets.Head(nets.Layers(nnx.Rngs(0)), 4, 3)
      >>> logits, pooled = head(jnp.ones((1, 4, 4, 4)))
      >>> logits.shape, pooled.shape
      ((1, 3), (1, 4))
    """

    def __init__(self, layers: Layers, features: int, num_classes: int, *, inherited: int = 0):
        self.norm = layers.normalization(features)
        self.linear = layers.linear(inherited + features, num_classes)

    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Map `[batch, *spatial, features]` to `[batch, num_classes]` and all pooled channels."""
        x = jax.nn.relu(self.norm(x))
        memory = extend(memory, x.mean(tuple(range(1, x.ndim - 1))))
        return self.linear(memory), memory
