"""PCGrad: the part of a gradient that conflicts with another task is taken out."""

import jax
import jax.numpy as jnp
from jax import lax

from osgd_jax.weightings._base import Weighting, named, stateless
from osgd_jax.weightings._tools import UNROLLED_TASKS
from osgd_jax.weightings._unit_rows import unit_rows, weights_of_rows


@named
def pcgrad() -> Weighting:
    """Project each gradient, in turn, onto the normal plane of every one that it conflicts with.

    Each task visits the others. Its gradient :math:`p_i`, at first :math:`g_i`, loses its component
    along the *original* gradient of another task if their inner product is negative:

    .. math::

       p_i ← p_i - (⟨p_i, g_j⟩ / ⟨g_j, g_j⟩) g_j

    The direction is the sum of the projected gradients. With a key, each task visits the others in
    a random order, drawn at each step; without one, from first to last.

    Source: Yu, Kumar, Gupta, Levine, Hausman and Finn, "Gradient Surgery for Multi-Task Learning",
    NeurIPS 2020.

    Returns:
      A weighting that uses a key if there is one.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.pcgrad().weigh(gramian, ())
      >>> print(weights.round(2))
      [2.   1.25]
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
        coefficients = _project(rows.cosines, visiting_orders(len(gramian), key))
        return weights_of_rows(coefficients, rows.norms)

    return stateless(weigh, scaling="row")


@jax.jit
def _project(cosines: jax.Array, orders: jax.Array) -> jax.Array:
    """Return the projected gradients as combinations of the unit gradients, `[K, K]`."""
    num_tasks = len(cosines)
    identity = jnp.eye(num_tasks, dtype=cosines.dtype)
    tasks = jnp.arange(num_tasks)

    def project(position, carry):
        # inner[i, j] is the product of projected gradient i and original gradient j.
        coefficients, inner = carry
        other = orders[:, position]
        conflict = jnp.where(other == tasks, 0, jnp.minimum(inner[tasks, other], 0))[:, None]
        return coefficients - conflict * identity[other], inner - conflict * cosines[other]

    unroll = num_tasks <= UNROLLED_TASKS
    coefficients, _ = lax.fori_loop(0, num_tasks, project, (identity, cosines), unroll=unroll)
    return coefficients


def visiting_orders(num_tasks: int, key: jax.Array | None) -> jax.Array:
    """Return the order in which each task visits all, `[K, K]`: drawn, or ascending."""
    if key is None:
        return jnp.broadcast_to(jnp.arange(num_tasks), (num_tasks, num_tasks))
    return jnp.argsort(jax.random.uniform(key, (num_tasks, num_tasks)), axis=1)
