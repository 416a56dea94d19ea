"""What the families of residual nets have in common: arguments, checks, assembly."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flax import nnx
from jax.typing import DTypeLike

from osgd_jax.nets._base import AnytimeNet
from osgd_jax.nets._blocks import BLOCKS, STEMS, Head, ResidualBlock, Stem, expansion
from osgd_jax.nets._checks import check_all_positive, check_choice, check_positive
from osgd_jax.nets._layers import Layers
from osgd_jax.nets._streams import Transition
from osgd_jax.nets._stripes import check_fractions, geometric_fractions, stripe_sizes


@dataclasses.dataclass
class Sizes:
    """What the stages of a residual net are made of, checked.

    Attributes:
      layers: makes the layers.
      num_classes: logits of each output.
      num_outputs: number of stages.
      in_channels: channels of the input.
      widths: channels of each level of resolution.
      blocks: residual blocks of each level.
      block: "basic" or "bottleneck".
      stem: "cifar" or "imagenet".
      stripes: how the channels of each level are cut, where they are.
    """

    layers: Layers
    num_classes: int
    num_outputs: int
    in_channels: int
    widths: Sequence[int]
    blocks: Sequence[int]
    block: str
    stem: str
    stripes: Sequence[tuple[int, ...]] = ()

    def __post_init__(self):
        for name in ("num_classes", "num_outputs", "in_channels"):
            setattr(self, name, check_positive(name, getattr(self, name)))
        for name in ("widths", "blocks"):
            setattr(self, name, check_all_positive(name, getattr(self, name)))
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
        levels = widths, blocks
        self._assemble(Sizes(layers, num_classes, num_outputs, in_channels, *levels, block, stem))

    def _assemble(self, sizes: Sizes) -> None:
        super().__init__(
            [self.make_stage(k, sizes) for k in range(sizes.num_outputs)],
            num_classes=sizes.num_classes,
            in_channels=sizes.in_channels,
            spatial_dims=sizes.layers.spatial_dims,
        )

    def make_stage(self, k: int, sizes: Sizes) -> nnx.Module:
        """The stage of output k, for a family to define."""
        raise NotImplementedError(
            f"{type(self).__name__} must define make_stage, as a family does."
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
        levels = widths, blocks
        sizes = Sizes(layers, num_classes, num_outputs, in_channels, *levels, block, stem)
        if fractions is None:
            fractions = geometric_fractions(sizes.num_outputs, self.default_ratio)
        fractions = check_fractions(fractions, sizes.num_outputs)
        sizes.stripes = [stripe_sizes(width, fractions) for width in sizes.widths]
        self._assemble(sizes)
