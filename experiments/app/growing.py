"""Growth of a trained net: sizes of the grown one, and the part of it that is trained."""

import dataclasses
from typing import Any

from flax import nnx

from experiments.app.config import TrainConfig
from experiments.app.nets import Sizes
from experiments.app.workdir import has_results, read_config
from osgd_jax import nets


def with_sizes(config: TrainConfig) -> TrainConfig:
    """Return the settings with the sizes of the net that grows.

    A run that is continued has them in its workdir; the other run may be gone.

    Raises:
      ValueError: there is no such run, options give other sizes, or no output is new.
    """
    origin = config.run.grow_from
    if origin is None:
        return config
    if has_results(config.workdir):
        known = read_config(config.workdir).net
    else:
        known = read_config(origin).net
        known = dataclasses.replace(known, grown_from=(*known.grown_from, known.outputs))
    for field in dataclasses.fields(Sizes):
        given, own = (getattr(sizes, field.name) for sizes in (config.net, known))
        if field.name not in ("outputs", "grown_from") and given not in (field.default, own):
            raise ValueError(
                f"{field.name}={given} must be that of grow_from={origin}, {own}; leave it out."
            )
    outputs = config.net.outputs
    if known.grown_from and outputs <= known.grown_from[-1]:
        raise ValueError(
            f"outputs={outputs} must be above the {known.grown_from[-1]} of grow_from={origin}."
        )
    return dataclasses.replace(config, net=dataclasses.replace(known, outputs=outputs))


def split(config: TrainConfig, net: nets.AnytimeNet) -> tuple[Any, Any, Any]:
    """Split a net into its graph, the parameters that are trained, and its other variables.

    Stages that are frozen are put in evaluation mode, so that their statistics stay.
    """
    trained: Any = nnx.Param
    if config.frozen:
        trained = nnx.All(nnx.Param, nets.stages_from(config.frozen))
        for stage in net.stages[: config.frozen]:
            stage.eval()
    graphdef, params, rest = nnx.split(net, trained, ...)
    return graphdef, params, rest
