"""Combine task gradients into one update, by weights from their Gramian."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from osgd_jax import weightings
from osgd_jax._balancing import common, gramians, scopes, sharded, small_arrays
from osgd_jax._balancing.scopes import Scope
from osgd_jax._balancing.sharded import AxisName
from osgd_jax._gradients.rows import (
    ArrayTree,
    TaskRows,
    accumulation_dtype,
    is_task_rows,
    max_abs,
)
from osgd_jax.weightings import Weighting
from osgd_jax.weightings._base import resolve


class AggregateState(NamedTuple):
    """State of `aggregate`.

    Attributes:
      key: PRNG key for the next step, or None where none was given.
      weighting: state of the weighting.
    """

    key: jax.Array | None
    weighting: Any


def aggregate(
    weighting: Weighting,
    scope: Scope = "all",
    key: jax.Array | int | None = None,
    *,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Combine the gradients of K tasks into one update, by weights from their Gramian.

    .. warning:: Unlike other transformations, this one takes *task* gradients: leaves are
      `osgd_jax.TaskRows`, or arrays with a leading task axis, `[K, *parameter.shape]`. Updates come
      out with the shapes of the parameters. So it stands first in `optax.chain`, or after others
      that work on task gradients, such as `clip_task_norms`. Pass `params` to `update`: they tell
      task gradients from others. `optax.clip_by_global_norm` before it clips the norm of the whole
      Jacobian, and nothing can tell; put it after, or use `clip_task_norms`.

    What composes: anything after it in a chain, such as `optax.partition`, `optax.masked` and
    `optax.apply_if_finite`; around it, `optax.partition` with a tree of labels (not a function that
    makes them) whose transformations *all* take task gradients. What cannot stand around it, since
    it would see the task axis: `optax.MultiSteps` (accumulate the task gradients by
    `optax.microbatch` around the function that `task_grads` returns), `optax.apply_if_finite` and
    `optax.masked`.

    To freeze parameters, differentiate with respect to the others only. Or set their updates to
    zero after it, `optax.chain(tx, optax.masked(optax.set_to_zero(), frozen))`; under scope `"all"`
    they then still take part in the weights.

    With scopes `"shared"` and `"reach"`, a loss reaches a parameter array if its row is not zero at
    this step. So the result is the same however the losses are written, and for `TaskRows` as for
    dense arrays; a loss that is masked out reaches nothing. These two scopes read each row that
    analysis cannot rule out before they form the groups.

    Args:
      weighting: one of `osgd_jax.weightings`, such as `weightings.pcgrad()`.
      scope: which parameters are balanced together, each group by weights of its own:

        * `"all"`: all parameters are one group: each paper's formula as it stands.
        * `"shared"`: all parameters reached by two or more losses are one group; the others keep
          their own gradient.
        * `"leaf"`: each parameter array is a group.
        * `"reach"`: parameters reached by the same losses are a group.
        * a tree of labels with the structure of the parameters, or a function from the parameters
          to such a tree: each label is a group.
      key: PRNG key or seed for weightings that draw random numbers; kept in the state and split at
        every step. A seed makes a typed key. `flax.serialization` does not take typed keys: for it,
        give `jax.random.PRNGKey(seed)`.
      axis_name: inside `jax.shard_map`, the mesh axis (or axes) that the batch is split over. Each
        device then gives the gradients of the losses on its own examples, with respect to
        `jax.lax.pcast(params, axis_name, to="varying")`, and all get the update for the mean of the
        losses over the devices. Rows that are long enough are reduce-scattered and
        one update is all-gathered, (K + 1) / 2 times the bytes of SGD where all losses reach all
        parameters, and each device holds its share of the rows. `losses` are given as means over
        the devices. Inside `jax.pmap`, where no type tells averaged gradients from others, `()`
        says that these are averaged.

    Returns:
      A transformation. Its `update(grads, state, params=None, *, losses=None, others=None)` takes
      the K losses for the weightings that need them. For `modo` and `sdmgrad` it takes `others`:
      the task gradients of a second, independent batch at the same parameters. The Gramian is then
      the unbiased one of both, and the update is along their mean. Gradients of the step before are
      no such batch (see `gramian`); where a batch holds all examples, give its gradients twice.

      A NaN or infinity in a gradient makes every array of its group NaN that a loss reaches, and is
      forgotten: the weighting's state stays as it was. So it does where it would no longer be
      finite, as after a loss that is not.

    Raises:
      ValueError: from here, for an unknown scope, and for what is no weighting or no key; from
        `update` while tracing, for leaves that disagree on K or do not fit `params`, gradients of
        another than a real floating dtype, labels that do not fit, losses that are not K numbers, a
        weighting with a state per task used with a scope of several groups; inside `jax.shard_map`,
        without `axis_name` for gradients that differ between devices or could, and with it for
        those that were summed over the devices already.
    """
    _check_weighting(weighting)
    scopes.check_name(scope)
    common.check_key(key)

    def init(params: ArrayTree) -> Any:
        del params
        return AggregateState(common.random_key(key), weighting.init())

    def update(
        updates: ArrayTree,
        state: Any,
        params: ArrayTree | None = None,
        *,
        losses: Any = None,
        others: ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        _check_others(weighting, others)
        # The leaves of one batch, or of two.
        batches = [gramians.leaves_of(updates, params)]
        if others is not None:
            batches = list(gramians.paired(updates, others, params))
        leaves = batches[0]
        if not leaves:
            return updates, state
        for each in batches:
            sharded.check(each, axis_name)
        next_key, step_key = common.split_key(state.key)
        groups = scopes.group(scope, leaves, updates, params, axis_name)
        labels = groups.labels()
        if others is not None:
            labels = gramians.pair_labels(labels, *batches)
        blocks = [small_arrays.merge(each, labels, axis_name) for each in batches]
        shares = [[sharded.scatter(block, axis_name) for block in each.rows] for each in blocks]
        copies = [sharded.copies(block, axis_name) for block in blocks[0].rows]
        dtype = accumulation_dtype([leaf for each in batches for leaf in each])
        values = common.stack_losses(losses, leaves[0].num_tasks, dtype)
        weights, weighting_state = _weigh(
            resolve(weighting, common.tasks_of(leaves, losses)),
            shares,
            copies,
            groups.at([members[0] for members in blocks[0].members]),
            state.weighting,
            values,
            step_key,
            axis_name,
        )
        if not axis_name:
            # Cutting a combined buffer up takes longer to compile than combining its parts.
            weights = small_arrays.spread(weights, blocks[0])
            combined = _combine(batches, weights)
        else:
            arrays = [
                sharded.gather(array, block, axis_name)
                for array, block in zip(_combine(shares, weights), blocks[0].rows, strict=True)
            ]
            combined = small_arrays.split(arrays, blocks[0], leaves)
        treedef = jax.tree.structure(updates, is_leaf=is_task_rows)
        return treedef.unflatten(combined), AggregateState(next_key, weighting_state)

    return common.Aggregator(init, update)


def _combine(batches: list[list[TaskRows]], weights: list[jax.Array]) -> list[jax.Array]:
    """Add up the rows of each leaf with their weights; the mean of it over the batches."""
    sums = [
        [gramians.combine_leaf(*each) for each in zip(leaves, weights, strict=True)]
        for leaves in batches
    ]
    return sums[0] if len(sums) == 1 else [0.5 * a + 0.5 * b for a, b in zip(*sums, strict=True)]


def _weigh(
    weighting, batches, copies, groups, state, losses, key, axis_name
) -> tuple[list[jax.Array], Any]:
    """Find the weights `[K]` for each leaf, and the weighting's next state.

    From the leaves of one batch, or of two.
    """
    leaves = batches[0]
    dtype = accumulation_dtype([leaf for each in batches for leaf in each])
    stepped = [task not in weighting.hold for task in range(leaves[0].num_tasks)]
    own = jnp.array(stepped, dtype)
    if groups.num_groups == 0:
        return [own] * len(leaves), state
    if jax.tree.leaves(state):
        common.check_one_group(groups, "this weighting")
    largest = [groups.max([max_abs(leaf, dtype) for leaf in each], each) for each in batches]
    largest = sharded.largest(functools.reduce(jnp.maximum, largest), axis_name)
    # No result depends on the scales.
    largest = lax.stop_gradient(largest)
    scales = _scales(weighting.scaling, largest)
    products = [
        gramians.leaf_gramian(leaf, scales[group], *other)
        for leaf, *other, group in zip(*batches, groups.ids, strict=True)
    ]
    # What each device has in full counts once in the sum over them.
    products = [
        each if count == 1 else each / count for each, count in zip(products, copies, strict=True)
    ]
    totals = sharded.total(groups.sum(products, leaves), axis_name)
    finite = jnp.all(jnp.isfinite(largest), axis=1, keepdims=True)

    def weigh(gramian, scales, state):
        kwargs = {"scales": scales} if weighting.scaling == "row" else {}
        # By default, accelerators round what they multiply to bfloat16 or TF32.
        with jax.default_matmul_precision("highest"):
            return weighting.weigh(gramian, state, losses=losses, key=key, **kwargs)

    if groups.num_groups == 1:
        weights, next_state = weigh(totals[0], scales[0], state)
        weights = weights[None]
        state = common.unless_spoiled(next_state, state, finite[0, 0])
    else:
        weights, _ = jax.vmap(weigh, in_axes=(0, 0, None))(totals, scales, state)
    # Not all weightings let a NaN through, and not all arrays of a group have the row with it.
    weights = jnp.where(finite, common.saturate(weights, largest), jnp.nan).astype(dtype)
    return [
        _select(private, own, weights[group])
        for private, group in zip(groups.private, groups.ids, strict=True)
    ], state


def _check_others(weighting: Weighting, others: Any) -> None:
    """Raise a ValueError unless a second batch is given where, and only where, it is used."""
    if weighting.cross and others is None:
        raise ValueError(
            "others must be the task gradients of a second, independent batch for this weighting,"
            " got None: tx.update(grads, state, params, others=second_grads). Two halves of a batch"
            " do; where a batch holds all examples, others=grads."
        )
    if others is not None and not weighting.cross:
        raise ValueError(
            "others, the task gradients of a second batch, must be left out for this weighting:"
            " only weightings.modo and weightings.sdmgrad use them."
        )


def _select(private: Any, own: jax.Array, weights: jax.Array) -> jax.Array:
    if isinstance(private, bool):
        return own if private else weights
    return jnp.where(private, own, weights)


def _check_weighting(weighting: Any) -> None:
    """Raise a ValueError for what is no `Weighting`, with the call that makes one."""
    if isinstance(weighting, Weighting):
        return
    name = weighting if isinstance(weighting, str) else getattr(weighting, "__name__", "")
    known = name if name in weightings.__all__ and name != "Weighting" else "pcgrad"
    raise ValueError(
        f"weighting={weighting!r} must be a Weighting, which a call of a function in"
        f" osgd_jax.weightings returns: osgd_jax.weightings.{known}(...)."
    )


def _scales(scaling: str, largest: jax.Array) -> jax.Array:
    """Return what the gradients `[groups, K]` are divided by before the weighting sees them."""
    if scaling == "row":
        return gramians.row_scales(largest)
    if scaling == "common":
        common = jnp.max(largest, axis=1, keepdims=True)
        return jnp.broadcast_to(gramians.row_scales(common), largest.shape)
    return jnp.ones_like(largest)
