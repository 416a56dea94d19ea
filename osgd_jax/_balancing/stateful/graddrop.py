"""GradDrop: where gradients disagree in sign, one sign is drawn and the other dropped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from osgd_jax._balancing import common, sharded
from osgd_jax._gradients.rows import (
    ArrayTree,
    TaskRows,
    accumulation_dtype,
    of_tasks,
)
from osgd_jax._validation import check_range
from osgd_jax.weightings._by_task import by_position
from osgd_jax.weightings._tools import Numbers


class GradDropState(NamedTuple):
    """State of `graddrop`.

    Attributes:
      key: PRNG key for the next step.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> state = osgd_jax.graddrop(key=0).init(jnp.zeros(2))
      >>> state.key.shape
      ()
    """

    key: jax.Array


def graddrop(key: jax.Array | int, leak: Numbers = 0.0) -> optax.GradientTransformationExtraArgs:
    """Draw one sign for each number in the parameters, and add up the gradients of that sign.

    The positive sign has the probability :math:`(1 + ∑_i g_i / ∑_i |g_i|) / 2`, with sums over the
    tasks. A gradient of the other sign counts with the share `leak` only.

    Every number is balanced separately, so there is no scope to choose, and a parameter that one
    loss reaches keeps its own gradient. A NaN or infinity in a gradient makes that number of the
    update NaN. The paper also has a form for activations, with sums over a batch; this one is for
    the gradients of parameters. For what composes, see `aggregate`. Inside `jax.shard_map`, average
    the task gradients over the devices first; gradients that differ between devices raise an error,
    unless `check_vma=False` hides this.

    Source: Chen, Ngiam, Huang, Luong, Kretzschmar, Chai and Anguelov, "Just Pick a Sign: Optimizing
    Deep Multitask Models with Gradient Sign Dropout", NeurIPS 2020 (arXiv 2010.06808).

    Args:
      key: PRNG key or seed; kept in the state and split at every step.
      leak: share of its gradient that a task keeps where its sign is not the one drawn, between 0
        and 1: one number, or one for each task, by name for losses in a dict.

    Returns:
      A transformation that takes task gradients and returns an update.

    Raises:
      ValueError: no key; a leak that is not between 0 and 1; from `update`, as `aggregate`, and for
        a number of leaks that is not K.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> params, grads = jnp.zeros(2), jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> tx = osgd_jax.graddrop(key=0, leak=0.5)
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates.shape
      (2,)
    """
    if key is None:
        raise ValueError(
            "graddrop draws signs at each step and needs a PRNG key or a seed: pass key=."
        )
    wanted = "between 0 and 1, one number or one for each task"
    leak = check_range("leak", leak, wanted, lambda leak: (leak >= 0) & (leak <= 1), most_axes=1)
    common.check_key(key)

    def init(params: ArrayTree) -> Any:
        del params
        return GradDropState(common.random_key(key))  # pyright: ignore[reportArgumentType] - not None

    def combine(
        grads: common.TaskGradients, state: GradDropState, **extra_args: Any
    ) -> tuple[list[jax.Array], GradDropState]:
        del extra_args
        leaves = grads.leaves
        sharded.check_same(leaves, "average them first, by jax.lax.pmean")
        leaks = _one_for_each_task(by_position("leak", leak, grads.tasks), leaves[0].num_tasks)
        next_key, *keys = jax.random.split(state.key, len(leaves) + 1)
        picked = [_pick_signs(leaf, leaks, k) for leaf, k in zip(leaves, keys, strict=True)]
        return picked, GradDropState(next_key)

    return common.aggregator(init, combine)


def _one_for_each_task(leak: Numbers, num_tasks: int) -> jax.Array:
    leaks = jnp.asarray(leak, float)
    if leaks.ndim == 1 and len(leaks) != num_tasks:
        raise ValueError(f"leak has {len(leaks)} numbers; there are {num_tasks} tasks.")
    return jnp.broadcast_to(leaks, num_tasks)


def _pick_signs(leaf: TaskRows, leaks: jax.Array, key: jax.Array) -> jax.Array:
    dtype = accumulation_dtype([leaf])
    rows = leaf.rows.astype(dtype)
    # Divided by the largest of the tasks', so that no sum leaves the range.
    largest = jnp.max(jnp.abs(rows), axis=0, initial=0)
    rows = rows / jnp.where(largest == 0, 1, largest)[None]
    total = jnp.sum(jnp.abs(rows), axis=0)
    purity = (1 + jnp.sum(rows, axis=0) / jnp.where(total == 0, 1, total)) / 2
    positive = (jax.random.uniform(key, purity.shape, dtype) < purity)[None]
    kept = jnp.where(positive, rows > 0, rows < 0)
    leak = of_tasks(leaks, leaf.tasks).astype(dtype).reshape(-1, *[1] * (rows.ndim - 1))
    # A product with zero, not a selection: it lets a NaN through.
    picked = jnp.sum(jnp.where(kept, 1, leak) * rows, axis=0)
    return (largest * picked).astype(leaf.rows.dtype)
