"""Combine task gradients into one update, by weights from their Gramian."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from osgd_jax import weightings
from osgd_jax._balancing import common, gramians, scopes, sharded
from osgd_jax._balancing.blocks import combine_blocks, merge
from osgd_jax._balancing.scopes import Scope
from osgd_jax._balancing.sharded import AxisName
from osgd_jax._gradients.rows import ArrayTree, accumulation_dtype
from osgd_jax.weightings import Weighting
from osgd_jax.weightings._base import resolve


class AggregateState(NamedTuple):
    """State of `aggregate`.

    Attributes:
      key: PRNG key for the next step, or None where none was given.
      weighting: state of the weighting.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> tx = osgd_jax.aggregate(osgd_jax.weightings.pcgrad(), key=0)
      >>> state = tx.init(jnp.zeros(2))
      >>> state.key.shape, state.weighting
      ((), ())
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
      `osgd_jax.TaskRows`, or arrays with a leading task axis, `[K, *parameter.shape]`. Updates have
      the shapes of the parameters, so put this first in `optax.chain`, or after transformations of
      task gradients such as `clip_task_norms`. Pass `params` to `update`, so that ordinary
      gradients raise an error. An `optax.clip_by_global_norm` in front would clip the norm of the
      whole Jacobian without an error; put it after this one, or use `clip_task_norms`.

    Everything composes after it in a chain, such as `optax.partition`, `optax.masked` and
    `optax.apply_if_finite`. Around it, only `optax.partition` composes, with a tree of labels (not
    a function) whose transformations *all* take task gradients. `optax.MultiSteps`,
    `optax.apply_if_finite` and `optax.masked` cannot wrap it, because they would see the task axis.
    Instead of `optax.MultiSteps`, wrap the function that `task_grads` returns in
    `optax.microbatch`.

    To freeze parameters, differentiate with respect to the others only. You can also set their
    updates to zero, `optax.chain(tx, optax.masked(optax.set_to_zero(), frozen))`, but under scope
    `"all"` they still influence the weights.

    With scopes `"shared"` and `"reach"`, a loss reaches a parameter array if its row is not zero at
    this step. The result therefore does not depend on how the losses are written, and is the same
    for `TaskRows` and dense arrays; a masked loss reaches nothing. Both scopes read every row that
    the static analysis cannot rule out before they form the groups.

    Args:
      weighting: one of `osgd_jax.weightings`, such as `weightings.pcgrad()`.
      scope: which parameters are balanced together; each group gets separate weights:

        * `"all"`: all parameters are one group: each paper's formula as it stands.
        * `"shared"`: all parameters reached by two or more losses are one group; the others keep
          their own gradient.
        * `"leaf"`: each parameter array is a group.
        * `"reach"`: parameters reached by the same losses are a group.
        * a tree of labels with the structure of the parameters, or a function from the parameters
          to such a tree: each label is a group.
      key: PRNG key or seed for weightings that draw random numbers; kept in the state and split at
        every step. A seed becomes a typed key, which `flax.serialization` does not accept; pass
        `jax.random.PRNGKey(seed)` for it.
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
      not such a batch (see `gramian`); if a batch holds all examples, pass its gradients twice.

      A NaN or infinity in a gradient makes every array of its group NaN that a loss reaches. The
      weighting's state does not change then, or if its new value would not be finite, as after a
      loss that is not finite.

    Raises:
      ValueError: from `aggregate`, for an unknown scope, or a wrong weighting or key; from `update`
        while tracing, for leaves that disagree on K or do not fit `params`, gradients without a
        real floating dtype, labels that do not fit, losses that are not K numbers, a weighting with
        a state per task used with a scope of several groups; inside `jax.shard_map`, without
        `axis_name`, for gradients that differ or may differ between devices; with it, for gradients
        that are already summed over the devices.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import osgd_jax
      >>> params, grads = jnp.zeros(2), jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> tx = optax.chain(osgd_jax.aggregate(osgd_jax.weightings.upgrad()), optax.sgd(0.1))
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print(updates.round(3))
      [-0.025 -0.075]
    """
    _check_weighting(weighting)
    scopes.check_name(scope)
    common.check_key(key)

    def init(params: ArrayTree) -> Any:
        del params
        return AggregateState(common.random_key(key), weighting.init())

    def combine(
        grads: common.TaskGradients, state: AggregateState, others: Any = None, **extra_args: Any
    ) -> tuple[list[jax.Array], AggregateState]:
        del extra_args
        _check_others(weighting, others)
        batches = [grads.leaves]
        if others is not None:
            batches = gramians.paired(grads.tree, others, grads.params)
        for leaves in batches:
            sharded.check(leaves, axis_name)
        dtype = accumulation_dtype([leaf for leaves in batches for leaf in leaves])
        losses = None if grads.losses is None else grads.losses.astype(dtype)
        for_tasks = resolve(weighting, grads.tasks)
        next_key, step_key = common.split_key(state.key)

        groups = scopes.group(scope, batches[0], grads.tree, grads.params, axis_name)
        blocks = merge(batches, groups.labels(), axis_name)
        groups = groups.at([block.members[0] for block in blocks])
        stepped = [task not in for_tasks.hold for task in range(blocks[0].num_tasks)]
        own = [jnp.array(stepped, dtype)] * len(blocks)
        if jax.tree.leaves(state.weighting):
            common.check_one_group(groups, "this weighting")
        if groups.num_groups == 0:
            return combine_blocks(blocks, own), AggregateState(next_key, state.weighting)

        largest = groups.max([block.largest(dtype) for block in blocks], blocks)
        # No result depends on the scales.
        largest = lax.stop_gradient(sharded.largest(largest, axis_name))
        scales = _scales(for_tasks.scaling, largest)
        products = [
            block.gramian(scales_of_block)
            for block, scales_of_block in zip(blocks, groups.of_each(scales), strict=True)
        ]
        totals = sharded.total(groups.sum(products, blocks), axis_name)
        weights, next_state = _weigh(for_tasks, totals, scales, state.weighting, losses, step_key)
        # Not all weightings let a NaN through, and not all arrays of a group have the row with it.
        finite = jnp.all(jnp.isfinite(largest), axis=1, keepdims=True)
        weights = jnp.where(finite, common.saturate(weights, largest), jnp.nan).astype(dtype)
        next_state = common.unless_spoiled(next_state, state.weighting, jnp.all(finite))
        combined = combine_blocks(blocks, groups.select(own, groups.of_each(weights)))
        return combined, AggregateState(next_key, next_state)

    return common.aggregator(init, combine)


def _weigh(
    weighting: Weighting,
    gramians: jax.Array,
    scales: jax.Array,
    state: Any,
    losses: jax.Array | None,
    key: jax.Array | None,
) -> tuple[jax.Array, Any]:
    """Return the weights `[groups, K]` for Gramians `[groups, K, K]`, and the next state."""

    def weigh(gramian, scales, state):
        kwargs = {"scales": scales} if weighting.scaling == "row" else {}
        # By default, accelerators round what they multiply to bfloat16 or TF32.
        with jax.default_matmul_precision("highest"):
            return weighting.weigh(gramian, state, losses=losses, key=key, **kwargs)

    if len(gramians) == 1:
        weights, next_state = weigh(gramians[0], scales[0], state)
        return weights[None], next_state
    weights, _ = jax.vmap(weigh, in_axes=(0, 0, None))(gramians, scales, state)
    return weights, state


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


def _check_weighting(weighting: Any) -> None:
    """Raise a ValueError unless `weighting` is a `Weighting`, with the call that makes one."""
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
