"""ReLoBRaLo: more weight for losses that have fallen less, now or since the start."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from osgd_jax._math import softmax_of_active, squared_norms
from osgd_jax._validation import check_positive, check_range, unless_out_of_range
from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._tools import check_losses, check_num_tasks


class ReLoBRaLoState(NamedTuple):
    """State of `relobralo`: arrays `[K]`.

    Attributes:
      weights: the weights.
      first: losses of each task's first step.
      last: losses of its last step.
      seen: tasks that had a first step.
    """

    weights: jax.Array
    first: jax.Array
    last: jax.Array
    seen: jax.Array


@named
def relobralo(
    num_tasks: int,
    alpha: float | jax.Array = 0.999,
    rho: float | jax.Array = 0.999,
    temperature: float | jax.Array = 0.1,
) -> Weighting:
    """Weigh the tasks by how far their losses have fallen, with a random look back to the start.

    The weights :math:`λ(t)` at step t, for losses :math:`L(t)`, are

    .. math::

       r(s) = K softmax(L(t) / (T L(s)))
       λ(t) = α (b λ(t - 1) + (1 - b) r(0)) + (1 - α) r(t - 1)

    where b is 1 with probability ρ and otherwise 0, so that the progress since the first step
    sometimes replaces the history of the weights. The weights start at one and do not depend on
    the gradients. As in the authors' code, 1e-12 is added to the divisors. Unlike in their code,
    the second step is computed like all others.

    Source: Bischof and Kraus, "Multi-Objective Loss Balancing for Physics-Informed Deep Learning",
    arXiv 2110.09813, 2021.

    Args:
      num_tasks: number of tasks K.
      alpha: α, decay of the weights, in [0, 1].
      rho: ρ, probability of not looking back, in [0, 1].
      temperature: T; the larger, the more equal the weights; positive.

    Returns:
      A weighting with state that needs the losses, which must be positive, and a key. All numbers
      may be traced.

    Raises:
      ValueError: a number out of its range; while tracing, no losses, no key, or another number of
        tasks.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> weighting = weightings.relobralo(num_tasks=2, alpha=0.5, temperature=1.0)
      >>> state = weighting.init()
      >>> for losses in ([1.0, 1.0], [0.5, 0.9]):
      ...     weights, state = weighting.weigh(
      ...         jnp.eye(2), state, losses=jnp.array(losses), key=jax.random.key(0)
      ...     )
      >>> print(weights.round(2))
      [0.9 1.1]
    """
    alpha = check_range("alpha", alpha, "in [0, 1]", lambda a: (a >= 0) & (a <= 1))
    rho = check_range("rho", rho, "in [0, 1]", lambda r: (r >= 0) & (r <= 1))
    temperature = check_range("temperature", temperature, "positive", lambda t: t > 0)
    num_tasks = check_positive("num_tasks", num_tasks)

    def init() -> ReLoBRaLoState:
        ones = jnp.ones(num_tasks)
        return ReLoBRaLoState(ones, ones, ones, jnp.zeros(num_tasks, bool))

    def weigh(
        gramian: jax.Array,
        state: ReLoBRaLoState,
        *,
        losses: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, ReLoBRaLoState]:
        check_num_tasks(num_tasks, gramian, "relobralo")
        losses = check_losses(losses, gramian, "relobralo").astype(state.weights.dtype)
        if key is None:
            raise ValueError("relobralo looks back at random and needs a PRNG key: pass key=.")
        active = squared_norms(gramian) > 0

        def relative_to(earlier: jax.Array) -> jax.Array:
            earlier = jnp.where(state.seen, earlier, losses)
            ratios = losses / (temperature * earlier + 1e-12)
            return jnp.sum(active, dtype=ratios.dtype) * softmax_of_active(ratios, active)

        kept = jax.random.bernoulli(key, rho)
        history = jnp.where(kept, state.weights, relative_to(state.first))
        weights = alpha * history + (1 - alpha) * relative_to(state.last)
        weights = unless_out_of_range(weights, rho)
        next_state = ReLoBRaLoState(
            jnp.where(active, weights, state.weights),
            jnp.where(active & ~state.seen, losses, state.first),
            jnp.where(active, losses, state.last),
            state.seen | active,
        )
        return weights.astype(gramian.dtype), next_state

    return Weighting(init, weigh, scaling="common")
