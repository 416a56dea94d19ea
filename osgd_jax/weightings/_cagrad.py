"""CAGrad: the best worst-case descent near the mean gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._validation import check_range
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._solvers import nonnegative_minimum
from osgd_jax.weightings._unit_rows import UnitRows, of_unit_rows


@named
def cagrad(c: float | jax.Array = 0.5) -> Weighting:
    """Maximize the smallest decrease of any loss within a ball around the mean gradient.

    With :math:`g_0` the mean of the gradients, the direction d maximizes :math:`min_i ⟨g_i, d⟩`
    subject to :math:`‖d - g_0‖ ≤ c ‖g_0‖`. The weights w of the simplex that minimize

    .. math::

       ⟨g_w, g_0⟩ + c ‖g_0‖ ‖g_w‖

    with :math:`g_w = ∑_i w_i g_i` give :math:`d = g_0 + c ‖g_0‖ g_w / ‖g_w‖`. The minimum leaves
    out tasks with a zero gradient.

    Source: Liu, Liu, Jin, Stone and Liu, "Conflict-Averse Gradient Descent for Multi-task
    Learning", NeurIPS 2021. Without the rescaling that their code adds.

    Args:
      c: radius of the ball; 0 is the mean gradient, below 1 the fixed points are those of the mean
        loss.

    Returns:
      A weighting.

    Raises:
      ValueError: `c` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.cagrad().weigh(gramian, ())
      >>> print(weights.round(2))
      [0.93 0.5 ]
    """
    c = check_range("c", c, "finite and at least 0", lambda c: (c >= 0) & (c < np.inf))

    def weigh(rows: UnitRows) -> jax.Array:
        num_tasks = len(rows.norms)
        norms = jnp.where(rows.active, rows.norms, 0)
        square = norms @ rows.cosines @ norms
        has_direction = square > 0
        sum_norm = jnp.sqrt(jnp.where(has_direction, square, 1))
        # As in `mgda`, x are the weights of the unit gradients up to a factor, and the constraint
        # a'x = 1 is replaced by a term: the dual is homogeneous in x, so only the ray counts.
        shortest = jnp.min(rows.norms, where=rows.active, initial=1)
        a = jnp.where(rows.active, shortest / rows.norms, 0)
        dual = _Dual(rows.cosines, rows.cosines @ norms / sum_norm, a, jnp.asarray(c, a.dtype))
        x = jnp.where(rows.active, nonnegative_minimum(dual, jnp.ones_like(a)), 0)
        weights = (1 + sum_norm * c * x / dual.norm_of(x) / rows.norms) / num_tasks
        return jnp.where(has_direction, weights, 1 / num_tasks)

    return of_unit_rows(weigh)


class _Dual(NamedTuple):
    """The dual problem over weights x of the unit gradients, `[K]`.

    Attributes:
      cosines: of the gradients, `[K, K]`.
      along_mean: cosines with the mean gradient, `[K]`.
      a: vector of the constraint a'x = 1, `[K]`.
      c: radius of the ball.
    """

    cosines: jax.Array
    along_mean: jax.Array
    a: jax.Array
    c: jax.Array

    def norm_of(self, x: jax.Array) -> jax.Array:
        # |g_w| is not smooth at zero, and below this not known either. Not from the smoothed
        # matrix: where gradients cancel, rounding would swallow what smooths.
        square = jnp.maximum(x @ self.cosines @ x, 0)
        return jnp.sqrt(square + self._smoothing() * (self.a @ x) ** 2)

    def gradient(self, x: jax.Array) -> jax.Array:
        mixed = (self.along_mean + self.c * self._unit(x)) / (2 * (1 + self.c))
        return mixed + self.a * (self.a @ x - 1)

    def hessian(self, x: jax.Array) -> jax.Array:
        matrix = self.cosines + self._smoothing() * jnp.outer(self.a, self.a)
        curvature = (matrix - jnp.outer(self._unit(x), self._unit(x))) / self.norm_of(x)
        return self.c / (2 * (1 + self.c)) * curvature + jnp.outer(self.a, self.a)

    def _unit(self, x: jax.Array) -> jax.Array:
        return (self.cosines @ x + self._smoothing() * self.a * (self.a @ x)) / self.norm_of(x)

    def _smoothing(self) -> float:
        return 4 * float(jnp.finfo(self.a.dtype).eps)
