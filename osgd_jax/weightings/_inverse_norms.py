"""Gradient-norm annealing: all losses pull with gradients of the same mean length."""

import jax
import jax.numpy as jnp

from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._smooth import smooth
from osgd_jax.weightings._tools import check_num_tasks
from osgd_jax.weightings._unit_rows import UnitRows, of_unit_rows


@named
def inverse_norms(num_tasks: int, decay: float | jax.Array = 0.9) -> Weighting:
    """Weigh each task by the running mean of the mean gradient norm over its own.

    With a the decay, a step computes

    .. math::

       w_i = mean_j ‖g_j‖ / ‖g_i‖
       λ ← a λ + (1 - a) w

    All :math:`w_i g_i` have the same norm; the weights are λ. The method is common for
    physics-informed nets.

    Source: Wang, Teng and Perdikaris, "Understanding and Mitigating Gradient Flow Pathologies in
    Physics-Informed Neural Networks", SIAM Journal on Scientific Computing 43, 2021, in the form of
    their library jaxpi, which uses norms. The paper uses the largest element of one gradient over
    the mean magnitude of another. jaxpi updates the mean every 1,000 steps and starts it at weights
    that the user sets; here each step updates the mean, and the first step starts it.

    Args:
      num_tasks: number of tasks K.
      decay: decay of the running mean, in [0, 1); it may be traced.

    Returns:
      A weighting with state.

    Raises:
      ValueError: `decay` out of range; while tracing, another number of tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weighting = weightings.inverse_norms(num_tasks=2)
      >>> state = weighting.init()
      >>> for _ in range(3):
      ...     weights, state = weighting.weigh(gramian, state)
      >>> print(weights.round(2))
      [1.5  0.75]
    """

    def weigh(rows: UnitRows) -> jax.Array:
        check_num_tasks(num_tasks, rows.cosines, "inverse_norms")
        return jnp.mean(rows.norms, where=rows.active | ~jnp.any(rows.active)) / rows.norms

    return smooth(of_unit_rows(weigh), num_tasks, decay)
