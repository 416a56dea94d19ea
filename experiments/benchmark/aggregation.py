"""The time of Gramian and weighted sum alone, against the bandwidth of the memory."""

from typing import Any

import jax
import jax.numpy as jnp

import osgd_jax
from experiments.lab.timing import spread, time_in_turn

_ARRAYS = 16
_STREAMED = 2**24


def against_bandwidth(num_tasks: int, num_parameters: int, rounds: int) -> dict[str, Any]:
    """Time `orthogonalize` on a given Jacobian, in turn with the sum of two large arrays.

    The Jacobian has to be read once for the Gramian and, since the weights need all of it, once
    more for the weighted sum, which is written once.

    Args:
      num_tasks: K.
      num_parameters: P, in 16 arrays.
      rounds: how often everything is timed.
    """
    size = num_parameters // _ARRAYS
    keys = jax.random.split(jax.random.key(0), _ARRAYS)
    grads = [jax.random.normal(key, (num_tasks, size)) for key in keys]
    tx = osgd_jax.orthogonalize(scope="all")
    state = tx.init([grad[0] for grad in grads])

    def aggregate(grads: Any):
        return tx.update(grads, state)[0]

    def gramian(grads: Any):
        return osgd_jax.gramian(grads)

    a, b = jnp.ones(_STREAMED), jnp.ones(_STREAMED)
    add, aggregate, gramian = jax.jit(jnp.add), jax.jit(aggregate), jax.jit(gramian)
    calls = {
        "add": lambda: add(a, b),
        "gramian": lambda: gramian(grads),
        "aggregate": lambda: aggregate(grads),
    }
    seconds = time_in_turn(calls, rounds)
    bandwidth = 3 * a.nbytes / seconds["add"]
    row_bytes = 4 * _ARRAYS * size
    limits = {
        "gramian": num_tasks * row_bytes / bandwidth,
        "aggregate": (2 * num_tasks + 1) * row_bytes / bandwidth,
    }
    return {
        "outputs": num_tasks,
        "parameters": _ARRAYS * size,
        "bandwidth_gb_per_s": spread(bandwidth / 1e9),
        **{
            name: {
                "ms": spread(1e3 * seconds[name]),
                "over_limit": spread(seconds[name] / limits[name]),
            }
            for name in limits
        },
    }
