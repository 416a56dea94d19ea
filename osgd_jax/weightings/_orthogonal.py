"""Orthogonalized SGD: Gram-Schmidt over the task gradients, done on their Gramian."""

import contextlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from osgd_jax._math import squared_norms
from osgd_jax._tasks import Tasks, numbered
from osgd_jax._validation import is_traced
from osgd_jax.weightings._base import Weighting, named, stateless
from osgd_jax.weightings._by_task import check_names, check_ordered, indices_of
from osgd_jax.weightings._tools import UNROLLED_TASKS

Order = Literal["first_to_last", "last_to_first", "random"] | Sequence[int] | Sequence[str]
Hold = Sequence[int] | Sequence[str]


@named
def orthogonal(order: Order = "first_to_last", hold: Hold = ()) -> Weighting:
    """Weigh the tasks so that the direction is the sum of their orthogonalized gradients.

    In the order of priority, Gram-Schmidt without normalization makes each gradient orthogonal to
    the earlier ones:

    .. math::

       u_i = g_i - ∑_{j<i} (⟨g_i, u_j⟩ / ⟨u_j, u_j⟩) u_j
       direction = ∑_i u_i

    The sum leaves out held tasks. A gradient adds nothing if the squared norm of its orthogonal
    part :math:`u_i` is below 1e-6 of that of :math:`g_i` (1e-12 in float64).

    Source: Wan, Hoffmann, Lu and Maire, "Orthogonalized SGD and Nested Architectures for Anytime
    Neural Networks", ICML 2020.

    Args:
      order: priority of the tasks, the most protected first: `"first_to_last"` (the order of the
        paper), `"last_to_first"`, `"random"` (a new permutation each step, which needs a key), or a
        permutation of `0 .. K-1` or of the names of the losses. Losses in a dict of more than one
        key need names, or `"random"`.
      hold: names or indices of tasks that keep their place in the order, but whose losses are not
        trained: the direction has no part along their :math:`u_i`.

    Returns:
      A weighting, invariant to the scale of the gradients.

    Raises:
      ValueError: `order` or `hold` is none of these (from here, or while tracing, where the tasks
        become known), or `order` is `"random"` and there is no key.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.orthogonal().weigh(gramian, ())
      >>> print(weights.round(2))
      [2. 1.]
    """
    order, hold = known_order(order), known_hold(hold)

    def for_tasks(tasks: Tasks) -> Weighting:
        return orthogonal(_order_for(order, tasks), indices_of("hold", hold, tasks))

    def weigh(
        gramian: jax.Array,
        *,
        losses: jax.Array | None,
        key: jax.Array | None,
        scales: jax.Array | None = None,
    ) -> jax.Array:
        del losses
        tasks = numbered(gramian.shape[0])
        permutation = _permutation(_order_for(order, tasks), len(tasks.names), key)
        stepped = np.ones(len(tasks.names), bool)
        stepped[indices_of("hold", hold, tasks)] = False
        scales = jnp.ones_like(gramian, shape=gramian.shape[:1]) if scales is None else scales
        ordered_scales = _in_order(scales, permutation)
        coefficients = _gram_schmidt(_in_order(gramian, permutation))
        if hold:
            stepped = _in_order(jnp.asarray(stepped), permutation)
            coefficients = jnp.where(stepped[:, None], coefficients, 0)
        # Relative scales, so that the sum below stays in range wherever the gradients are.
        ordered_scales = ordered_scales / ordered_scales.max()
        ordered_scales = jnp.maximum(ordered_scales, jnp.finfo(ordered_scales.dtype).tiny)
        weights = jnp.sum(ordered_scales[:, None] * coefficients, axis=0) / ordered_scales
        sort = np.argsort if isinstance(permutation, np.ndarray) else jnp.argsort
        weights = _in_order(weights, sort(permutation))
        if not is_traced(order):
            return weights
        tasks = jnp.arange(len(permutation))
        return jnp.where(jnp.all(jnp.sort(permutation) == tasks), weights, jnp.nan)

    return stateless(weigh, scaling="row")._replace(for_tasks=for_tasks, hold=hold)


