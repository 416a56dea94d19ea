"""Anytime networks as Flax NNX modules, and their layers.

Nets for images and signals take `[batch, *spatial, channels]` with one or two spatial axes,
Transformers take tokens, integers `[batch, length]`. All have one interface:
`net(x)`, `net.start(x)`, `net.advance(k, carry)`, `net.subnetwork(k)`; see `AnytimeNet`.
"""

import importlib
from typing import Any

from osgd_jax.nets.base import AnytimeNet
from osgd_jax.nets.growing import grow, stages_from
from osgd_jax.nets.layers import Conv, Layers, Linear
from osgd_jax.nets.msdnet import MSDNet
from osgd_jax.nets.norm import BatchNorm, GroupNorm
from osgd_jax.nets.resnets.base import ResNet
from osgd_jax.nets.resnets.blocks import (
    Head,
    PreactConv,
    ResidualBlock,
    SkipBlock,
    Stem,
)
from osgd_jax.nets.resnets.branched import BranchedResNet
from osgd_jax.nets.resnets.depth_nested import DepthNestedResNet
from osgd_jax.nets.resnets.nested import NestedResNet
from osgd_jax.nets.resnets.streams import Stream, Transition, WideningStream
from osgd_jax.nets.resnets.width_nested import WidthNestedResNet
from osgd_jax.nets.stripes import StripeConv, geometric_fractions, stripe_sizes
from osgd_jax.nets.transformers.branched import BranchedTransformer
from osgd_jax.nets.transformers.depth_nested import DepthNestedTransformer
from osgd_jax.nets.transformers.nested import NestedTransformer
from osgd_jax.nets.transformers.width_nested import WidthNestedTransformer

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
