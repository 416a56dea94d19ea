"""Gradient Vaccine: gradients are turned towards each other until their angle is the usual one."""

import jax
import jax.numpy as jnp
from jax import lax

from osgd_jax._validation import check_positive, check_range, unless_out_of_range
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._pcgrad import visiting_orders
from osgd_jax.weightings._tools import UNROLLED_TASKS, check_num_tasks
from osgd_jax.weightings._unit_rows import unit_rows, weights_of_rows


@named
def gradvac(num_tasks: int, beta: float | jax.Array = 0.01) -> Weighting:
    """Raise the cosine of each pair of gradients to its own running average where it is below.

    Each task visits the others and adds so much of the other's gradient that the cosine reaches the
    target of the pair. Targets start at zero and follow the cosines of the steps with rate `beta`.
    With targets of zero this is `pcgrad`.

    With a key, each task visits the others in a random order; without one, from first to last.

    Source: Wang, Tsvetkov, Firat and Cao, "Gradient Vaccine: Investigating and Improving Multi-task
    Optimization in Massively Multilingual Models", ICLR 2021.

    Args:
      num_tasks: number of tasks K.
      beta: rate of the running average of the cosines, in [0, 1].

    Returns:
      A weighting with state: the targets, `[K, K]`. It uses a key if there is one.

    Raises:
      ValueError: `beta` outside [0, 1], or, while tracing, another number of tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weighting = weightings.gradvac(num_tasks=2)
      >>> state = weighting.init()
      >>> for _ in range(3):
      ...     weights, state = weighting.weigh(gramian, state)
      >>> print(weights.round(2))
      [1.98 1.25     ]
    """
    beta = check_range("beta", beta, "in [0, 1]", lambda b: (b >= 0) & (b <= 1))
    num_tasks = check_positive("num_tasks", num_tasks)

    def init() -> jax.Array:
        return jnp.zeros((num_tasks, num_tasks))

    def weigh(
        gramian: jax.Array,
        state: jax.Array,
        *,
        losses: jax.Array | None = None,
        key: jax.Array | None = None,
        scales: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        del losses
        check_num_tasks(num_tasks, gramian, "gradvac")
        rows = unit_rows(gramian, scales)
        orders = visiting_orders(num_tasks, key)
        coefficients, targets = _vaccinate(
            rows.cosines, rows.active, orders, state.astype(gramian.dtype), beta
        )
        weights = unless_out_of_range(weights_of_rows(coefficients, rows.norms), beta)
        return weights, targets.astype(state.dtype)

    return Weighting(init, weigh, scaling="row")


@jax.jit
def _vaccinate(
    cosines: jax.Array,
    active: jax.Array,
    orders: jax.Array,
    targets: jax.Array,
    beta: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return the changed gradients as combinations of the unit gradients, and the next targets."""
    num_tasks = len(cosines)
    identity = jnp.eye(num_tasks, dtype=cosines.dtype)
    tasks = jnp.arange(num_tasks)

    def vaccinate(position, carry):
        # inner[i, j] is the product of changed gradient i and original unit gradient j.
        coefficients, inner, targets = carry
        other = orders[:, position]
        pair = (other != tasks) & active & active[other]
        squared_norm = jnp.sum(coefficients * inner, axis=1)
        norm = jnp.sqrt(jnp.where(squared_norm > 0, squared_norm, 1))
        cosine = jnp.where(squared_norm > 0, inner[tasks, other] / norm, 0)
        cosine = jnp.clip(cosine, -1, 1)
        target = targets[tasks, other]
        # A target of one could only be met by adding infinitely much.
        target_sine = jnp.sqrt(jnp.maximum(1 - target**2, 1e-6))
        # The root has no derivative at zero.
        oblique = pair & (jnp.abs(cosine) < 1)
        sine = jnp.where(oblique, jnp.sqrt(jnp.where(oblique, 1 - cosine**2, 1)), 0)
        amount = norm * (target * sine / target_sine - cosine)
        amount = jnp.where(pair & (cosine < target), jnp.maximum(amount, 0), 0)[:, None]
        rate = jnp.where(pair, beta, 0)[:, None].astype(targets.dtype) * identity[other]
        return (
            coefficients + amount * identity[other],
            inner + amount * cosines[other],
            targets + rate * (cosine[:, None] - targets),
        )

    unroll = num_tasks <= UNROLLED_TASKS
    start = (identity, cosines, targets)
    coefficients, _, targets = lax.fori_loop(0, num_tasks, vaccinate, start, unroll=unroll)
    return coefficients, targets
