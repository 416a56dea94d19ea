"""PCGrad: the part of a gradient that conflicts with another task is taken out."""

import jax
import jax.numpy as jnp
from jax import lax

from osgd_jax.weightings._base import Weighting, stateless
from osgd_jax.weightings._tools import unit_rows, weights_of_rows

# Up to this number of tasks the loop is unrolled, which lets the compiler fuse it.
UNROLLED_TASKS = 16


def pcgrad() -> Weighting:
    """Project each gradient, in turn, onto the normal plane of every one that it conflicts with.

    Each task goes through the others in an order of its own, drawn at each step. Its gradient loses
    its component along the *original* gradient of another task where their inner product is
    negative. The direction is the sum of the projected gradients.

    Without a key the order is fixed: the others from the first to the last.

    Source: Yu, Kumar, Gupta, Levine, Hausman and Finn, "Gradient Surgery for Multi-Task Learning",
    NeurIPS 2020.

    Returns:
      A weighting that uses a key if there is one.
    """

    def weigh(
        gramian: jax.Array,
        *,
        losses: jax.Array | None,
        key: jax.Array | None,
        scales: jax.Array | None = None,
    ) -> jax.Array:
        del losses
        rows = unit_rows(gramian, scales)
        identity = jnp.eye(len(gramian), dtype=gramian.dtype)
        tasks = jnp.arange(len(gramian))
        orders = visiting_orders(len(gramian), key)

        def project(position, carry):
            # inner[i, j] is the product of projected gradient i and original gradient j.
            coefficients, inner = carry
            other = orders[:, position]
            conflict = jnp.where(other == tasks, 0, jnp.minimum(inner[tasks, other], 0))[:, None]
            return coefficients - conflict * identity[other], inner - conflict * rows.cosines[other]

        coefficients, _ = lax.fori_loop(
            0,
            len(gramian),
            project,
            (identity, rows.cosines),
            unroll=len(gramian) <= UNROLLED_TASKS,
        )
        return weights_of_rows(coefficients, rows.norms)

    return stateless(weigh, scaling="row")


def visiting_orders(num_tasks: int, key: jax.Array | None) -> jax.Array:
    """The order in which each task visits all, `[K, K]`: drawn from the key, else ascending."""
    if key is None:
        return jnp.broadcast_to(jnp.arange(num_tasks), (num_tasks, num_tasks))
    return jnp.argsort(jax.random.uniform(key, (num_tasks, num_tasks)), axis=1)
