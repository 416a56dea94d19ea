"""Random programs with several losses, to compare their task gradients with `jax.jacrev`.

A program draws its operations while it is traced, from a generator with the seed of the program, so
every trace of it is the same.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import osgd_jax
from tests.helpers.random_operations import MAX_SIZE, OPERATIONS, Draw, reshape_each


def parameters(seed: int) -> dict[str, jax.Array]:
    """Draw the parameters of a program."""
    rng = np.random.default_rng(seed)
    shapes = {"scale": (), "vector": (5,), "matrix": (3, 4)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def random_losses(seed: int, num_operations: tuple[int, int], num_losses: Sequence[int]):
    """Make a function from `parameters` to as many losses as one of `num_losses`."""
    counts = num_losses

    def losses(params: dict[str, jax.Array]) -> Any:
        draw = Draw(seed, params)
        num_losses = draw.pick(counts)
        rest = [int(n) for n in draw.rng.integers(1, 4, size=draw.rng.integers(1, 3))]
        values = [draw.weights((num_losses, *rest))]
        for _ in range(draw.rng.integers(num_operations[0], num_operations[1] + 1)):
            x = values[-1] if draw.flip(0.8) else draw.pick(values)
            if not x.ndim or x.size > MAX_SIZE:
                x = values[0]
            values.append(OPERATIONS[draw.index(len(OPERATIONS))](draw, x))
            if draw.flip(0.3):
                values[-1] = jnp.sin(values[-1] * draw.weights(()))
        return draw.pick(_FORMS)(draw, values, num_losses)

    return losses


def stacked(losses):
    """Make the array `[K]` of any form of losses."""
    return lambda params: jnp.stack(jax.tree.leaves(losses(params))).reshape(-1)


def largest_difference(seed: int, is_compiled: bool, **kwargs: Any) -> float:
    """Compare the task gradients of a program with `jax.jacrev`, relative to their scale.

    Args:
      seed: of the program.
      is_compiled: whether the task gradients are computed under `jax.jit`.
      **kwargs: of `random_losses`.
    """
    losses, params = random_losses(seed, **kwargs), parameters(seed)

    def ours(params):
        return osgd_jax.densify(osgd_jax.task_grads(losses)(params))

    reference = jax.jacrev(stacked(losses))
    if is_compiled:
        trees = jax.jit(lambda params: (ours(params), reference(params)))(params)
    else:
        trees = ours(params), jax.jit(reference)(params)
    actual, expected = (np.concatenate([np.ravel(a) for a in tree.values()]) for tree in trees)
    assert np.all(np.isfinite(expected)), f"program {seed} is not finite"
    return float(np.max(np.abs(actual - expected)) / max(1.0, np.max(np.abs(expected))))


# ---------------------------------------------------------------------------------------------
# Forms of the losses
# ---------------------------------------------------------------------------------------------


def _array(draw, values, num_losses):
    """One array, by what treats its first axis apart where the last value allows it."""
    x = next(v for v in reversed(values) if v.shape[:1] == (num_losses,))
    x = jnp.sin(x) * draw.weights(x.shape[1:])
    x = reshape_each(draw, x) if draw.flip() else x
    x = x * draw.constant(x.shape[1:])
    if draw.flip():
        return jnp.mean(x, axis=tuple(range(1, x.ndim)))
    return x.reshape(num_losses, -1) @ draw.constant(x[0].size) / (1 + x[0].size)


def _separate(draw, values, num_losses):
    def loss(_):
        x = draw.pick(values[-4:])
        return jnp.mean(jnp.sin(x) * draw.pick([draw.weights, draw.constant])(x.shape))

    return tuple(map(loss, range(num_losses)))


def _concatenated(draw, values, num_losses):
    losses = jnp.stack(_separate(draw, values, num_losses))
    first = draw.index(num_losses + 1)
    return jnp.concatenate([losses[:first], _array(draw, values, num_losses)[first:]])


def _set_one_by_one(draw, values, num_losses):
    losses = jnp.zeros(num_losses)
    for task, loss in enumerate(_separate(draw, values, num_losses)):
        losses = losses.at[task].set(loss)
    return losses


def _multiplied(draw, values, num_losses):
    return draw.constant((num_losses, num_losses)) @ _array(draw, values, num_losses)


def _mapped(draw, values, num_losses):
    x = _array(draw, values, num_losses)
    return draw.pick([lax.map, lambda f, x: jax.vmap(f)(x)])(lambda loss: jnp.tanh(loss) * 2, x)


def _of_parts(draw, values, num_losses):
    """Arithmetic after a stack of arrays."""
    shape = draw.pick([(), (2,), (2, 3)])
    losses = _separate(draw, values, num_losses)
    x = jnp.stack([loss * draw.weights(shape) for loss in losses])
    x = reshape_each(draw, x[:, None])
    return jnp.mean(x * draw.constant(x.shape[1:]), axis=tuple(range(1, x.ndim)))


_FORMS = (
    *(_array, _array, _array, _separate, _concatenated, _set_one_by_one, _multiplied, _mapped),
    *(_of_parts, lambda *given: jnp.stack(_separate(*given))),
)
