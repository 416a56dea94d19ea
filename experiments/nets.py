"""Nets by name, sized for a data set."""

from collections.abc import Sequence

from flax import nnx

import osgd_jax.nets
from experiments.data import Dataset

NETS = {
    "width-nested": osgd_jax.nets.WidthNestedResNet,
    "depth-nested": osgd_jax.nets.DepthNestedResNet,
}


def make_net(
    name: str, dataset: Dataset, *, num_outputs: int, widths: Sequence[int], rngs: nnx.Rngs
) -> osgd_jax.nets.AnytimeNet:
    """Make a net with one residual block a level, for a data set's classes and input shape.

    Args:
      name: one of `NETS`.
      dataset: what it is for.
      num_outputs: K.
      widths: channels of each level of resolution.
      rngs: source of the initial parameters.

    Raises:
      ValueError: an unknown name, or sizes that the net refuses.
    """
    if name not in NETS:
        raise ValueError(f"net={name!r} is unknown; use one of {', '.join(NETS)}.")
    *spatial, channels = dataset.input_shape
    return NETS[name](
        num_classes=dataset.num_classes,
        num_outputs=num_outputs,
        in_channels=channels,
        spatial_dims=len(spatial),
        rngs=rngs,
        widths=widths,
        blocks=(1,) * len(widths),
    )
