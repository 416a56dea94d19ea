"""Optax transformations from task gradients to one update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from osgd_jax import _data_parallel, _gramian, _scopes, weightings
from osgd_jax._data_parallel import AxisName
from osgd_jax._scopes import Scope
from osgd_jax._task_rows import ArrayTree, is_task_rows
from osgd_jax.weightings import Weighting
from osgd_jax.weightings._orthogonal import Order


class AggregateState(NamedTuple):
    """State of `aggregate`.

    Attributes:
      key: PRNG key for the next step, or None where none was given.
      weighting: the weighting's state.
    """

    key: jax.Array | None
    weighting: Any


def aggregate(
    weighting: Weighting,
    scope: Scope = "shared",
    key: jax.Array | int | None = None,
    *,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Combine the gradients of K tasks into one update, by weights from their Gramian.

    .. warning:: Unlike other transformations, this one takes *task* gradients: leaves are
      `osgd_jax.TaskRows`, or arrays with a leading task axis, `[K, *parameter.shape]`. Updates come
      out with the shapes of the parameters. So it stands first in `optax.chain`, or after others
      that work on task gradients, such as `clip_task_norms`.

    What composes: anything after it in a chain; `optax.partition` with a tree of labels. What
    cannot, since it would see the task axis: `optax.MultiSteps` (accumulate the task gradients by
    `optax.microbatch` around the function that `task_grads` returns),
    `optax.apply_if_finite` or `optax.masked` *around* it (put them inside the chain, after it), and
    `optax.partition` with a function that makes the labels (call the function yourself).

    Dense arrays do not tell which losses reach a parameter. With scopes `"shared"` and `"reach"`,
    the rows that are not zero count as reached, array by array, at every step. While a loss is
    masked out, so that its gradient is zero, the groups can differ from those of `TaskRows`.

    Args:
      weighting: one of `osgd_jax.weightings`.
      scope: which parameters are balanced together, each group by weights of its own:

        * `"shared"`: all parameters reached by two or more losses are one group; the others keep
          their own gradient.
        * `"all"`: all parameters are one group.
        * `"leaf"`: each parameter array is a group.
        * `"reach"`: parameters reached by the same losses are a group.
        * a tree of labels with the structure of the parameters, or a function from the parameters
          to such a tree: each label is a group.
      key: PRNG key or seed for weightings that draw random numbers; kept in the state and split at
        every step.
      axis_name: inside `jax.shard_map`, the mesh axis (or axes) that the batch is split over. Each
        device then gives the gradients of the losses on its own examples, with respect to
        `jax.lax.pcast(params, axis_name, to="varying")`, and all get the update for the mean of the
        losses over the devices. The rows are reduce-scattered and one update is all-gathered, so
        that (K + 1) / 2 times the bytes of SGD are moved at most, and each device holds its share
        of the rows. `losses` are given as means over the devices.

    Returns:
      A transformation. Its `update(grads, state, params=None, *, losses=None)` takes the K losses
      for the weightings that need them. A NaN or infinity in a gradient makes every array of its
      group NaN that a loss reaches, and is forgotten: the weighting's state stays as it was. So it
      does where it would no longer be finite, as after a loss that is not.

    Raises:
      ValueError: from here, for an unknown scope; from `update` while tracing, for leaves that
        disagree on K or do not fit `params`, gradients of another than a real floating dtype,
        labels that do not fit, a weighting with a state per task used with a scope of several
        groups, or, with `axis_name`, gradients that were summed over the devices already.
    """
    _scopes.check_name(scope)

    def init(params: ArrayTree) -> Any:
        del params
        return AggregateState(random_key(key), weighting.init())

    def update(
        updates: ArrayTree,
        state: Any,
        params: ArrayTree | None = None,
        *,
        losses: Any = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        leaves = _gramian.leaves_of(updates, params)
        if not leaves:
            return updates, state
        whole = leaves
        if axis_name is not None:
            _data_parallel.check_varying(whole, axis_name)
            leaves = [_data_parallel.scatter(leaf, axis_name) for leaf in whole]
        groups = _scopes.group(scope, leaves, updates, params, axis_name)
        next_key, step_key = (
            (None, None) if state.key is None else tuple(jax.random.split(state.key))
        )
        weights, weighting_state = _weigh(
            weighting, leaves, groups, state.weighting, losses, step_key, axis_name
        )
        combined = [
            _gramian.combine_leaf(leaf, leaf_weights)
            for leaf, leaf_weights in zip(leaves, weights, strict=True)
        ]
        if axis_name is not None:
            combined = [
                _data_parallel.gather(share, leaf, axis_name)
                for share, leaf in zip(combined, whole, strict=True)
            ]
        treedef = jax.tree.structure(updates, is_leaf=is_task_rows)
        return treedef.unflatten(combined), AggregateState(next_key, weighting_state)

    return optax.GradientTransformationExtraArgs(init, update)


def orthogonalize(
    order: Order = "first_to_last",
    scope: Scope = "shared",
    key: jax.Array | int | None = None,
    *,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalize the task gradients in order of priority, and add them up.

    To first order, the step taken for a later task then changes no earlier task's loss (over the
    parameters of a group). `aggregate`, which see for what composes, with
    `weightings.orthogonal`.

    Source: Wan, Hoffmann, Lu and Maire, "Orthogonalized SGD and Nested Architectures for Anytime
    Neural Networks", ICML 2020.

    Args:
      order: priority of the tasks, the most protected first: `"first_to_last"`,
        `"last_to_first"`, `"random"` (a new permutation each step), or a permutation of
        `0 .. K-1`.
      scope: which parameters are orthogonalized together, as for `aggregate`.
      key: PRNG key or seed, needed by `order="random"`.
      axis_name: inside `jax.shard_map`, the mesh axis that the batch is split over, as for
        `aggregate`.

    Returns:
      A transformation that takes task gradients and returns an update.

    Raises:
      ValueError: as `aggregate`; an order that is no permutation; `"random"` without a key.
    """
    if isinstance(order, str) and order == "random" and key is None:
        raise ValueError(
            "order='random' draws a permutation at each step and needs a PRNG key: pass key=."
        )
    return aggregate(weightings.orthogonal(order), scope, key, axis_name=axis_name)


def osgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any | None = None,
    *,
    order: Order = "first_to_last",
    scope: Scope = "shared",
    key: jax.Array | int | None = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalized SGD: `orthogonalize`, then `optax.sgd`.

    Where the task gradients align, the step is shorter than that of SGD on the sum of the losses,
    so the best learning rate is often larger, up to K times.

    Source: Wan, Hoffmann, Lu and Maire, ICML 2020.

    Args:
      learning_rate: a number or a schedule.
      momentum: decay rate of the momentum; none is used if None.
      nesterov: whether to use Nesterov momentum.
      accumulator_dtype: dtype of the momentum; that of the parameters if None.
      order: as for `orthogonalize`.
      scope: as for `orthogonalize`.
      key: as for `orthogonalize`.
      axis_name: as for `orthogonalize`.

    Returns:
      A transformation that takes task gradients and returns an update.

    Raises:
      ValueError: as `orthogonalize`.
    """
    return optax.chain(
        orthogonalize(order, scope, key, axis_name=axis_name),
        optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype),
    )


