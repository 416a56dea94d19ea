"""Nets by name, sized for a data set."""

from collections.abc import Sequence
from typing import Any

from flax import nnx

import osgd_jax.nets
from experiments.data import Dataset

NETS = {
    "branched": osgd_jax.nets.BranchedResNet,
    "msdnet": osgd_jax.nets.MSDNet,
    "width-nested": osgd_jax.nets.WidthNestedResNet,
    "depth-nested": osgd_jax.nets.DepthNestedResNet,
    "nested": osgd_jax.nets.NestedResNet,
}


def make_net(
    name: str,
    dataset: Dataset,
    *,
    num_outputs: int,
    rngs: nnx.Rngs,
    widths: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    norm: str = "batch",
    stem: str = "cifar",
    dtype: Any = None,
) -> osgd_jax.nets.AnytimeNet:
    """Make a net for a data set's classes and input shape.

    Args:
      name: one of `NETS`.
      dataset: what it is for.
      num_outputs: K.
      rngs: source of the initial parameters.
      widths: channels of each level of resolution; the family's default if None.
      blocks: residual blocks of each level; one if None.
      norm: "batch" or "group".
      stem: "cifar", or "imagenet" for large images.
      dtype: of the computation; float32 if None.

    Raises:
      ValueError: an unknown name, or sizes that the net refuses.
    """
    if name not in NETS:
        raise ValueError(f"net={name!r} is unknown; use one of {', '.join(NETS)}.")
    if name == "msdnet" and (widths is not None or blocks is not None):
        raise ValueError("net=msdnet has no widths and blocks; its sizes are those of the family.")
    *spatial, channels = dataset.input_shape
    sizes = {} if widths is None else {"widths": widths, "blocks": blocks or (1,) * len(widths)}
    if widths is None and blocks is not None:
        raise ValueError("blocks are given for each of the widths; give --widths too.")
    return NETS[name](
        num_classes=dataset.num_classes,
        num_outputs=num_outputs,
        in_channels=channels,
        spatial_dims=len(spatial),
        norm=norm,
        rngs=rngs,
        stem=stem,
        dtype=dtype,
        **sizes,
    )
