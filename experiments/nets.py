"""Nets by name, sized for a data set."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx

import osgd_jax.nets
from experiments.data import Dataset
from experiments.settings import require

Family = Literal["branched", "msdnet", "width-nested", "depth-nested", "nested"]

# Those that are made of residual blocks, at several widths.
ResNetFamily = Literal["branched", "width-nested", "depth-nested", "nested"]

NETS = {
    "branched": osgd_jax.nets.BranchedResNet,
    "msdnet": osgd_jax.nets.MSDNet,
    "width-nested": osgd_jax.nets.WidthNestedResNet,
    "depth-nested": osgd_jax.nets.DepthNestedResNet,
    "nested": osgd_jax.nets.NestedResNet,
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The net.

    Attributes:
      net: family of anytime nets.
      outputs: number of outputs, K.
      widths: channels of each level of resolution, at the last output for a width-nested net; the
        family's own if not given.
      blocks: residual blocks of each level; one if not given.
      norm: batch or group normalisation.
      stem: cifar, or imagenet for large images.
      precision: numbers that the net computes with; parameters are always float32.
    """

    net: Family = "depth-nested"
    outputs: int = 3
    widths: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None
    norm: Literal["batch", "group"] = "batch"
    stem: Literal["cifar", "imagenet"] = "cifar"
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        require(self, fields=("outputs", "widths", "blocks"), at_least=1)
        if self.net == "msdnet" and (self.widths, self.blocks) != (None, None):
            raise ValueError(
                "net=msdnet has no widths and blocks; its sizes are those of the family."
            )
        if self.widths is None and self.blocks is not None:
            raise ValueError("blocks are given for each of the widths; give --widths too.")


def make_net(sizes: Sizes, dataset: Dataset, rngs: nnx.Rngs) -> osgd_jax.nets.AnytimeNet:
    """Make a net for a data set's classes and input shape.

    Args:
      sizes: of the net.
      dataset: what it is for.
      rngs: source of the initial parameters.

    Raises:
      ValueError: sizes that the net refuses.
    """
    *spatial, channels = dataset.input_shape
    levels = {}
    if sizes.widths is not None:
        levels = {"widths": sizes.widths, "blocks": sizes.blocks or (1,) * len(sizes.widths)}
    return NETS[sizes.net](
        num_classes=dataset.num_classes,
        num_outputs=sizes.outputs,
        in_channels=channels,
        spatial_dims=len(spatial),
        norm=sizes.norm,
        rngs=rngs,
        stem=sizes.stem,
        dtype=None if sizes.precision == "float32" else jnp.dtype(sizes.precision),
        **levels,
    )