def known_order(order: Order) -> Any:
    """Return the name of an order, or its tasks as a tuple; as they are where they are traced.

    Raises:
      ValueError: neither a known name nor integers nor names of tasks.
    """
    given: Any = tuple(order) if isinstance(order, Iterator) else order
    if isinstance(given, str):
        if given in ("first_to_last", "last_to_first", "random"):
            return given
    elif is_traced(given):
        return given
    else:
        with contextlib.suppress(TypeError):
            # An array is read at once: under `jit` its elements would be traced.
            tasks = tuple(np.asarray(given) if isinstance(given, jax.Array) else given)
            named = _is_named(tasks)
            return tuple(task if named else operator.index(task) for task in tasks)
    raise ValueError(
        f"order={order!r} is unknown; use 'first_to_last', 'last_to_first', 'random' or a"
        " permutation of the task indices, or of the losses' names."
    )


def known_hold(hold: Hold) -> tuple[Any, ...]:
    """Return the held tasks as a tuple.

    Raises:
      ValueError: not a sequence of names or indices of tasks.
    """
    with contextlib.suppress(TypeError):
        if not isinstance(hold, str):
            tasks: Any = tuple(np.asarray(hold) if isinstance(hold, jax.Array) else hold)
            return tuple(t if isinstance(t, str) else operator.index(t) for t in tasks)
    raise ValueError(
        f"hold={hold!r} must be a sequence of names or indices of tasks, such as ('bc',)."
    )


def _order_for(order: Any, tasks: Tasks) -> Any:
    """Return an order with indices in place of names; one that is traced stays as it is.

    Raises:
      ValueError: not each task once, or an order by position for tasks from a dict.
    """
    if isinstance(order, str) and order == "random":
        return order
    if _is_named(order):
        check_names("order", order, order, tasks)
        return tuple(map(tasks.names.index, order))
    example = f"osgd_jax.orthogonalize(order={tasks.names!r}), with the most protected first"
    check_ordered("order", order, tasks, example)
    if isinstance(order, str):
        return order
    known = range(len(tasks.names)) if is_traced(order) else sorted(order)
    if len(order) != len(tasks.names) or list(known) != list(range(len(tasks.names))):
        raise ValueError(
            f"order={order!r} is not a permutation of the {len(tasks.names)} tasks: each of"
            f" 0 .. {len(tasks.names) - 1} must appear once."
        )
    return order


def _is_named(order: Any) -> bool:
    """Tell whether these are names of tasks."""
    if isinstance(order, str) or is_traced(order):
        return False
    return len(order) > 0 and all(isinstance(task, str) for task in order)


def _permutation(order: Any, num_tasks: int, key: jax.Array | None) -> Any:
    if not isinstance(order, str):
        return order if is_traced(order) else np.array(order)
    if order == "first_to_last":
        return np.arange(num_tasks)
    if order == "last_to_first":
        return np.arange(num_tasks)[::-1]
    if key is None:
        raise ValueError(
            "order='random' draws a permutation at each step and needs a PRNG key: pass key=."
        )
    return jax.random.permutation(key, num_tasks)


def _in_order(values: jax.Array, permutation: Any) -> jax.Array:
    """Take the tasks in an order, on all axes."""
    if isinstance(permutation, np.ndarray) and (np.diff(permutation) == 1).all():
        return values
    values = values[permutation]
    return values if values.ndim == 1 else values[:, permutation]


@jax.jit
def _gram_schmidt(gramian: jax.Array) -> jax.Array:
    """Return the coefficients C, `[K, K]`, of Gram-Schmidt unnormalized: u_i = sum_j C_ij g_j.

    A gradient without an orthogonal part is a row of zeros in C.
    """
    num_tasks = gramian.shape[0]
    tolerance = 1e-12 if gramian.dtype == jnp.float64 else 1e-6
    tasks = jnp.arange(num_tasks)
    norms = squared_norms(gramian)

    def eliminate(j, carry):
        coefficients, residual_gramian = carry
        norm = residual_gramian[j, j]
        # Negated, since a comparison with NaN is false and NaN has to come through.
        has_direction = ~(norm <= tolerance * norms[j])
        ratios = residual_gramian[:, j] / jnp.where(has_direction, norm, 1)
        ratios = jnp.where((tasks > j) & has_direction, ratios, 0)
        coefficients = coefficients - ratios[:, None] * coefficients[j][None]
        residual_gramian = residual_gramian - ratios[:, None] * residual_gramian[j][None]
        kept = jnp.where((tasks == j) & ~has_direction, 0, 1)
        return coefficients * kept[:, None], residual_gramian

    identity = jnp.eye(num_tasks, dtype=gramian.dtype)
    unroll = num_tasks <= UNROLLED_TASKS
    coefficients, _ = lax.fori_loop(0, num_tasks, eliminate, (identity, gramian), unroll=unroll)
    return coefficients
