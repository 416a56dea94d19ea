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

    The direction d maximizes :math:`∑_i ⟨g_i, d⟩^{1 - α} / (1 - α)` over a ball. Its weights solve

    .. math::

       (G w)_i = w_i^{-1 / α}

    which also sets the length of the direction. For α = 1 this is `nash_mtl`; a larger α brings the
    decreases closer together. Pareto-stationary points have no solution; there the weights are
    large but finite. The error of the equation is below 2 % up to α = 2 for gradients whose norms
    differ by a factor of a million, and at α = 10 for a factor of a thousand. A far larger α needs
    gradients of similar norms.

    Source: Ban and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024.

    Args:
      alpha: α, the kind of fairness, at least 0.5: below it, powers leave the range of the dtype.

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
