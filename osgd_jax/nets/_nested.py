"""Nets that are nested in width and in depth at once."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from osgd_jax.nets._base import AnytimeNet
from osgd_jax.nets._blocks import BLOCKS, STEMS, Head, ResidualBlock, Stem, expansion
from osgd_jax.nets._checks import check_choice, check_interface, check_levels
from osgd_jax.nets._layers import Layers
from osgd_jax.nets._streams import Transition, WideningStream
from osgd_jax.nets._stripes import check_fractions, extend, geometric_fractions, stripe_sizes


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


class NestedResNet(AnytimeNet):
    """A residual net that grows in width and in depth from output to output (Wan et al. 2020).

    The stream of output k + 1 has a new block after each block of output k, as in
    `DepthNestedResNet`, and more channels: each old block gets another stripe, as in
    `WidthNestedResNet`. The depth doubles; with the default fractions the width grows by √2, so
    that the multiply-adds grow by about 4 from output to output.

    Args:
      num_classes: logits of each output.
      num_outputs: number of streams.
      in_channels: channels of the input.
      spatial_dims: 1 or 2.
      norm: "batch" or "group".
      rngs: source of the initial parameters.
      widths: channels of each level of resolution at the last output; a level has half the
        resolution of the one before.
      blocks: residual blocks of each level at output 0; output k has 2ᵏ times as many.
      fractions: cumulative fraction of the width for each output, the last of them 1; by default
        (…, 1/2, 1/√2, 1).
      block: "basic" or "bottleneck", which multiplies the channels between blocks by four.
      stem: "cifar" or "imagenet", which goes down by four.
      dtype: of the computation, such as `jnp.bfloat16`; None takes that of input and parameters
        together.
      param_dtype: of the parameters; `float` is float32, or float64 under `jax.enable_x64`.
      remat: compute the inside of each block again in the backward pass instead of keeping it.

    Raises:
      ValueError: an argument is not one of those above, or a level is too narrow for its stripes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_outputs: int = 3,
        in_channels: int = 3,
        spatial_dims: int = 2,
        norm: str = "batch",
        rngs: nnx.Rngs,
        widths: Sequence[int] = (16, 32, 64),
        blocks: Sequence[int] = (1, 1, 1),
        fractions: Sequence[float] | None = None,
        block: str = "basic",
        stem: str = "cifar",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = float,
        remat: bool = False,
    ):
        check_interface(num_classes, num_outputs, in_channels)
        check_levels(widths, blocks)
        check_choice("block", block, BLOCKS)
        check_choice("stem", stem, STEMS)
        if fractions is None:
            fractions = geometric_fractions(num_outputs, math.sqrt(2))
        check_fractions(fractions, num_outputs)
        layers = Layers(rngs, spatial_dims, norm, dtype, param_dtype, remat)
        sizes = [stripe_sizes(width, fractions) for width in widths]

        def make_stage(k: int) -> _Stage:
            features, streams = sum(sizes[0][: k + 1]), []
            for level, level_sizes in enumerate(sizes):
                old, new = sum(level_sizes[:k]), level_sizes[k]
                out = expansion(block) * (old + new)
                stride = 1 if level == 0 else 2
                transition = None
                if stride != 1 or out != features:
                    transition = Transition(layers, features, out, stride=stride)
                depth = blocks[level] * 2 ** max(k - 1, 0)
                stripes = [
                    ResidualBlock(layers, block, out, new, inherited_width=old)
                    for _ in range(depth if k > 0 else 0)
                ]
                full = [ResidualBlock(layers, block, out, old + new) for _ in range(depth)]
                streams.append(WideningStream(transition, stripes, full))
                features = out
            first = Stem(layers, stem, in_channels, sizes[0][k])
            return _Stage(first, streams, Head(layers, features, num_classes))

        super().__init__(
            [make_stage(k) for k in range(num_outputs)],
            num_classes=num_classes,
            in_channels=in_channels,
            spatial_dims=spatial_dims,
        )

    def first_carry(self, x: jax.Array) -> Any:
        """As in `AnytimeNet`: the image, and nothing computed yet."""
        levels = [[] for _ in self.stages[0].streams]
        return {"image": x, "origin": None, "levels": levels}
