"""The ways to train that an experiment can compare, by name."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import optax

import osgd_jax
from osgd_jax import weightings

# Methods that are no function of the Gramian alone: transformations of their own.
ROW_METHODS = ("db_mtl", "excess_mtl", "graddrop", "moco")


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train an anytime net.

    Attributes:
      name: as shown in tables.
      optimizer: from a learning-rate schedule to a transformation of one gradient.
      balance: from task gradients to one gradient; that of the sum of the losses if None.
      output: train this output alone, in the subnetwork that ends with it; all if None.
    """

    name: str
    optimizer: Callable[[Any], optax.GradientTransformation]
    balance: optax.GradientTransformationExtraArgs | None = None
    output: int | None = None


def method(
    name: str,
    *,
    momentum: float,
    scope: str = "shared",
    order: str = "first_to_last",
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    num_tasks: int | None = None,
    seed: int = 0,
) -> Method:
    """Make a method by its name.

    Args:
      name: `"sgd"` on the sum of the losses, `"osgd"`, the name of a weighting, or one of
        `ROW_METHODS`.
      momentum: Nesterov momentum's decay rate.
      scope: which parameters are balanced together, as for `osgd_jax.aggregate`.
      order: of priority, for OSGD.
      weight_decay: times the parameters is added to the gradient.
      clip_norm: the norm to which a longer gradient is scaled down, before weight decay is added.
      num_tasks: number of outputs, for the methods that keep a state for each.
      seed: for what the method draws at random.

    Raises:
      ValueError: an unknown name, or a weighting that needs more than its name.
    """
    optimizer = functools.partial(
        _sgd, momentum=momentum, weight_decay=weight_decay, clip_norm=clip_norm
    )
    if name == "sgd":
        return Method(name, optimizer)
    if name == "osgd":
        key = seed if order == "random" else None
        permutation = tuple(map(int, order.split(","))) if order[:1].isdigit() else order
        return Method(name, optimizer, osgd_jax.orthogonalize(permutation, scope, key))  # pyright: ignore[reportArgumentType] - checked there
    if name == "graddrop":
        return Method(name, optimizer, osgd_jax.graddrop(seed))
    if name in ROW_METHODS:
        make = getattr(osgd_jax, name)
        return Method(name, optimizer, make(num_tasks, scope=scope))
    return Method(name, optimizer, osgd_jax.aggregate(_weighting(name, num_tasks), scope, seed))


def alone(output: int, *, momentum: float) -> Method:
    """Train the subnetwork of one output on its own loss, the ceiling for joint training."""
    optimizer = functools.partial(_sgd, momentum=momentum, weight_decay=0.0, clip_norm=None)
    return Method(f"output {output + 1} alone", optimizer, output=output)


def _sgd(
    schedule: Any, *, momentum: float, weight_decay: float, clip_norm: float | None
) -> optax.GradientTransformation:
    sgd = optax.sgd(schedule, momentum=momentum, nesterov=True)
    if weight_decay:
        sgd = optax.chain(optax.add_decayed_weights(weight_decay), sgd)
    return sgd if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), sgd)


def _weighting(name: str, num_tasks: int | None) -> weightings.Weighting:
    """A weighting with its default arguments."""
    if name not in weightings.__all__ or name == "Weighting":
        others = {*weightings.__all__, *ROW_METHODS} - {"Weighting"}
        known = ", ".join(["sgd", "osgd", *sorted(others)])
        raise ValueError(f"optimizer={name!r} is unknown; use one of {known}.")
    make = getattr(weightings, name)
    required = [
        parameter.name
        for parameter in inspect.signature(make).parameters.values()
        if parameter.default is inspect.Parameter.empty
    ]
    if required == ["num_tasks"]:
        return make(num_tasks)
    if required:
        raise ValueError(f"optimizer={name!r} needs {required[0]}; use sgd with --loss-weights.")
    return make()
