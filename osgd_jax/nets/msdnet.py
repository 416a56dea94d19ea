"""Multi-scale dense networks (Huang et al. 2018, arXiv 1703.09844)."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Self

from osgd_jax._validation import (
    as_number,
    check_all_positive,
    check_choice,
    check_positive,
)
from osgd_jax.nets._scales import (
    Bottleneck,
    Cell,
    ConvNorm,
    FirstLayer,
    ScaleHead,
    Stage,
)
from osgd_jax.nets._sizes import ImageSizes, keywords_of
from osgd_jax.nets.base import AnytimeNet

POSITIONS = ("even", "lin_grow")


def classifier_layers(num_outputs: int, positions: str, base: int, step: int) -> tuple[int, ...]:
    """Return the layer after which each classifier stands.

    The first has `base` layers before it; between the classifiers k − 1 and k lie `step` layers
    ("even") or step · k + 1 ("lin_grow").
    """
    gaps = (_gap(k, positions, step) for k in range(1, num_outputs))
    return tuple(itertools.accumulate(gaps, initial=base))


def _gap(k: int, positions: str, step: int) -> int:
    """Return the number of layers between the classifiers k − 1 and k."""
    return step if positions == "even" else step * k + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MSDNetSizes(ImageSizes):
    """The keywords of `MSDNet`.

    Attributes:
      ends: the layer after which each classifier stands.
      period: layers from one drop of the finest scale to the next.
    """

    channels: int = 16
    growth_rate: int = 6
    growth_factors: Sequence[int] = (1, 2, 4)
    bottleneck_factors: Sequence[int] = (1, 2, 4)
    base: dataclasses.InitVar[int] = 4
    step: int = 2
    positions: str = "even"
    reduction: float = 0.5
    ends: tuple[int, ...] = dataclasses.field(init=False)
    period: int = dataclasses.field(init=False)

    def __post_init__(self, base: int):
        super().__post_init__()
        check_choice("positions", self.positions, POSITIONS)
        if not 0 < as_number(self.reduction) <= 1:
            raise ValueError(
                f"reduction={self.reduction!r} must be a number above 0 and at most 1."
            )
        for name in ("channels", "growth_rate", "step"):
            self._set(**{name: check_positive(name, getattr(self, name))})
        for name in ("growth_factors", "bottleneck_factors"):
            self._set(**{name: check_all_positive(name, getattr(self, name))})
        self._check_scales()
        base = check_positive("base", base)
        ends = classifier_layers(self.num_outputs, self.positions, base, self.step)
        period = math.ceil(ends[-1] / self.num_scales)
        self._set(reduction=float(self.reduction), ends=ends, period=period)

    def _check_scales(self) -> None:
        growth, bottleneck = self.growth_factors, self.bottleneck_factors
        if len(growth) != len(bottleneck):
            raise ValueError(
                f"growth_factors={growth} and bottleneck_factors={bottleneck} must have one entry"
                " for each scale."
            )
        if any(self.growth_rate * factor % 2 for factor in growth[1:]):
            raise ValueError(
                f"growth_rate={self.growth_rate} times each of growth_factors={growth} but the"
                " first must be even: half of the new features come from the finer scale."
            )

    @property
    def num_scales(self) -> int:
        """Return the number of scales."""
        return len(self.growth_factors)

    def first(self, num_outputs: int) -> Self:
        """Return the sizes of the first outputs alone."""
        return self.changed(num_outputs=num_outputs, ends=self.ends[:num_outputs])

    def grown(self, num_outputs: int, step: Any = None) -> Self:
        """Return the sizes of a deeper net with the same first layers; see `NetSizes`.

        Scales are dropped at the same pace until only the coarsest is left.
        """
        step = self.step if step is None else check_positive("step", step)
        new = range(self.num_outputs, num_outputs)
        gaps = (_gap(k, self.positions, step) for k in new)
        ends = tuple(itertools.accumulate(gaps, initial=self.ends[-1]))
        return self.changed(num_outputs=num_outputs, ends=self.ends + ends[1:])

    def finest(self, layer: int) -> int:
        """Return the finest scale that a layer still has."""
        return min(max(layer - 1, 0) // self.period, self.num_scales - 1)

    def drops(self, layer: int) -> bool:
        """Tell whether a scale ends before this layer, and channels are reduced."""
        return self.finest(layer) > self.finest(layer - 1)

    @functools.cached_property
    def features(self) -> list[int]:
        """Return the channels of each layer, not yet times the growth factor of the scale."""
        features = [self.channels]
        for layer in range(1, self.ends[-1] + 1):
            grown = features[-1] + self.growth_rate
            features.append(math.floor(self.reduction * grown) if self.drops(layer) else grown)
            if features[-1] < 1:
                raise ValueError(
                    f"reduction={self.reduction} leaves none of the {grown} channels at layer"
                    f" {layer}; take at least {1 / grown:.3g}."
                )
        return features

    def make_first(self) -> list[FirstLayer]:
        """Make the first layer at all scales."""
        widths = [self.channels * factor for factor in self.growth_factors]
        return [
            FirstLayer(self.layers, before, out, stem=self.stem if scale == 0 else None)
            for scale, (before, out) in enumerate(itertools.pairwise([self.in_channels, *widths]))
        ]

    def make_cell(self, layer: int, scale: int) -> Cell:
        """Make one layer at one scale."""
        before, factor = self.features[layer - 1], self.growth_factors[scale]
        new, down, reduction = self.growth_rate * factor, None, None
        if scale > self.finest(layer - 1):
            new //= 2
            finer, squeeze = self.growth_factors[scale - 1], self.bottleneck_factors[scale - 1]
            down = Bottleneck(self.layers, before * finer, new, squeeze, stride=2)
        same = Bottleneck(self.layers, before * factor, new, self.bottleneck_factors[scale])
        if self.drops(layer):
            grown = (before + self.growth_rate) * factor
            reduction = ConvNorm(self.layers, grown, self.features[layer] * factor, size=1)
        return Cell(same, down, reduction, scale=scale, remat=self.layers.remat)

    def make_stage(self, k: int) -> Stage:
        """Make the stage of output k."""
        first = self.make_first() if k == 0 else []
        cells = []
        # The coarsest scale of layer d needs layer d − 1 of the next finer one, and so on: the
        # cells of one diagonal become necessary together.
        for diagonal in range(self.ends[k - 1] + 1 if k else 1, self.ends[k] + 1):
            for scale in range(self.num_scales):
                layer = diagonal - (self.num_scales - 1 - scale)
                if layer >= 1 and scale >= self.finest(layer):
                    cells.append(self.make_cell(layer, scale))
        read = self.features[self.ends[k]] * self.growth_factors[-1]
        inner = read if self.stem == "imagenet" else 128
        return Stage(first, cells, ScaleHead(self.layers, read, inner, self.num_classes))


class MSDNet(AnytimeNet):
    """A multi-scale dense network (Huang et al. 2018, arXiv 1703.09844).

    Every layer keeps features at several scales and appends new ones to each, computed from all
    earlier features of the scale and of the next finer one; classifiers read the coarsest scale. In
    `scales` equal blocks of layers the finest scale left is dropped from block to block and the
    channels are reduced ("network reduction" of the paper). Features of a scale are computed when
    the first classifier needs them ("lazy evaluation"). The last output therefore costs as much as
    in the authors' code and the earlier ones less, and each output uses all parameters of its
    stage.

    Args:
      num_outputs: number of classifiers.
      channels: of the first layer, times the growth factor of the scale.
      growth_rate: channels that each layer appends, times the growth factor of the scale.
      growth_factors: one for each scale, finest first.
      bottleneck_factors: one for each scale: how many times the channels that leave a 3×3
        convolution may enter it.
      base: layers before the first classifier.
      step: layers from one classifier to the next, see `positions`.
      positions: "even", or "lin_grow" for 1 + step · k layers before classifier k.
      reduction: share of the channels that stays where a scale is dropped.
      stem: "cifar" or "imagenet", which goes down by four. It also sets the heads' channels: 128,
        or as many as the coarsest scale has.
      **others: as for `ResNet`.

    Raises:
      ValueError: an argument is invalid.

    Example:
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.MSDNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, channels=4, growth_rate=2,
      ...     growth_factors=(1, 2), bottleneck_factors=(1, 2), base=2, step=1, rngs=nnx.Rngs(0),
      ... )
      >>> [output.multiply_adds for output in osgd_jax.cost(net, (8, 8, 1))]
      [237312, 441280]
    """

    @keywords_of(MSDNetSizes)
    def __init__(self, sizes: MSDNetSizes):
        self._assemble(sizes)

    def make_stage(self, k: int, sizes: MSDNetSizes) -> Stage:
        """Make the cells and the head of output k."""
        return sizes.make_stage(k)
