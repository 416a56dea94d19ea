"""Nets that are nested in depth."""

from typing import Any

import jax
from flax import nnx

from osgd_jax.nets.resnets.base import ResNet, Sizes
from osgd_jax.nets.resnets.blocks import Head, Stem
from osgd_jax.nets.resnets.streams import Stream


class _Stage(nnx.Module):
    """One stream through all levels, from the first convolution to its head."""

    def __init__(self, stem: Stem | None, streams: list[Stream], head: Head):
        self.stem = stem
        self.streams = nnx.List(streams)
        self.head = head

    def __call__(self, carry: Any) -> tuple[jax.Array, Any]:
        if self.stem is not None:
            origin, inherited = self.stem(carry), [None] * len(self.streams)
        else:
            origin, inherited = carry["origin"], carry["increments"]
        x, kept = origin, []
        for stream, increments in zip(self.streams, inherited, strict=True):
            x, increments = stream(x, increments)
            kept.append(increments)
        logits, _ = self.head(x)
        return logits, {"origin": origin, "increments": kept}


class DepthNestedResNet(ResNet):
    """A residual net whose depth doubles from output to output by interlacing (Wan et al. 2020).

    Output 0 is a residual net of the given blocks. The stream of output k + 1 has a new block after
    each block of output k; the increments of the old blocks are reused, not computed again. All
    streams start from the same first convolution, and each reduces its resolution separately.

    Args:
      num_outputs: number of streams.
      blocks: residual blocks of each level at output 0; output k has 2ᵏ times as many.
      **others: as for `ResNet`.

    Raises:
      ValueError: an argument is invalid.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.DepthNestedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(1,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> [logits.shape for logits in net(jnp.ones((2, 4, 4, 1)))]
      [(2, 3), (2, 3)]
    """

    def make_stage(self, k: int, sizes: Sizes) -> _Stage:
        """Make stream k."""
        features, streams = sizes.widths[0], []
        for level, (width, count) in enumerate(zip(sizes.widths, sizes.blocks, strict=True)):
            out = sizes.leaving(width)
            transition = sizes.make_transition(level, features, out)
            made = [sizes.make_block(width) for _ in range(count * 2 ** max(k - 1, 0))]
            streams.append(Stream(transition, made))
            features = out
        stem = sizes.make_stem(sizes.widths[0]) if k == 0 else None
        return _Stage(stem, streams, sizes.make_head(features))
