"""Multi-scale dense networks (Huang et al. 2018, arXiv 1703.09844)."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from osgd_jax.nets._base import AnytimeNet
from osgd_jax.nets._blocks import STEMS, max_pool
from osgd_jax.nets._checks import check_choice, check_interface, check_positive
from osgd_jax.nets._layers import Layers

POSITIONS = ("even", "lin_grow")


class _ConvNorm(nnx.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(
        self, layers: Layers, features: int, out_features: int, *, size: int = 3, stride: int = 1
    ):
        self.conv = layers.conv(features, out_features, size=size, stride=stride)
        self.norm = layers.normalization(out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x)))


class _Bottleneck(nnx.Module):
    """A 1×1 convolution to `factor` times the output's channels at most, then a 3×3 one."""

    def __init__(
        self, layers: Layers, features: int, out_features: int, factor: int, *, stride: int = 1
    ):
        inner = min(features, factor * out_features)
        self.reduce = _ConvNorm(layers, features, inner, size=1)
        self.conv = _ConvNorm(layers, inner, out_features, stride=stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.reduce(x))


class _First(nnx.Module):
    """The first layer at one scale; the finest scale has the first convolution of the net."""

    def __init__(self, layers: Layers, features: int, out_features: int, *, stem: str | None):
        imagenet = stem == "imagenet"
        stride = 1 if stem == "cifar" else 2
        size = 7 if imagenet else 3
        self.conv = _ConvNorm(layers, features, out_features, size=size, stride=stride)
        self.pool = imagenet

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        return max_pool(x) if self.pool else x


class _Cell(nnx.Module):
    """One layer at one scale: new features from this scale and the next finer one, appended."""

    def __init__(
        self,
        same: _Bottleneck,
        down: _Bottleneck | None,
        reduction: _ConvNorm | None,
        *,
        scale: int,
        remat: bool,
    ):
        self.same = same
        self.down = down
        self.reduction = reduction
        self.scale = scale
        self.remat = remat

    def __call__(self, scales: Sequence[jax.Array]) -> jax.Array:
        """The new features of the cell's own scale; `scales` are those of all scales."""
        run: Any = nnx.remat(_Cell._run) if self.remat else _Cell._run
        first = self.scale if self.down is None else self.scale - 1
        return run(self, *scales[first : self.scale + 1])

    def _run(self, *inputs: jax.Array) -> jax.Array:
        finer, x = inputs[0], inputs[-1]
        features = [x] if self.down is None else [x, self.down(finer)]
        x = jnp.concatenate([*features, self.same(x)], axis=-1)
        return x if self.reduction is None else self.reduction(x)


