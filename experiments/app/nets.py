"""Nets by name, sized for a data set."""

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp
import tyro
from flax import nnx

import osgd_jax.nets
from experiments.app.data import Dataset
from experiments.app.settings import require
from osgd_jax.nets import presets

Family = Literal["branched", "msdnet", "width-nested", "depth-nested", "nested"]

TextFamily = Literal[
    "branched-transformer",
    "width-nested-transformer",
    "depth-nested-transformer",
    "nested-transformer",
]

# Families made of residual blocks, at several widths.
ResNetFamily = Literal["branched", "width-nested", "depth-nested", "nested"]

NETS = {
    "branched": osgd_jax.nets.BranchedResNet,
    "msdnet": osgd_jax.nets.MSDNet,
    "width-nested": osgd_jax.nets.WidthNestedResNet,
    "depth-nested": osgd_jax.nets.DepthNestedResNet,
    "nested": osgd_jax.nets.NestedResNet,
}

TRANSFORMERS = {
    "branched-transformer": osgd_jax.nets.BranchedTransformer,
    "width-nested-transformer": osgd_jax.nets.WidthNestedTransformer,
    "depth-nested-transformer": osgd_jax.nets.DepthNestedTransformer,
    "nested-transformer": osgd_jax.nets.NestedTransformer,
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The net.

    Attributes:
      net: family of anytime nets; a Transformer for text.
      outputs: number of outputs, K.
      widths: channels of each level of resolution, at the last output for a width-nested net; the
        family's own if not given.
      blocks: residual blocks of each level; one if not given.
      width: channels of a Transformer; the family's own if not given.
      depth: layers of a Transformer, at the first output where it is nested in depth; as above.
      heads: attention heads of a Transformer; as above.
      preset: name in `osgd_jax.nets.presets`, whose sizes are taken where none are given; net,
        outputs and stem must be its own.
      norm: batch or group normalisation.
      stem: cifar, or imagenet for large images.
      precision: numbers that the net computes with; parameters are always float32.
      grown_from: numbers of outputs that the net had before it grew, in order; the other sizes are
        those of the first. A run sets them from `--grow-from`.
    """

    net: Family | TextFamily = "depth-nested"
    outputs: int = 3
    widths: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    preset: str | None = None
    norm: Literal["batch", "group"] = "batch"
    stem: Literal["cifar", "imagenet"] = "cifar"
    precision: Literal["float32", "bfloat16"] = "float32"
    grown_from: tyro.conf.Suppress[tuple[int, ...]] = ()

    @property
    def first_outputs(self) -> int:
        """Number of outputs before the net grew."""
        return (*self.grown_from, self.outputs)[0]

    def __post_init__(self):
        sizes = ("width", "depth", "heads")
        require(self, fields=("outputs", "widths", "blocks", *sizes), at_least=1)
        own, others = ("widths", "blocks"), sizes
        if self.net in TRANSFORMERS:
            own, others = others, own
        wrong = [name for name in others if getattr(self, name) is not None]
        if wrong:
            raise ValueError(f"net={self.net} has no {wrong[0]}; its sizes are {', '.join(own)}.")
        if self.net == "msdnet" and (self.widths, self.blocks) != (None, None):
            raise ValueError(
                "net=msdnet has no widths and blocks; its sizes are those of the family."
            )
        if self.widths is None and self.blocks is not None:
            raise ValueError("blocks are given for each of the widths; give --widths too.")
        if self.preset is not None:
            self._check_preset(self.preset)

    def _check_preset(self, name: str):
        if name not in presets.PRESETS:
            raise ValueError(f"preset={name} must be one of {', '.join(presets.PRESETS)}.")
        preset = presets.PRESETS[name]
        families = {make: family for family, make in (NETS | TRANSFORMERS).items()}
        needed = {
            "net": families[preset.make],
            "outputs": preset.arguments.get("num_outputs", Sizes.outputs),
            "stem": preset.arguments.get("stem", Sizes.stem),
        }
        given = {"net": self.net, "outputs": self.first_outputs, "stem": self.stem}
        if given != needed:
            options = " ".join(f"--{option} {value}" for option, value in needed.items())
            raise ValueError(f"preset={name} is of another net; give {options}, too.")


def make_net(sizes: Sizes, dataset: Dataset, rngs: nnx.Rngs) -> osgd_jax.nets.AnytimeNet:
    """Make a net for a data set's classes and input shape, and let it grow as it did before.

    Args:
      sizes: of the net.
      dataset: what it is for.
      rngs: source of the initial parameters.

    Raises:
      ValueError: sizes that the net refuses.
    """
    net = _first_net(sizes, dataset, rngs)
    for outputs in (*sizes.grown_from, sizes.outputs)[1:]:
        net = osgd_jax.nets.grow(net, outputs, rngs=rngs)
    return net


def _first_net(sizes: Sizes, dataset: Dataset, rngs: nnx.Rngs) -> osgd_jax.nets.AnytimeNet:
    dtype = None if sizes.precision == "float32" else jnp.dtype(sizes.precision)
    if dataset.is_text != (sizes.net in TRANSFORMERS):
        known = ", ".join(TRANSFORMERS if dataset.is_text else NETS)
        raise ValueError(f"net={sizes.net} does not take {dataset.name}; use one of {known}.")
    make = (NETS | TRANSFORMERS)[sizes.net]
    if sizes.preset is not None:
        make = functools.partial(presets.make, sizes.preset)
    if sizes.net in TRANSFORMERS:
        given = {"width": sizes.width, "depth": sizes.depth, "num_heads": sizes.heads}
        return make(
            vocab_size=dataset.num_classes,
            num_outputs=sizes.first_outputs,
            rngs=rngs,
            dtype=dtype,
            **{name: size for name, size in given.items() if size is not None},
        )
    *spatial, channels = dataset.input_shape
    levels = {}
    if sizes.widths is not None:
        levels = {"widths": sizes.widths, "blocks": sizes.blocks or (1,) * len(sizes.widths)}
    return make(
        num_classes=dataset.num_classes,
        num_outputs=sizes.first_outputs,
        in_channels=channels,
        spatial_dims=len(spatial),
        norm=sizes.norm,
        rngs=rngs,
        stem=sizes.stem,
        dtype=dtype,
        **levels,
    )
