"""The traditional anytime net: one trunk with a head after each part."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from osgd_jax.nets._base import AnytimeNet
from osgd_jax.nets._blocks import BLOCKS, STEMS, Head, SkipBlock, Stem, expansion
from osgd_jax.nets._checks import check_choice, check_interface, check_levels
from osgd_jax.nets._layers import Layers


class _Stage(nnx.Module):
    """A part of the trunk and the head at its end."""

    def __init__(self, stem: Stem | None, blocks: list[SkipBlock], head: Head):
        self.stem = stem
        self.blocks = nnx.List(blocks)
        self.head = head

    def __call__(self, x: jax.Array) -> tuple[jax.Array, Any]:
        if self.stem is not None:
            x = self.stem(x)
        for block in self.blocks:
            x, _ = block(x)
        logits, _ = self.head(x)
        return logits, x


class BranchedResNet(AnytimeNet):
    """A residual net with heads at even distances along its trunk, counted in blocks.

    The last output is a plain residual net (He et al. 2016, arXiv 1603.05027).

    Args:
      num_classes: logits of each output.
      num_outputs: number of heads, at most the number of blocks.
      in_channels: channels of the input.
      spatial_dims: 1 or 2.
      norm: "batch" or "group".
      rngs: source of the initial parameters.
      widths: channels of each level of resolution; a level has half the resolution of the one
        before.
      blocks: residual blocks of each level.
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
        depth = sum(blocks)
        if num_outputs > depth:
            raise ValueError(
                f"num_outputs={num_outputs} must be at most the number of residual blocks,"
                f" sum(blocks) = {depth}; add blocks or ask for fewer outputs."
            )
        layers = Layers(rngs, spatial_dims, norm, dtype, param_dtype, remat)
        plan = [(level, i) for level, count in enumerate(blocks) for i in range(count)]
        ends = [round(depth * k / num_outputs) for k in range(num_outputs + 1)]

        def make_stage(k: int) -> _Stage:
            made = []
            for level, position in plan[ends[k] : ends[k + 1]]:
                stride = 2 if level > 0 and position == 0 else 1
                before = level if position > 0 else level - 1
                features = expansion(block) * widths[before] if before >= 0 else widths[0]
                made.append(SkipBlock(layers, block, features, widths[level], stride=stride))
            first_conv = Stem(layers, stem, in_channels, widths[0]) if k == 0 else None
            last_level, _ = plan[ends[k + 1] - 1]
            head = Head(layers, expansion(block) * widths[last_level], num_classes)
            return _Stage(first_conv, made, head)

        super().__init__(
            [make_stage(k) for k in range(num_outputs)],
            num_classes=num_classes,
            in_channels=in_channels,
            spatial_dims=spatial_dims,
        )