class _Head(nnx.Module):
    """Two convolutions that each halve the resolution, mean over space, linear classifier."""

    def __init__(self, layers: Layers, features: int, inner: int, num_classes: int):
        self.convs = nnx.List([_ConvNorm(layers, n, inner, stride=2) for n in (features, inner)])
        self.linear = layers.linear(inner, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in self.convs:
            x = conv(x)
        return self.linear(x.mean(tuple(range(1, x.ndim - 1))))


class _Stage(nnx.Module):
    """The cells that one more classifier needs, in an order in which they can run."""

    def __init__(self, first: list[_First], cells: list[_Cell], head: _Head):
        self.first = nnx.List(first)
        self.cells = nnx.List(cells)
        self.head = head

    def __call__(self, carry: Any) -> tuple[jax.Array, Any]:
        if self.first:
            x, scales = carry, []
            for layer in self.first:
                x = layer(x)
                scales.append(x)
        else:
            scales = list(carry)
        for cell in self.cells:
            scales[cell.scale] = cell(scales)
        return self.head(scales[-1]), scales


def classifier_layers(num_outputs: int, positions: str, base: int, step: int) -> tuple[int, ...]:
    """The layer after which each classifier stands.

    The first has `base` layers before it; between the classifiers k − 1 and k lie `step` layers
    ("even") or step · k + 1 ("lin_grow").
    """
    gaps = [step if positions == "even" else step * k + 1 for k in range(1, num_outputs)]
    return tuple(base + sum(gaps[:k]) for k in range(num_outputs))


class MSDNet(AnytimeNet):
    """A multi-scale dense network (Huang et al. 2018, arXiv 1703.09844).

    Every layer keeps features at several scales and appends new ones to each, computed from all
    earlier features of the scale and of the next finer one; classifiers read the coarsest scale.
    In `scales` equal blocks of layers the finest scale left is dropped from block to block and the
    channels are reduced ("network reduction" of the paper). Features of a scale are computed when
    the first classifier needs them ("lazy evaluation"): the last output costs what it costs in the
    authors' code, the earlier ones less, and no parameter of a stage is without use for its output.

    Args:
      num_classes: logits of each output.
      num_outputs: number of classifiers.
      in_channels: channels of the input.
      spatial_dims: 1 or 2.
      norm: "batch" or "group".
      rngs: source of the initial parameters.
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
      dtype: of the computation, such as `jnp.bfloat16`; None takes that of input and parameters
        together.
      param_dtype: of the parameters; `float` is float32, or float64 under `jax.enable_x64`.
      remat: compute the inside of each layer again in the backward pass instead of keeping it.

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
        channels: int = 16,
        growth_rate: int = 6,
        growth_factors: Sequence[int] = (1, 2, 4),
        bottleneck_factors: Sequence[int] = (1, 2, 4),
        base: int = 4,
        step: int = 2,
        positions: str = "even",
        reduction: float = 0.5,
        stem: str = "cifar",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = float,
        remat: bool = False,
    ):
        check_interface(num_classes, num_outputs, in_channels)
        for name, value in (("channels", channels), ("base", base), ("step", step)):
            check_positive(name, value)
        check_choice("positions", positions, POSITIONS)
        check_choice("stem", stem, STEMS)
        _check_scales(growth_factors, bottleneck_factors, growth_rate)
        if not 0 < reduction <= 1:
            raise ValueError(f"reduction={reduction!r} must be above 0 and at most 1.")
        layers = Layers(rngs, spatial_dims, norm, dtype, param_dtype, remat)
        ends = classifier_layers(num_outputs, positions, base, step)
        num_scales, depth = len(growth_factors), ends[-1]
        interval = math.ceil(depth / num_scales)

        def finest(layer: int) -> int:
            return max(layer - 1, 0) // interval

        # Features of each layer before they are multiplied by the growth factor of the scale.
        features = [channels]
        for layer in range(1, depth + 1):
            grown = features[-1] + growth_rate
            dropped = finest(layer) > finest(layer - 1)
            features.append(math.floor(reduction * grown) if dropped else grown)

        def make_cell(layer: int, scale: int) -> _Cell:
            before = features[layer - 1]
            new = growth_rate * growth_factors[scale]
            down = None
            has_finer = scale > finest(layer - 1)
            if has_finer:
                new //= 2
                down = _Bottleneck(
                    layers,
                    before * growth_factors[scale - 1],
                    new,
                    bottleneck_factors[scale - 1],
                    stride=2,
                )
            factor = growth_factors[scale]
            same = _Bottleneck(layers, before * factor, new, bottleneck_factors[scale])
            reduce = None
            if finest(layer) > finest(layer - 1):
                grown = (before + growth_rate) * factor
                reduce = _ConvNorm(layers, grown, features[layer] * factor, size=1)
            return _Cell(same, down, reduce, scale=scale, remat=remat)

        def make_stage(k: int) -> _Stage:
            first = []
            if k == 0:
                widths = [channels * factor for factor in growth_factors]
                for scale, out in enumerate(widths):
                    before = in_channels if scale == 0 else widths[scale - 1]
                    kind = stem if scale == 0 else None
                    first.append(_First(layers, before, out, stem=kind))
            cells = []
            # The coarsest scale of layer d needs layer d − 1 of the next finer one, and so on: the
            # cells of one diagonal become necessary together.
            for diagonal in range(ends[k - 1] + 1 if k else 1, ends[k] + 1):
                for scale in range(num_scales):
                    layer = diagonal - (num_scales - 1 - scale)
                    if layer >= 1 and scale >= finest(layer):
                        cells.append(make_cell(layer, scale))
            read = features[ends[k]] * growth_factors[-1]
            inner = read if stem == "imagenet" else 128
            return _Stage(first, cells, _Head(layers, read, inner, num_classes))

        super().__init__(
            [make_stage(k) for k in range(num_outputs)],
            num_classes=num_classes,
            in_channels=in_channels,
            spatial_dims=spatial_dims,
        )


def _check_scales(
    growth_factors: Sequence[int], bottleneck_factors: Sequence[int], growth_rate: int
) -> None:
    check_positive("growth_rate", growth_rate)
    if not growth_factors or len(growth_factors) != len(bottleneck_factors):
        raise ValueError(
            f"growth_factors={tuple(growth_factors)} and bottleneck_factors="
            f"{tuple(bottleneck_factors)} must have one entry for each scale."
        )
    for name, factors in (
        ("growth_factors", growth_factors),
        ("bottleneck_factors", bottleneck_factors),
    ):
        for scale, factor in enumerate(factors):
            check_positive(f"{name}[{scale}]", factor)
    for factor in growth_factors[1:]:
        if growth_rate * factor % 2:
            raise ValueError(
                f"growth_rate={growth_rate} times each of growth_factors={tuple(growth_factors)}"
                " but the first must be even: half of the new features come from the finer scale."
            )
