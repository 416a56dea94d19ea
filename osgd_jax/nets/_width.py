"""Nets that are nested in width."""

from collections.abc import Sequence
from typing import Any, Self

import jax
from flax import nnx
from jax.typing import DTypeLike

from osgd_jax.nets._assembled import assemble
from osgd_jax.nets._base import AnytimeNet
from osgd_jax.nets._blocks import BLOCKS, STEMS, Head, SkipBlock, Stem, expansion
from osgd_jax.nets._checks import check_choice, check_interface, check_levels
from osgd_jax.nets._layers import Layers
from osgd_jax.nets._stripes import check_fractions, geometric_fractions, stripe_sizes


class _Stage(nnx.Module):
    """One stripe of the whole net."""

    def __init__(self, stem: Stem, blocks: list[SkipBlock], head: Head):
        self.stem = stem
        self.blocks = nnx.List(blocks)
        self.head = head

    def __call__(self, carry: Any) -> tuple[jax.Array, Any]:
        x = self.stem(carry["image"])
        memories = []
        for block, memory in zip(self.blocks, carry["memories"], strict=True):
            x, memory = block(x, memory)
            memories.append(memory)
        logits, pooled = self.head(x, carry["pooled"])
        return logits, {"image": carry["image"], "memories": memories, "pooled": pooled}


class WidthNestedResNet(AnytimeNet):
    """A residual net whose channels are cut into stripes, one for each output (Wan et al. 2020).

    Output k uses the stripes 0 … k of every layer; stripe k reads no later stripe. The widest
    output is a residual net of the given widths whose convolutions are block lower triangular.

    Args:
      num_classes: logits of each output.
      num_outputs: number of stripes.
      in_channels: channels of the input.
      spatial_dims: 1 or 2.
      norm: "batch" or "group"; each stripe is normalised by itself.
      rngs: source of the initial parameters.
      widths: channels of each level of resolution at the last output; a level has half the
        resolution of the one before.
      blocks: residual blocks of each level.
      fractions: cumulative fraction of the width for each output, the last of them 1; by default
        (…, 1/4, 1/2, 1).
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
        fractions = geometric_fractions(num_outputs) if fractions is None else tuple(fractions)
        check_fractions(fractions, num_outputs)
        layers = Layers(rngs, spatial_dims, norm, dtype, param_dtype, remat)
        sizes = [stripe_sizes(width, fractions) for width in widths]

        def make_stage(k: int) -> _Stage:
            stem_width = sizes[0][k]
            inherited, features = sum(sizes[0][:k]), stem_width
            stripes = []
            for level, depth in enumerate(blocks):
                width, inherited_width = sizes[level][k], sum(sizes[level][:k])
                for position in range(depth):
                    stride = 2 if level > 0 and position == 0 else 1
                    stripe = SkipBlock(
                        layers,
                        block,
                        features,
                        width,
                        inherited=inherited,
                        inherited_width=inherited_width,
                        stride=stride,
                    )
                    stripes.append(stripe)
                    inherited, features = (expansion(block) * n for n in (inherited_width, width))
            head = Head(layers, features, num_classes, inherited=inherited)
            return _Stage(Stem(layers, stem, in_channels, stem_width), stripes, head)

        super().__init__(
            [make_stage(k) for k in range(num_outputs)],
            num_classes=num_classes,
            in_channels=in_channels,
            spatial_dims=spatial_dims,
        )

    def assembled(self) -> Self:
        """The last output alone, as a plain residual net with copies of this net's parameters.

        For inference where no earlier output is needed. The stripes of each convolution become one
        dense kernel, whose upper blocks are zero: half as many multiply-adds again, but fewer and
        larger operations, which is faster on CPU unless channels are many ("Stripes and streams" in
        docs/nets.md). In training the zeros would not stay zero.

        Returns:
          A net with one output, the logits of this net's last one up to rounding. Those of
          output k come from `net.subnetwork(k).assembled()`.
        """
        net = nnx.merge(*nnx.split(self))
        net.stages = nnx.List([assemble(list(self.stages))])
        return net

    def first_carry(self, x: jax.Array) -> Any:
        """As in `AnytimeNet`: the image, and nothing in memory."""
        memories = [None] * len(self.stages[0].blocks)
        return {"image": x, "memories": memories, "pooled": None}
