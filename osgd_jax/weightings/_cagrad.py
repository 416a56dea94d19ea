"""CAGrad: the best worst-case descent near the mean gradient."""

import jax
import jax.numpy as jnp

from osgd_jax.weightings._base import Weighting, stateless
from osgd_jax.weightings._solvers import nonnegative_minimum
from osgd_jax.weightings._tools import unit_rows


def cagrad(c: float = 0.5) -> Weighting:
    """Maximise the smallest decrease of any loss within a ball around the mean gradient.

    The direction d maximises min_i <g_i, d> subject to |d - g_0| <= c |g_0|, with g_0 the mean of
    the gradients. Its dual, over the weights w of the simplex, is to minimise
    <g_w, g_0> + c |g_0| |g_w|, and d = g_0 + c |g_0| / |g_w| g_w. Tasks with a zero gradient are
    left out of the minimum.

    Source: Liu, Liu, Jin, Stone and Liu, "Conflict-Averse Gradient Descent for Multi-task
    Learning", NeurIPS 2021. Without the rescaling that their code adds.

    Args:
      c: radius of the ball; 0 is the mean gradient, below 1 the fixed points are those of the mean
        loss.

    Returns:
      A weighting.

    Raises:
      ValueError: `c` is negative.
    """
    if c < 0:
        raise ValueError(f"c={c!r} must not be negative.")

    def weigh(
        gramian: jax.Array,
        *,
        losses: jax.Array | None,
        key: jax.Array | None,
        scales: jax.Array | None = None,
    ) -> jax.Array:
        del losses, key
        rows = unit_rows(gramian, scales)
        num_tasks = len(gramian)
        norms = jnp.where(rows.active, rows.norms, 0)
        sum_norm = jnp.sqrt(jnp.maximum(norms @ rows.cosines @ norms, 0))
        has_direction = sum_norm > 0
        along_mean = rows.cosines @ norms / jnp.where(has_direction, sum_norm, 1)
        if c == 0:
            return jnp.full_like(norms, 1 / num_tasks)

        # As in `mgda`, x are the weights of the unit gradients up to a factor, and the constraint
        # a'x = 1 is replaced by a term: the dual is homogeneous in x, so only the ray counts.
        shortest = jnp.min(rows.norms, where=rows.active, initial=1)
        a = jnp.where(rows.active, shortest / rows.norms, 0)
        # |g_w| is not smooth at zero, and below this not known either.
        smoothing = 4 * jnp.finfo(gramian.dtype).eps
        matrix = rows.cosines + smoothing * jnp.outer(a, a)
        dual_scale = 2 * (1 + c)

        def norm_of(x):
            # Not from `matrix`: where gradients cancel, rounding would swallow what smooths.
            return jnp.sqrt(jnp.maximum(x @ rows.cosines @ x, 0) + smoothing * (a @ x) ** 2)

        def gradient(x):
            return (along_mean + c * (matrix @ x) / norm_of(x)) / dual_scale + a * (a @ x - 1)

        def hessian(x):
            unit = matrix @ x / norm_of(x)
            return c / dual_scale * (matrix - jnp.outer(unit, unit)) / norm_of(x) + jnp.outer(a, a)

        x = nonnegative_minimum(gradient, hessian, jnp.ones_like(a))
        x = jnp.where(rows.active, x, 0)
        weights = (1 + sum_norm * c * x / norm_of(x) / rows.norms) / num_tasks
        return jnp.where(has_direction, weights, 1 / num_tasks)

    return stateless(weigh, scaling="row")
