"""Arguments that several weightings share: preferences, losses, numbers of tasks."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._tasks import numbered
from osgd_jax._validation import is_traced
from osgd_jax.weightings._by_task import by_position

# Up to this number of tasks a loop over them is unrolled, which lets the compiler fuse it; the gain
# on accelerators was not measured. On CPU it is as fast as the loop (15 µs for 16 tasks) and takes
# longer to compile for many tasks: 1.0 s instead of 0.2 s for 16, 0.2 s either way for 3.
UNROLLED_TASKS = 16

Numbers = float | Sequence[float] | Mapping[str, float] | np.ndarray | jax.Array
"""One number for each task, in their order or by their names; it may be traced."""


def check_preference(preference: Numbers | None) -> Numbers | None:
    """Check a preference for each task, and keep one that is not traced as Python numbers.

    Raises:
      ValueError: a negative or not finite number, or only zeros.
    """
    if preference is None or is_traced(preference):
        return preference
    if isinstance(preference, Mapping):
        check_preference(jax.tree.leaves(dict(preference)))
        return preference
    try:
        numbers = tuple(float(number) for number in np.ravel(preference))
    except (TypeError, ValueError):
        numbers = ()
    if not all(0 <= number < float("inf") for number in numbers) or not any(numbers):
        raise ValueError(
            f"preference={preference!r} must be a finite non-negative number for each task, at"
            " least one of them positive."
        )
    return numbers


def preference_like(preference: Numbers | None, like: jax.Array, default: float) -> jax.Array:
    """Return the preference as an array `[K]`, as `like` is; `default` for each where it is None.

    A traced preference that `check_preference` would refuse becomes NaN.

    Raises:
      ValueError: a preference of another length than K.
    """
    if preference is None:
        return jnp.full_like(like, default)
    numbers = numbers_like("preference", preference, like)
    if not is_traced(preference):
        return numbers
    fits = jnp.all((numbers >= 0) & (numbers < jnp.inf)) & jnp.any(numbers > 0)
    return jnp.where(fits, numbers, jnp.nan)


def numbers_like(name: str, numbers: Numbers, like: jax.Array) -> jax.Array:
    """Return one number for each task as an array `[K]`, as `like` is.

    Raises:
      ValueError: another number of them than K, or names.
    """
    numbers = by_position(name, numbers, numbered(len(like)))
    array = jnp.ravel(jnp.asarray(numbers, like.dtype))
    if len(array) != len(like):
        raise ValueError(f"{name} has {len(array)} numbers; there are {len(like)} tasks.")
    return array


def check_losses(losses: jax.Array | None, gramian: jax.Array, method: str) -> jax.Array:
    """Return the losses in the dtype of the Gramian.

    Raises:
      ValueError: no losses, or not K of them.
    """
    if losses is None:
        raise ValueError(
            f"{method} weighs the tasks by their losses: pass them,"
            " tx.update(grads, state, params, losses=losses). flax's TrainState.apply_gradients and"
            " optax.lookahead pass none on: see 'In your framework' in the documentation."
        )
    losses = jnp.asarray(losses, gramian.dtype)
    if losses.shape != gramian.shape[:1]:
        raise ValueError(
            f"losses has shape {losses.shape}; {method} needs one loss for each of the"
            f" {gramian.shape[0]} tasks."
        )
    return losses


def check_num_tasks(num_tasks: int, gramian: jax.Array, method: str) -> None:
    """Raise a ValueError unless the Gramian is of the number of tasks of the state."""
    if gramian.shape[0] != num_tasks:
        raise ValueError(
            f"{method}(num_tasks={num_tasks}) was given the gradients of {gramian.shape[0]} tasks."
        )