def _weigh(weighting, leaves, groups, state, losses, key, axis_name) -> tuple[list[jax.Array], Any]:
    """Weights `[K]` for each leaf, and the weighting's next state."""
    dtype = _gramian.accumulation_dtype(leaves)
    own = jnp.ones(leaves[0].num_tasks, dtype)
    if groups.num_groups == 0:
        return [own] * len(leaves), state
    if jax.tree.leaves(state):
        check_one_group(groups, "this weighting")
    largest = _data_parallel.largest(
        groups.max([_gramian.max_abs(leaf, dtype) for leaf in leaves]), axis_name
    )
    scales = _scales(weighting.scaling, largest)
    partial = groups.sum(
        [
            _gramian.leaf_gramian(leaf, scales[group])
            for leaf, group in zip(leaves, groups.ids, strict=True)
        ]
    )
    gramians = _data_parallel.total(partial, axis_name)
    losses = stack_losses(losses, dtype)
    finite = jnp.all(jnp.isfinite(largest), axis=1, keepdims=True)

    def weigh(gramian, scales, state):
        kwargs = {"scales": scales} if weighting.scaling == "row" else {}
        return weighting.weigh(gramian, state, losses=losses, key=key, **kwargs)

    if groups.num_groups == 1:
        weights, next_state = weigh(gramians[0], scales[0], state)
        weights = weights[None]
        state = _unless_spoiled(next_state, state, finite[0, 0])
    else:
        weights, _ = jax.vmap(weigh, in_axes=(0, 0, None))(gramians, scales, state)
    # Not all weightings let a NaN through, and not all arrays of a group have the row with it.
    weights = jnp.where(finite, saturate(weights, largest), jnp.nan).astype(dtype)
    return [
        own if private is True else jnp.where(private, own, weights[group])
        for private, group in zip(python_bools(groups.private), groups.ids, strict=True)
    ], state


