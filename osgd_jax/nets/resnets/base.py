"""What the families of residual nets have in common: arguments, checks, assembly."""

import dataclasses
import operator
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

from flax import nnx
from jax.typing import DTypeLike

from osgd_jax._validation import check_all_positive, check_choice, check_positive
from osgd_jax.nets._sizes import NetSizes, default_width, more_stripes
from osgd_jax.nets.base import AnytimeNet
from osgd_jax.nets.layers import Layers
from osgd_jax.nets.resnets.blocks import (
    BLOCKS,
    STEMS,
    Head,
    ResidualBlock,
    Stem,
    expansion,
)
from osgd_jax.nets.resnets.streams import Transition
from osgd_jax.nets.stripes import check_fractions, geometric_fractions, stripe_sizes


@dataclasses.dataclass(frozen=True)
class Sizes(NetSizes):
    """What the stages of a residual net are made of, checked.

    Attributes:
      layers: makes the layers.
      num_outputs: number of stages.
      num_classes: logits of each output.
      in_channels: channels of the input.
      widths: channels of each level of resolution.
      blocks: residual blocks of each level.
      block: "basic" or "bottleneck".
      stem: "cifar" or "imagenet".
    """

    num_classes: int
    in_channels: int
    widths: Sequence[int]
    blocks: Sequence[int]
    block: str
    stem: str

    def __post_init__(self):
        for name in ("num_classes", "num_outputs", "in_channels"):
            object.__setattr__(self, name, check_positive(name, getattr(self, name)))
        for name in ("widths", "blocks"):
            object.__setattr__(self, name, check_all_positive(name, getattr(self, name)))
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths={self.widths} and blocks={self.blocks} must have one entry for each level"
                " of resolution."
            )
        check_choice("block", self.block, BLOCKS)
        check_choice("stem", self.stem, STEMS)

    def leaving(self, width: int) -> int:
        """Channels that leave a block of this width."""
        return expansion(self.block) * width

    def make_stem(self, out_features: int) -> Stem:
        """The first layer."""
        return Stem(self.layers, self.stem, self.in_channels, out_features)

    def make_transition(self, level: int, features: int, out_features: int) -> Transition | None:
        """What brings a stream to a level; None where it comes as it should be."""
        if level == 0 and features == out_features:
            return None
        return Transition(self.layers, features, out_features, stride=2 if level > 0 else 1)

    def make_block(self, width: int) -> ResidualBlock:
        """A block of a stream, as wide as the stream."""
        return ResidualBlock(self.layers, self.block, self.leaving(width), width)

    def make_head(self, features: int, *, inherited: int = 0) -> Head:
        """A classifier."""
        return Head(self.layers, features, self.num_classes, inherited=inherited)


@dataclasses.dataclass(frozen=True)
class StripedSizes(Sizes):
    """The sizes of a net whose channels are cut into stripes.

    Attributes:
      stripes: for each level, the channels of each stripe; they sum to its width.
      ratio: how many times as wide the next output is, unless its width is given.
    """

    stripes: tuple[tuple[int, ...], ...] = ()
    ratio: float = 2.0

    growable: ClassVar[tuple[str, ...]] = ("widths",)

    def with_stripes(self, stripes: Iterable[tuple[int, ...]]) -> Self:
        """Return the sizes of a net of these stripes."""
        stripes = tuple(stripes)
        return dataclasses.replace(
            self, num_outputs=len(stripes[0]), widths=tuple(map(sum, stripes)), stripes=stripes
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
    """A residual net with several outputs; each family says how its stages are made.

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
      ValueError: an argument is not one of those above.
    """

    sizes_type: ClassVar[type[Sizes]] = Sizes

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
        layers = Layers(rngs, spatial_dims, norm, dtype, param_dtype, remat)
        chosen = num_classes, in_channels, widths, blocks, block, stem
        self._assemble(self.sizes_type(layers, num_outputs, *chosen))

    def _assemble(self, sizes: Sizes) -> None:
        super().__init__(
            [self.make_stage(k, sizes) for k in range(sizes.num_outputs)],
            num_classes=sizes.num_classes,
            in_channels=sizes.in_channels,
            spatial_dims=sizes.layers.spatial_dims,
            sizes=sizes,
        )


class StripedResNet(ResNet):
    """A `ResNet` whose channels are cut into stripes, one for each output.

    Args:
      num_classes: as for `ResNet`, and so all others but:
      widths: channels of each level of resolution at the last output.
      fractions: cumulative fraction of the width for each output, the last of them 1.
    """

    default_ratio: ClassVar[float] = 2.0

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
        layers = Layers(rngs, spatial_dims, norm, dtype, param_dtype, remat)
        chosen = num_classes, in_channels, widths, blocks, block, stem
        sizes = StripedSizes(layers, num_outputs, *chosen, ratio=self.default_ratio)
        if fractions is None:
            fractions = geometric_fractions(sizes.num_outputs, self.default_ratio)
        fractions = check_fractions(fractions, sizes.num_outputs)
        stripes = (stripe_sizes(width, fractions) for width in sizes.widths)
        self._assemble(sizes.with_stripes(stripes))
