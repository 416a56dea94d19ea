"""Nets that are nested in width."""

from typing import Any, Self

import jax
from flax import nnx

from osgd_jax.nets._sizes import keywords_of
from osgd_jax.nets.resnets.assembled import assemble
from osgd_jax.nets.resnets.base import ResNet, StripedSizes
from osgd_jax.nets.resnets.blocks import Head, SkipBlock, Stem


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


class WidthNestedResNet(ResNet):
    """A residual net whose channels are cut into stripes, one for each output (Wan et al. 2020).

    Output k uses the stripes 0 … k of every layer; stripe k reads no later stripe. The widest
    output is a residual net of the given widths whose convolutions are block lower triangular.

    Args:
      num_outputs: number of stripes.
      norm: "batch" or "group"; each stripe is normalized separately.
      widths: channels of each level of resolution at the last output.
      fractions: cumulative fraction of the width for each output, the last of them 1; by default
        (…, 1/4, 1/2, 1).
      **others: as for `ResNet`.

    Raises:
      ValueError: an argument is invalid, or a level is too narrow for its stripes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.WidthNestedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(8,), blocks=(1,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> [logits.shape for logits in net(jnp.ones((2, 4, 4, 1)))]
      [(2, 3), (2, 3)]
    """

    @keywords_of(StripedSizes)
    def __init__(self, sizes: StripedSizes):
        self._assemble(sizes)

    def make_stage(self, k: int, sizes: StripedSizes) -> _Stage:
        """Make stripe k of all layers."""
        stem_width = sizes.stripes[0][k]
        inherited, features = sum(sizes.stripes[0][:k]), stem_width
        made = []
        for level, (stripes, depth) in enumerate(zip(sizes.stripes, sizes.blocks, strict=True)):
            width, inherited_width = stripes[k], sum(stripes[:k])
            for position in range(depth):
                stripe = SkipBlock(
                    sizes.layers,
                    sizes.block,
                    features,
                    width,
                    inherited=inherited,
                    inherited_width=inherited_width,
                    stride=2 if level > 0 and position == 0 else 1,
                )
                made.append(stripe)
                inherited, features = sizes.leaving(inherited_width), sizes.leaving(width)
        head = sizes.make_head(features, inherited=inherited)
        return _Stage(sizes.make_stem(stem_width), made, head)

    def assembled(self) -> Self:
        """Return the last output as a plain residual net, with copies of this net's parameters.

        Use it for inference without earlier outputs. The stripes of each convolution become one
        dense kernel, whose upper blocks are zero. This takes half as many multiply-adds again, but
        fewer and larger operations, and is faster on CPU unless there are many channels ("Stripes
        and streams" in docs/nets.md). In training the zeros would not stay zero.

        Returns:
          A net with one output, the logits of this net's last one up to rounding. Those of
          output k come from `net.subnetwork(k).assembled()`.
        """
        net = nnx.merge(*nnx.split(self))
        net.stages = nnx.List([assemble(list(self.stages))])
        net.stage_sizes = self.stage_sizes.with_stripes(
            (width,) for width in self.stage_sizes.widths
        )
        return net

    def first_carry(self, x: jax.Array) -> Any:
        """Return the image, with empty memories."""
        memories = [None] * len(self.stages[0].blocks)
        return {"image": x, "memories": memories, "pooled": None}
