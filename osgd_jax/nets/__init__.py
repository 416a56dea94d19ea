"""Anytime networks as Flax NNX modules, and the layers that they are made of.

Nets for images and signals take `[batch, *spatial, channels]` with one or two spatial axes,
Transformers take tokens, integers `[batch, length]`. All have one interface:
`net(x)`, `net.start(x)`, `net.advance(k, carry)`, `net.subnetwork(k)`; see `AnytimeNet`.
"""

import importlib
from typing import Any

from osgd_jax.nets._base import AnytimeNet
from osgd_jax.nets._blocks import Head, PreactConv, ResidualBlock, SkipBlock, Stem
from osgd_jax.nets._branched import BranchedResNet
from osgd_jax.nets._branched_transformer import BranchedTransformer
from osgd_jax.nets._depth import DepthNestedResNet
from osgd_jax.nets._depth_transformer import DepthNestedTransformer
from osgd_jax.nets._grow import grow, stages_from
from osgd_jax.nets._layers import Conv, Layers, Linear
from osgd_jax.nets._msdnet import MSDNet
from osgd_jax.nets._nested import NestedResNet
from osgd_jax.nets._nested_transformer import NestedTransformer
from osgd_jax.nets._norm import BatchNorm, GroupNorm
from osgd_jax.nets._resnet import ResNet
from osgd_jax.nets._streams import Stream, Transition, WideningStream
from osgd_jax.nets._stripes import StripeConv, geometric_fractions, stripe_sizes
from osgd_jax.nets._width import WidthNestedResNet
from osgd_jax.nets._width_transformer import WidthNestedTransformer

__all__ = [
    "AnytimeNet",
    "BatchNorm",
    "BranchedResNet",
    "BranchedTransformer",
    "Conv",
    "DepthNestedResNet",
    "DepthNestedTransformer",
    "GroupNorm",
    "Head",
    "Layers",
    "Linear",
    "MSDNet",
    "NestedResNet",
    "NestedTransformer",
    "PreactConv",
    "ResNet",
    "ResidualBlock",
    "SkipBlock",
    "Stem",
    "Stream",
    "StripeConv",
    "Transition",
    "WideningStream",
    "WidthNestedResNet",
    "WidthNestedTransformer",
    "geometric_fractions",
    "grow",
    "stages_from",
    "stripe_sizes",
]


def __getattr__(name: str) -> Any:
    if name == "presets":  # imported when asked for, so that it can run as a program too
        return importlib.import_module("osgd_jax.nets.presets")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
