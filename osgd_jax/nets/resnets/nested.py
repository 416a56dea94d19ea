"""Nets that are nested in width and in depth at once."""

import math
from typing import Any, ClassVar

import jax
from flax import nnx

from osgd_jax.nets._sizes import keywords_of
from osgd_jax.nets.resnets.base import ResNet, StripedSizes
from osgd_jax.nets.resnets.blocks import Head, ResidualBlock, Stem
from osgd_jax.nets.resnets.streams import WideningStream
from osgd_jax.nets.stripes import extend


class _Stage(nnx.Module):
    """One stream through all levels, with its stripe of the first convolution and its head."""

    def __init__(self, stem: Stem, streams: list[WideningStream], head: Head):
        self.stem = stem
        self.streams = nnx.List(streams)
        self.head = head

    def __call__(self, carry: Any) -> tuple[jax.Array, Any]:
        x = origin = extend(carry["origin"], self.stem(carry["image"]))
        levels = []
        for stream, inherited in zip(self.streams, carry["levels"], strict=True):
            x, kept = stream(x, inherited)
            levels.append(kept)
        logits, _ = self.head(x)
        return logits, {"image": carry["image"], "origin": origin, "levels": levels}


class NestedSizes(StripedSizes):
    """The keywords of `NestedResNet`."""

    ratio: ClassVar[float] = math.sqrt(2)


class NestedResNet(ResNet):
    """A residual net that grows in width and in depth from output to output (Wan et al. 2020).

    The stream of output k + 1 has a new block after each block of output k, as in
    `DepthNestedResNet`, and more channels: each old block gets another stripe, as in
    `WidthNestedResNet`. The depth doubles; with the default fractions the width grows by √2, so
    that the multiply-adds grow by about 4 from output to output.

    Args:
      num_outputs: number of streams.
      widths: channels of each level of resolution at the last output.
      blocks: residual blocks of each level at output 0; output k has 2ᵏ times as many.
      fractions: cumulative fraction of the width for each output, the last of them 1; by default
        (…, 1/2, 1/√2, 1).
      **others: as for `ResNet`.

    Raises:
      ValueError: an argument is invalid, or a level is too narrow for its stripes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.NestedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(8,), blocks=(1,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> [logits.shape for logits in net(jnp.ones((2, 4, 4, 1)))]
      [(2, 3), (2, 3)]
    """

    @keywords_of(NestedSizes)
    def __init__(self, sizes: NestedSizes):
        self._assemble(sizes)

    def make_stage(self, k: int, sizes: StripedSizes) -> _Stage:
        """Make stream k."""
        features, streams = sum(sizes.stripes[0][: k + 1]), []
        for level, (stripes, count) in enumerate(zip(sizes.stripes, sizes.blocks, strict=True)):
            old, new = sum(stripes[:k]), stripes[k]
            out = sizes.leaving(old + new)
            transition = sizes.make_transition(level, features, out)
            depth = count * 2 ** max(k - 1, 0)
            widening = [
                ResidualBlock(sizes.layers, sizes.block, out, new, inherited_width=old)
                for _ in range(depth if k > 0 else 0)
            ]
            full = [sizes.make_block(old + new) for _ in range(depth)]
            streams.append(WideningStream(transition, widening, full))
            features = out
        return _Stage(sizes.make_stem(sizes.stripes[0][k]), streams, sizes.make_head(features))

    def first_carry(self, x: jax.Array) -> Any:
        """Return the image, without any results."""
        levels = [[] for _ in self.stages[0].streams]
        return {"image": x, "origin": None, "levels": levels}
