"""The base class of residual nets: arguments, checks, assembly."""

import dataclasses
import operator
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

from osgd_jax._validation import check_all_positive, check_choice
from osgd_jax.nets._sizes import ImageSizes, default_width, keywords_of, more_stripes
from osgd_jax.nets.base import AnytimeNet
from osgd_jax.nets.resnets.blocks import (
    BLOCKS,
    Head,
    ResidualBlock,
    Stem,
    expansion,
)
from osgd_jax.nets.resnets.streams import Transition
from osgd_jax.nets.stripes import check_fractions, geometric_fractions, stripe_sizes


def check_levels(widths: Any, blocks: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return channels and numbers of blocks of each level of resolution as tuples.

    Raises:
      ValueError: not integers of at least one, or not as many of both.
    """
    widths, blocks = check_all_positive("widths", widths), check_all_positive("blocks", blocks)
    if len(widths) != len(blocks):
        raise ValueError(
            f"widths={widths} and blocks={blocks} must have one entry for each level of resolution."
        )
    return widths, blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes(ImageSizes):
    """The keywords of `ResNet`."""

    widths: Sequence[int] = (16, 32, 64)
    blocks: Sequence[int] = (1, 1, 1)
    block: str = "basic"

    def __post_init__(self):
        super().__post_init__()
        widths, blocks = check_levels(self.widths, self.blocks)
        self._set(widths=widths, blocks=blocks)
        check_choice("block", self.block, BLOCKS)

    def leaving(self, width: int) -> int:
        """Return the number of channels that leave a block of this width."""
        return expansion(self.block) * width

    def make_stem(self, out_features: int) -> Stem:
        """Make the first layer."""
        return Stem(self.layers, self.stem, self.in_channels, out_features)

    def make_transition(self, level: int, features: int, out_features: int) -> Transition | None:
        """Return the layer that adapts a stream to a level, or None if none is needed."""
        if level == 0 and features == out_features:
            return None
        return Transition(self.layers, features, out_features, stride=2 if level > 0 else 1)

    def make_block(self, width: int) -> ResidualBlock:
        """Make a block of a stream, as wide as the stream."""
        return ResidualBlock(self.layers, self.block, self.leaving(width), width)

    def make_head(self, features: int, *, inherited: int = 0) -> Head:
        """Make a classifier."""
        return Head(self.layers, features, self.num_classes, inherited=inherited)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StripedSizes(Sizes):
    """The keywords of a `ResNet` whose channels are cut into stripes, one for each output.

    Attributes:
      stripes: for each level, the channels of each stripe; they sum to its width.
      ratio: how many times as wide the next output is, unless its width is given.
    """

    fractions: dataclasses.InitVar[Sequence[float] | None] = None
    stripes: tuple[tuple[int, ...], ...] = dataclasses.field(init=False)

    ratio: ClassVar[float] = 2.0

    def __post_init__(self, fractions: Sequence[float] | None):
        super().__post_init__()
        if fractions is None:
            fractions = geometric_fractions(self.num_outputs, self.ratio)
        fractions = check_fractions(fractions, self.num_outputs)
        self._set(stripes=tuple(stripe_sizes(width, fractions) for width in self.widths))

    def with_stripes(self, stripes: Iterable[tuple[int, ...]]) -> Self:
        """Return the sizes of a net of these stripes."""
        stripes = tuple(stripes)
        return self.changed(
            num_outputs=len(stripes[0]), widths=tuple(map(sum, stripes)), stripes=stripes
        )

    def first(self, num_outputs: int) -> Self:
        """Return the sizes of the first outputs alone."""
        return self.with_stripes(stripes[:num_outputs] for stripes in self.stripes)

    def grown(self, num_outputs: int, widths: Any = None) -> Self:
        """Return the sizes of a wider net with the same first stripes; see `NetSizes`."""
        count = num_outputs - self.num_outputs
        if widths is None:
            widths = [default_width(width, self.ratio, count) for width in self.widths]
        widths = check_all_positive("widths", widths)
        least = tuple(width + count for width in self.widths)
        if len(widths) != len(least) or any(map(operator.lt, widths, least)):
            raise ValueError(
                f"widths={widths} must be at least {least}: those of the net, {self.widths}, and a"
                " channel more for each new output."
            )
        levels = zip(self.stripes, self.widths, widths, strict=True)
        return self.with_stripes(
            stripes + more_stripes(width, wider, count) for stripes, width, wider in levels
        )


class ResNet(AnytimeNet):
    """A residual net with several outputs, the base class of the families.

    Args:
      num_classes: logits of each output.
      num_outputs: number of outputs.
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
      ValueError: an argument is invalid.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.DepthNestedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(1,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> isinstance(net, nets.ResNet), net.num_outputs
      (True, 2)
    """

    @keywords_of(Sizes)
    def __init__(self, sizes: Sizes):
        self._assemble(sizes)