def _unless_spoiled(next_state: Any, state: Any, finite: jax.Array) -> Any:
    """The next state; the old one where a gradient, or what was finite in the state, is not.

    A NaN that is remembered would never go away, and a weighting may hide it.
    """
    for new, old in zip(jax.tree.leaves(next_state), jax.tree.leaves(state), strict=True):
        if jnp.issubdtype(jnp.result_type(new), jnp.inexact):
            finite &= jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), next_state, state)


def check_one_group(groups: _scopes.Groups, method: str) -> None:
    """Raise a ValueError where a method with a state per task is given several groups."""
    if groups.num_groups > 1:
        raise ValueError(
            f"{method} keeps a state per task, for one Gramian; with this scope there are"
            f" {groups.num_groups} groups of parameters. Use scope='shared' or scope='all'."
        )


def stack_losses(losses: Any, dtype: Any) -> jax.Array | None:
    """The losses, given as an array or as K scalars, as one array; None where there are none."""
    if losses is None:
        return None
    losses = jnp.stack(losses) if isinstance(losses, tuple | list) else jnp.asarray(losses)
    return losses.astype(dtype)


def random_key(key: jax.Array | int | None) -> jax.Array | None:
    """The key to keep in the state, from a key or a seed."""
    # A seed may come as an array, from `optax.inject_hyperparams`.
    if isinstance(key, int) or (
        key is not None and jnp.issubdtype(key.dtype, jnp.integer) and key.ndim == 0
    ):
        return jax.random.key(key)
    # Copied, so that donating the state leaves the caller's key alone.
    return None if key is None else jnp.copy(key)


def saturate(weights: jax.Array, largest: jax.Array) -> jax.Array:
    """Keep the weighted sum of finite gradients finite, where it would leave the dtype's range."""
    scales = jnp.maximum(_gramian.row_scales(largest), 1)
    share = jnp.finfo(largest.dtype).max / largest.shape[-1]
    limit = share / scales / jnp.maximum(largest / scales, 1)
    return jnp.clip(weights, -limit, limit)


def _scales(scaling: str, largest: jax.Array) -> jax.Array:
    if scaling == "row":
        return _gramian.row_scales(largest)
    if scaling == "common":
        common = jnp.max(largest, axis=1, keepdims=True)
        return jnp.broadcast_to(_gramian.row_scales(common), largest.shape)
    return jnp.ones_like(largest)


def python_bools(flags: Any) -> Any:
    """NumPy flags as Python's, which a comparison by `is` can tell from traced ones."""
    return flags.tolist() if not isinstance(flags, jax.Array) else flags
