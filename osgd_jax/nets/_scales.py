"""Cells of several scales: the layers of multi-scale dense networks (Huang et al. 2018)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from osgd_jax.nets.layers import Layers
from osgd_jax.nets.resnets.blocks import max_pool


class ConvNorm(nnx.Module):
    """Convolution, normalization, ReLU."""

    def __init__(
        self, layers: Layers, features: int, out_features: int, *, size: int = 3, stride: int = 1
    ):
        self.conv = layers.conv(features, out_features, size=size, stride=stride)
        self.norm = layers.normalization(out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x)))


class Bottleneck(nnx.Module):
    """A 1×1 convolution to `factor` times the output's channels at most, then a 3×3 one."""

    def __init__(
        self, layers: Layers, features: int, out_features: int, factor: int, *, stride: int = 1
    ):
        inner = min(features, factor * out_features)
        self.reduce = ConvNorm(layers, features, inner, size=1)
        self.conv = ConvNorm(layers, inner, out_features, stride=stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.reduce(x))


class FirstLayer(nnx.Module):
    """The first layer at one scale; the finest scale has the first convolution of the net."""

    def __init__(self, layers: Layers, features: int, out_features: int, *, stem: str | None):
        imagenet = stem == "imagenet"
        stride = 1 if stem == "cifar" else 2
        size = 7 if imagenet else 3
        self.conv = ConvNorm(layers, features, out_features, size=size, stride=stride)
        self.pool = imagenet

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        return max_pool(x) if self.pool else x


class Cell(nnx.Module):
    """One layer at one scale: new features from this scale and the next finer one, appended."""

    def __init__(
        self,
        same: Bottleneck,
        down: Bottleneck | None,
        reduction: ConvNorm | None,
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
        """Compute new features of the cell's scale from the features of all scales."""
        run: Any = nnx.remat(Cell._run) if self.remat else Cell._run
        first = self.scale if self.down is None else self.scale - 1
        return run(self, *scales[first : self.scale + 1])

    def _run(self, *inputs: jax.Array) -> jax.Array:
        finer, x = inputs[0], inputs[-1]
        features = [x] if self.down is None else [x, self.down(finer)]
        x = jnp.concatenate([*features, self.same(x)], axis=-1)
        return x if self.reduction is None else self.reduction(x)


class ScaleHead(nnx.Module):
    """Two convolutions that each halve the resolution, mean over space, linear classifier."""

    def __init__(self, layers: Layers, features: int, inner: int, num_classes: int):
        self.convs = nnx.List([ConvNorm(layers, n, inner, stride=2) for n in (features, inner)])
        self.linear = layers.linear(inner, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in self.convs:
            x = conv(x)
        return self.linear(x.mean(tuple(range(1, x.ndim - 1))))


class Stage(nnx.Module):
    """The cells that one more classifier needs, in an order in which they can run."""

    def __init__(self, first: list[FirstLayer], cells: list[Cell], head: ScaleHead):
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
