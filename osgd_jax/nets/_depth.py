"""Nets that are nested in depth."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from osgd_jax.nets._base import AnytimeNet
from osgd_jax.nets._blocks import BLOCKS, STEMS, Head, ResidualBlock, Stem, expansion
from osgd_jax.nets._checks import check_choice, check_interface, check_levels
from osgd_jax.nets._layers import Layers
from osgd_jax.nets._streams import Stream, Transition


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


class DepthNestedResNet(AnytimeNet):
    """A residual net whose depth doubles from output to output by interlacing (Wan et al. 2020).

    Output 0 is a residual net of the given blocks. The stream of output k + 1 has a new block after
    each block of output k; the increments of the old blocks are re-used, not computed again. All
    streams start from the same first convolution, and each goes down in resolution by itself.

    Args:
      num_classes: logits of each output.
      num_outputs: number of streams.
      in_channels: channels of the input.
      spatial_dims: 1 or 2.
      norm: "batch" or "group".
      rngs: source of the initial parameters.
      widths: channels of each level of resolution; a level has half the resolution of the one
        before.
      blocks: residual blocks of each level at output 0; output k has 2ᵏ times as many.
      block: "basic" or "bottleneck", which multiplies the channels between blocks by four.
      stem: "cifar" or "imagenet", which goes down by four.
      dtype: of the computation, such as `jnp.bfloat16`; None takes that of input and parameters
        together.
      param_dtype: of the parameters; `float` is float32, or float64 under `jax.enable_x64`.
      remat: compute the inside of each block again in the backward pass instead of keeping it.

    Raises:
      ValueError: an argument is not one of those above.
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
        layers = Layers(rngs, spatial_dims, norm, dtype, param_dtype, remat)

        def make_stage(k: int) -> _Stage:
            features, streams = widths[0], []
            for level, width in enumerate(widths):
                out = expansion(block) * width
                stride = 1 if level == 0 else 2
                transition = None
                if stride != 1 or out != features:
                    transition = Transition(layers, features, out, stride=stride)
                new_blocks = blocks[level] * 2 ** max(k - 1, 0)
                made = [ResidualBlock(layers, block, out, width) for _ in range(new_blocks)]
                streams.append(Stream(transition, made))
                features = out
            first = Stem(layers, stem, in_channels, widths[0]) if k == 0 else None
            return _Stage(first, streams, Head(layers, features, num_classes))

        super().__init__(
            [make_stage(k) for k in range(num_outputs)],
            num_classes=num_classes,
            in_channels=in_channels,
            spatial_dims=spatial_dims,
        )
