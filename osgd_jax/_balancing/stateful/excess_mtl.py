"""ExcessMTL: more weight to the tasks that are farther from where they can get."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from osgd_jax._balancing import gramians
from osgd_jax._balancing.scopes import Groups, Scope
from osgd_jax._balancing.stateful.memory import (
    MemoryState,
    Step,
    by_task,
    largest_of,
    sum_of,
    with_memory,
)
from osgd_jax._math import safe_hypot, softmax_of_active
from osgd_jax._validation import check_range


class _Risks(NamedTuple):
    """Logarithms of the weights, and the first excess risks (zero where unknown), `[K]`."""

    log_weights: jax.Array
    initial: jax.Array


def excess_mtl(
    num_tasks: int, step_size: float = 0.01, scope: Scope = "all"
) -> optax.GradientTransformationExtraArgs:
    """Weigh the tasks by estimates of their excess risks, which label noise does not raise.

    The excess risk of a task is its loss above the least value that it can reach. The estimate is
    of second order, with AdaGrad's diagonal matrix for the Hessian: :math:`∑ g² / h`, where h is
    the root of the sum of the squares of all gradients g of the task so far, entry by entry. With
    :math:`r_i` the ratio of this estimate to the task's first one, a step computes

    .. math::

       w_i ← w_i exp(η r_i) / ∑_j w_j exp(η r_j)
       direction = ∑_i w_i g_i

    The weights are equal at the start. A task's first step counts as :math:`r_i = 0`. The sums
    leave out tasks whose gradient is zero.

    With scope `"shared"`, parameters that one loss reaches keep their own gradient, and have no
    part in the estimates. For what composes, see `aggregate`. Inside `jax.shard_map`, average the
    task gradients over the devices first; gradients that differ between devices raise an error,
    unless `check_vma=False` hides this. The state is K times as large as the parameters, in float32
    or wider.

    Source: He, Zhou, Zhang, Yun, Xu, Zeng, Chilimbi and Zhao, "Robust Multi-Task Learning with
    Excess Risks", ICML 2024 (arXiv 2402.02009).

    Args:
      num_tasks: number of tasks K.
      step_size: η, how fast the weights follow the excess risks, at least 0.
      scope: which parameters are balanced together, as for `aggregate`, in one group: `"all"` or
        `"shared"`.

    Returns:
      A transformation that takes task gradients and returns an update. A NaN or infinity in a
      gradient makes every array of the group NaN and leaves the state as it was.

    Raises:
      ValueError: a step size below zero; from `update`, as `aggregate`, for a number of tasks that
        is not `num_tasks`, or a scope with several groups.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> params, grads = jnp.zeros(2), jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> tx = osgd_jax.excess_mtl(num_tasks=2)
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print(updates.round(2))
      [0.  0.5]
    """
    step_size = check_range("step_size", step_size, "at least 0", lambda size: size >= 0)

    def step(
        gradients: list[jax.Array], state: MemoryState, groups: Groups, losses: jax.Array | None
    ) -> Step:
        del losses
        roots = [safe_hypot(h, g) for h, g in zip(state.memory, gradients, strict=True)]
        scales = gramians.row_scales(largest_of(gradients, groups))
        scaled = sum_of(
            [
                jnp.abs(g / by_task(scales, g)) * jnp.abs(g / jnp.where(h > 0, h, 1))
                for g, h in zip(gradients, roots, strict=True)
            ],
            groups,
        )
        largest = float(jnp.finfo(scaled.dtype).max)
        log_weights, initial = state.tasks
        excess = jnp.minimum(scales * scaled, largest).astype(initial.dtype)
        known = initial > 0
        ratios = jnp.where(known, excess / jnp.where(known, initial, 1), 0)
        log_weights = log_weights + jnp.minimum(step_size * ratios, largest**0.5)
        tasks = _Risks(jax.nn.log_softmax(log_weights), jnp.where(known, initial, excess))
        weights = softmax_of_active(tasks.log_weights, excess > 0)
        return Step(gradients, weights.astype(scaled.dtype), roots, tasks)

    def start() -> _Risks:
        return _Risks(jnp.full(num_tasks, -math.log(num_tasks), float), jnp.zeros(num_tasks))

    return with_memory("excess_mtl", num_tasks, scope, start, step)
