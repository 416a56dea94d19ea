"""MoCo: gradients followed over the steps, and weights that descend towards MGDA's."""

import jax
import jax.numpy as jnp
import optax

from osgd_jax._balancing import gramians
from osgd_jax._balancing.gramian_kernels import leaf_gramian
from osgd_jax._balancing.scopes import Groups, Scope
from osgd_jax._balancing.stateful.memory import (
    MemoryState,
    Step,
    check_rate,
    largest_of,
    rate_at,
    with_memory,
)
from osgd_jax._gradients.rows import TaskRows
from osgd_jax._validation import check_range


def moco(
    num_tasks: int,
    beta: optax.ScalarOrSchedule = 0.5,
    gamma: optax.ScalarOrSchedule = 0.1,
    rho: float = 0.0,
    scope: Scope = "all",
) -> optax.GradientTransformationExtraArgs:
    """Combine running means of the task gradients, which are less noisy than those of a batch.

    With Y the running means of the rows (zero at the start), G the gradients, w the weights (equal
    at the start) and Π the projection onto the simplex, a step computes

    .. math::

       Y ← Y - β (Y - G)
       w ← Π(w - γ (Y Yᵀ + ρ I) w)
       direction = Yᵀ w

    The change of w is a step of projected gradient descent on :math:`‖Yᵀ w‖² / 2`, the problem of
    `weightings.mgda`. The size of the change depends on the scale of the gradients. To remove the
    scale, put `normalize_task_norms` before this in a chain. (The authors scale each gradient to
    the length of its loss.)

    With scope `"shared"`, parameters that one loss reaches keep their own gradient. For what
    composes, see `aggregate`. Inside `jax.shard_map`, average the task gradients over the devices
    first; gradients that differ between devices raise an error, unless `check_vma=False` hides
    this. The state is K times as large as the parameters, in float32 or wider.

    Source: Fernando, Shen, Liu, Chaudhury, Murugesan and Chen, "Mitigating Gradient Bias in
    Multi-objective Learning: A Provably Convergent Approach", ICLR 2023.

    Args:
      num_tasks: number of tasks K.
      beta: β, rate of the running means, between 0 and 1; a number or a schedule. The paper's
        guarantees are for rates that fall.
      gamma: γ, rate of the weights; a number or a schedule.
      rho: ρ, pull of the weights towards equal ones.
      scope: which parameters are balanced together, as for `aggregate`, in one group: `"all"` or
        `"shared"`.

    Returns:
      A transformation that takes task gradients and returns an update. A NaN or infinity in a
      gradient makes every array of the group NaN and leaves the state as it was.

    Raises:
      ValueError: a rate out of range; from `update`, as `aggregate`, for a number of tasks that is
        not `num_tasks`, or a scope with several groups.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> params, grads = jnp.zeros(2), jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> tx = osgd_jax.moco(num_tasks=2)
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print(updates.round(2))
      [0.01 0.25]
    """
    beta = check_rate(beta, "beta", 1)
    gamma = check_rate(gamma, "gamma", float("inf"))
    rho = check_range("rho", rho, "at least 0", lambda rho: rho >= 0)

    def step(
        gradients: list[jax.Array], state: MemoryState, groups: Groups, losses: jax.Array | None
    ) -> Step:
        del losses
        rate = rate_at(beta, state.steps)
        means = [y - rate * (y - g) for y, g in zip(state.memory, gradients, strict=True)]
        # By one scale for all, since squares leave the range sooner than the gradients.
        scale = gramians.row_scales(jnp.max(largest_of(means, groups)))
        scales = jnp.broadcast_to(scale, num_tasks)
        tasks = tuple(range(num_tasks))
        gramian = groups.sum([leaf_gramian(scales, TaskRows(y, tasks, num_tasks)) for y in means])[
            0
        ]
        rate, shares = rate_at(gamma, state.steps), state.tasks
        gramian, scale = gramian.astype(shares.dtype), scale.astype(shares.dtype)
        slope = scale * (rate * (scale * (gramian @ shares))) + rate * rho * shares
        # Far outside, all points project alike; in the range, their differences are no NaN.
        shares = shares - jnp.clip(slope, -1e30, 1e30)
        with jax.numpy_dtype_promotion("standard"):  # it divides by an integer array
            shares = optax.projections.projection_simplex(shares - jnp.max(shares))
        return Step(means, shares.astype(scales.dtype), means, shares)

    def equal_shares() -> jax.Array:
        return jnp.full(num_tasks, 1 / num_tasks, float)

    return with_memory("moco", num_tasks, scope, equal_shares, step)
