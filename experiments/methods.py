"""The ways to train that an experiment can compare, by name."""

import functools

import optax

import osgd_jax
from experiments.training import Method

NAMES = ("sgd", "osgd")


def method(name: str, *, momentum: float, scope: str = "shared") -> Method:
    """Make a method by its name.

    Args:
      name: `"sgd"` on the sum of the losses, or `"osgd"`.
      momentum: Nesterov momentum's decay rate.
      scope: of OSGD, as for `osgd_jax.orthogonalize`.

    Raises:
      ValueError: an unknown name.
    """
    if name == "sgd":
        return Method(name, functools.partial(optax.sgd, momentum=momentum, nesterov=True))
    if name == "osgd":
        optimizer = functools.partial(osgd_jax.osgd, momentum=momentum, nesterov=True, scope=scope)
        return Method(name, optimizer, balances_tasks=True)
    raise ValueError(f"method={name!r} is unknown; use one of {', '.join(NAMES)}.")


def alone(output: int, *, momentum: float) -> Method:
    """Train the subnetwork of one output on its own loss, the ceiling for joint training."""
    sgd = functools.partial(optax.sgd, momentum=momentum, nesterov=True)
    return Method(f"output {output + 1} alone", sgd, output=output)
