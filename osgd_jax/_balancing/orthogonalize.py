"""Orthogonalized SGD: `aggregate` with the weights of Gram-Schmidt."""

from typing import Any

import jax
import optax

from osgd_jax import weightings
from osgd_jax._balancing import common
from osgd_jax._balancing.aggregate import aggregate
from osgd_jax._balancing.scopes import Scope
from osgd_jax._balancing.sharded import AxisName
from osgd_jax.weightings._orthogonal import Hold, Order


def orthogonalize(
    order: Order = "first_to_last",
    scope: Scope = "all",
    key: jax.Array | int | None = None,
    *,
    hold: Hold = (),
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalize the task gradients in order of priority, and add them up.

    To first order, the step taken for a later task then changes no earlier task's loss (over the
    parameters of a group). It is `aggregate` with `weightings.orthogonal`: the same composes.

    With the default scope `"all"`, the textbook form, parameters that one loss reaches, such as
    heads, take part too: a step for a later task that is made orthogonal to an earlier gradient
    also shortens the earlier task's own step. Scope `"shared"` leaves such parameters their own
    gradient.

    Source: Wan, Hoffmann, Lu and Maire, "Orthogonalized SGD and Nested Architectures for Anytime
    Neural Networks", ICML 2020.

    Args:
      order: priority of the tasks, the most protected first: `"first_to_last"`,
        `"last_to_first"`, `"random"` (a new permutation each step), a permutation of `0 .. K-1`, or
        of the names of the losses, such as `("ic", "bc", "pde")`. The gradients from `task_grads`
        know the names; with those from `jax.jacrev`, pass `losses=` to `update`. Losses in a dict
        of more than one key need names, because JAX sorts the keys.
      scope: which parameters are orthogonalized together, as for `aggregate`.
      key: PRNG key or seed, needed by `order="random"`.
      hold: tasks, by name or index, that keep their place in the order but are never stepped
        along: `orthogonalize(("old", "new"), hold=("old",))` trains `new` by steps that are
        orthogonal to the gradient of `old`. A parameter that only held tasks reach stays under all
        scopes but `"all"`, under which it can take part in making the whole step orthogonal.
      axis_name: inside `jax.shard_map`, the mesh axis that the batch is split over, as for
        `aggregate`.

    Returns:
      A transformation that takes task gradients and returns an update.

    Raises:
      ValueError: as `aggregate`; an order that is no permutation; `"random"` without a key; names
        that are not those of the losses; for losses in a dict, an order other than names or
        `"random"`.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> params, grads = jnp.zeros(2), jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> tx = osgd_jax.orthogonalize()
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print(updates)
      [1. 1.]
    """
    if isinstance(order, str) and order == "random" and key is None:
        raise ValueError(
            "order='random' draws a permutation at each step and needs a PRNG key: pass key=."
        )
    return aggregate(weightings.orthogonal(order, hold), scope, key, axis_name=axis_name)


def osgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any | None = None,
    *,
    order: Order = "first_to_last",
    scope: Scope = "all",
    key: jax.Array | int | None = None,
    hold: Hold = (),
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Apply Orthogonalized SGD: `orthogonalize`, then `optax.sgd`.

    Where the task gradients align, the step is shorter than that of SGD on the sum of the losses,
    so the best learning rate is often larger, up to K times. For what may stand around it, see
    `aggregate`: `optax.MultiSteps` and `optax.apply_if_finite` may not.

    Source: Wan, Hoffmann, Lu and Maire, ICML 2020.

    Args:
      learning_rate: A number or a schedule.
      momentum: decay rate of the momentum; none is used if None.
      nesterov: whether to use Nesterov momentum.
      accumulator_dtype: dtype of the momentum; that of the parameters if None.
      order: priority of the tasks, as for `orthogonalize`.
      scope: which parameters are orthogonalized together, as for `orthogonalize`.
      key: PRNG key or seed, needed by `order="random"`.
      hold: tasks that are never stepped along, as for `orthogonalize`.
      axis_name: mesh axis that the batch is split over, as for `orthogonalize`.

    Returns:
      A transformation that takes task gradients and returns an update.

    Raises:
      ValueError: as `orthogonalize`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import osgd_jax
      >>> def losses(w):
      ...     return jnp.sum((w - 1) ** 2), jnp.sum((w - jnp.array([3.0, 1.0])) ** 2)
      >>> params = jnp.zeros(2)
      >>> tx = osgd_jax.osgd(0.1, momentum=0.9)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     grads = osgd_jax.task_grads(losses)(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params.round(2))
      [1.17 0.02]
    """
    chained = optax.chain(
        orthogonalize(order, scope, key, hold=hold, axis_name=axis_name),
        optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype),
    )
    return common.Aggregator(*chained)
