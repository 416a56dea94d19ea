"""FairGrad: alpha-fair distribution of the decrease of the losses."""

import jax
import jax.numpy as jnp

from osgd_jax._validation import check_range
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._solvers import balanced_point
from osgd_jax.weightings._unit_rows import UnitRows, of_unit_rows


@named
def fairgrad(alpha: float | jax.Array = 2.0) -> Weighting:
    """Weigh the tasks so that the decreases of their losses are alpha-fair.

    The direction maximises sum_i <g_i, d>^(1 - alpha) / (1 - alpha) over a ball, for which
    (G w)_i = w_i^(-1/alpha). With alpha = 1 this is `nash_mtl`; the larger alpha, the nearer to
    equal decreases. The weights, and so the length of the direction, are those of that equation. At
    Pareto-stationary points, which have no solution, they are large but finite. The equation is met
    within 2 % up to alpha = 2 where the norms of the gradients are a million times apart, with
    alpha = 10 where they are a thousand times apart, and with far larger ones only for like norms.

    Source: Ban and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024.

    Args:
      alpha: kind of fairness, at least 0.5: below that the powers leave the range of the dtype.

    Returns:
      A weighting; the weights are positive.

    Raises:
      ValueError: `alpha` is below 0.5.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.fairgrad().weigh(gramian, ())
      >>> print(weights.round(2))
      [1.5  0.68]
    """
    checked = check_range("alpha", alpha, "at least 0.5; 0 would be the mean", lambda a: a >= 0.5)
    return of_unit_rows(lambda rows: fair_weights(rows, 1 / checked))


def fair_weights(rows: UnitRows, exponent: float | jax.Array) -> jax.Array:
    """Solve (G w)_i = w_i^-p."""
    # With x_i = w_i |g_i| the equation is (C x)_i = |g_i|^(p-1) x_i^-p; a common factor m of the
    # norms multiplies the weights by m^(-2 / (p + 1)).
    x = balanced_point(rows.cosines, rows.norms ** (exponent - 1), exponent)
    log_weights = jnp.log(x / rows.norms) - 2 / (exponent + 1) * rows.log_largest
    return jnp.exp(jnp.minimum(log_weights, jnp.log(jnp.finfo(x.dtype).max) - 1))
