"""DB-MTL: gradients of the logarithms of the losses, all made as long as the longest."""

import jax
import jax.numpy as jnp
import optax

from osgd_jax._balancing import gramians
from osgd_jax._balancing.scopes import Groups, Scope
from osgd_jax._balancing.stateful.memory import (
    MemoryState,
    Step,
    by_task,
    check_rate,
    largest_of,
    rate_at,
    sum_of,
    with_memory,
)
from osgd_jax._math import safe_sqrt


def db_mtl(
    num_tasks: int, beta: optax.ScalarOrSchedule = 0.9, scope: Scope = "all"
) -> optax.GradientTransformationExtraArgs:
    """Add up running means of the gradients of the log losses, each scaled to the longest's norm.

    With :math:`y_i` the running means (zero at the start), :math:`g_i` the gradients and
    :math:`L_i` the losses, a step computes

    .. math::

       y_i ← β y_i + (1 - β) g_i / L_i
       direction = ∑_i (max_j ‖y_j‖ / ‖y_i‖) y_i

    With scope `"shared"`, parameters that one loss reaches keep their own gradient, that of the
    loss (the paper lets them follow the logarithm of the loss). For what composes, see `aggregate`.
    Inside `jax.shard_map`, average the task gradients over the devices first; gradients that differ
    between devices raise an error, unless `check_vma=False` hides this. The state is K times as
    large as the parameters, in float32 or wider.

    Source: Lin, Jiang, Ye, Zhang, Chen, Chen, Liu, Tsang and Kwok, "Dual-Balancing for Multi-Task
    Learning", arXiv 2308.12029, 2023.

    Args:
      num_tasks: number of tasks K.
      beta: β, the share of the running means that is kept, between 0 and 1; a number or a schedule.
      scope: which parameters are balanced together, as for `aggregate`, in one group: `"all"` or
        `"shared"`.

    Returns:
      A transformation that takes task gradients and returns an update. Its `update` needs the
      losses, `losses=losses`, which must be positive. A NaN or infinity in a gradient or a loss
      makes every array of the group NaN and leaves the state as it was.

    Raises:
      ValueError: a rate out of range; from `update`, as `aggregate`, for missing losses, a number
        of tasks that is not `num_tasks`, or a scope with several groups.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> params, grads = jnp.zeros(2), jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> tx = osgd_jax.db_mtl(num_tasks=2)
      >>> losses = jnp.array([0.5, 2.0])
      >>> updates, state = tx.update(grads, tx.init(params), params, losses=losses)
      >>> print(updates.round(2))
      [0.06 0.14]
    """
    beta = check_rate(beta, "beta", 1)

    def step(
        gradients: list[jax.Array], state: MemoryState, groups: Groups, losses: jax.Array | None
    ) -> Step:
        rate = rate_at(beta, state.steps)
        positive = jnp.maximum(jnp.asarray(losses), 1e-8)
        largest = jnp.finfo(positive.dtype).max
        means = [
            rate * y + (1 - rate) * jnp.clip(g / by_task(positive, g), -largest, largest)
            for y, g in zip(state.memory, gradients, strict=True)
        ]
        # The norms over the largest scale, so that neither they nor their squares leave the range.
        scales = gramians.row_scales(largest_of(means, groups))
        squares = sum_of([jnp.square(y / by_task(scales, y)) for y in means], groups)
        active = squares > 0
        smallest = jnp.finfo(squares.dtype).tiny
        top = jnp.max(jnp.where(active, scales, 0), initial=smallest)
        norms = safe_sqrt(squares) * (scales / top)
        weights = jnp.where(active, jnp.max(norms) / jnp.maximum(norms, smallest), 0)
        return Step(means, weights, means, ())

    return with_memory("db_mtl", num_tasks, scope, tuple, step, needs_losses=True)
