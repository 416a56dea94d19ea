"""Streams of residual blocks that share increments: the layers of nets that are nested in depth.

A stream is a state to which blocks add their increments one after the other. The next stream of the
same resolution puts a new block after each block of this one: it adds, in order, each computed
increment and then the increment of its new block at the resulting state. It has twice the depth,
and reuses half of its increments.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from osgd_jax.nets.layers import Layers
from osgd_jax.nets.resnets.blocks import Memories
from osgd_jax.nets.stripes import extend

# (state, memories of earlier stripes) → (increment, memories): `ResidualBlock` and the like.
Block = Callable[..., tuple[jax.Array, Any]]


class Transition(nnx.Module):
    """Take a stream to another resolution or number of channels.

    Normalization, the mean of neighbors and a 1×1 convolution, as between the parts of a DenseNet
    (Huang et al. 2017, arXiv 1608.06993). It must be cheap, because each stream has one.

    Args:
      layers: makes the layers.
      features: channels of the input.
      out_features: channels of the output.
      stride: neighbors and step along each spatial axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> transition = nets.Transition(nets.Layers(nnx.Rngs(0)), 4, 8, stride=2)
      >>> transition(jnp.ones((1, 4, 4, 4))).shape
      (1, 2, 2, 8)
    """

    def __init__(self, layers: Layers, features: int, out_features: int, *, stride: int):
        self.norm = layers.normalization(features)
        self.conv = layers.conv(features, out_features, size=1)
        self.window = (stride,) * layers.spatial_dims

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[batch, *spatial, features]` to `[batch, *spatial / stride, out_features]`."""
        x = self.norm(x)
        if max(self.window) > 1:
            # By keyword, as converters (jax2onnx) that stand in for it want them.
            with jax.numpy_dtype_promotion("standard"):  # it divides by counts in float32
                pooled = nnx.avg_pool(
                    x,
                    window_shape=self.window,
                    strides=self.window,
                    padding="SAME",
                    count_include_pad=False,
                )
            x = pooled.astype(x.dtype)
        return self.conv(x)


class Stream(nnx.Module):
    """The new blocks of one stream at one resolution.

    Args:
      transition: brings the stream here from the resolution before, None if none is needed.
      blocks: the new blocks, each with increments of the shape of the stream.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> layers = nets.Layers(nnx.Rngs(0))
      >>> first = nets.Stream(None, [nets.ResidualBlock(layers, "basic", 4, 4)])
      >>> second = nets.Stream(None, [nets.ResidualBlock(layers, "basic", 4, 4)])
      >>> x = jnp.ones((1, 4, 4, 4))
      >>> _, increments = first(x)
      >>> state, increments = second(x, increments)
      >>> state.shape, len(increments)
      ((1, 4, 4, 4), 2)
    """

    def __init__(self, transition: Transition | None, blocks: Sequence[Block]):
        self.transition = transition
        self.blocks = nnx.List(blocks)

    def __call__(
        self, x: jax.Array, inherited: Sequence[jax.Array] | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Run the stream.

        Args:
          x: the stream's state, `[batch, *spatial, features]`.
          inherited: the increments of the stream before, as many as there are new blocks; None
            for the first stream.

        Returns:
          The state after the last block, and all increments in the order in which they were
          added.
        """
        if self.transition is not None:
            x = self.transition(x)
        increments = []
        for position, block in enumerate(self.blocks):
            if inherited is not None:
                x = x + inherited[position]
                increments.append(inherited[position])
            increment, _ = block(x)
            x = x + increment
            increments.append(increment)
        return x, tuple(increments)


class WideningStream(nnx.Module):
    """A stream that also widens the blocks of the stream before.

    It is for nets that are nested in width and in depth.

    Each old block gets one more stripe of channels, which reads the whole state of this stream and
    what the earlier stripes of the block have computed inside. Its part of the increment is
    appended to the old increment; nothing of the old block is computed again. Then comes the new
    block, over all channels.

    Args:
      transition: brings the stream here from the resolution before, None if none is needed.
      stripes: one more stripe for each block of the stream before; none for the first stream.
      blocks: the new blocks.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> layers = nets.Layers(nnx.Rngs(0))
      >>> stream = nets.WideningStream(None, [], [nets.ResidualBlock(layers, "basic", 4, 4)])
      >>> state, increments = stream(jnp.ones((1, 4, 4, 4)), [])
      >>> state.shape, len(increments)
      ((1, 4, 4, 4), 1)
    """

    def __init__(
        self,
        transition: Transition | None,
        stripes: Sequence[Block],
        blocks: Sequence[Block],
    ):
        self.transition = transition
        self.stripes = nnx.List(stripes)
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array, inherited: Sequence[Any]) -> tuple[jax.Array, list[Any]]:
        """Run the stream.

        Args:
          x: the stream's state, `[batch, *spatial, features]`.
          inherited: for each block of the stream before, in order, its increment and memories.

        Returns:
          The state after the last block, and increment and memories of all blocks in order.
        """
        if self.transition is not None:
            x = self.transition(x)
        kept = []
        for position, block in enumerate(self.blocks):
            if self.stripes:
                old, memories = inherited[position]
                new, memories = self.stripes[position](x, (None, *memories))
                x, kept = self._add(x, extend(old, new), memories, kept)
            x, kept = self._add(x, *block(x), kept)
        return x, kept

    @staticmethod
    def _add(
        x: jax.Array, increment: jax.Array, memories: Memories, kept: list[Any]
    ) -> tuple[jax.Array, list[Any]]:
        # The first memory is the normalized state, which the next stream has at its own state.
        return x + increment, [*kept, (increment, memories[1:])]
