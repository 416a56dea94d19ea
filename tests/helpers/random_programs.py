"""Random programs with several losses, to compare their task gradients with `jax.jacrev`.

A program draws its operations while it is traced, from a generator with the seed of the program, so
every trace of it is the same.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import osgd_jax

_MAX_SIZE = 96


def parameters(seed: int) -> dict[str, jax.Array]:
    """Draw the parameters of a program."""
    rng = np.random.default_rng(seed)
    shapes = {"scale": (), "vector": (5,), "matrix": (3, 4)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def random_losses(seed: int, num_operations: tuple[int, int] = (10, 40)):
    """Make a function from `parameters` to K losses, K between 1 and 12."""

    def losses(params: dict[str, jax.Array]) -> Any:
        draw = _Draw(seed, params)
        num_losses = int(draw.rng.integers(1, 13))
        rest = [int(n) for n in draw.rng.integers(1, 4, size=draw.rng.integers(1, 3))]
        values = [draw.weights((num_losses, *rest))]
        for _ in range(draw.rng.integers(num_operations[0], num_operations[1] + 1)):
            x = values[-1] if draw.flip(0.8) else draw.pick(values)
            if not x.ndim or x.size > _MAX_SIZE:
                x = values[0]
            values.append(_OPERATIONS[draw.index(len(_OPERATIONS))](draw, x))
            if draw.flip(0.3):
                values[-1] = jnp.sin(values[-1] * draw.weights(()))
        return draw.pick(_FORMS)(draw, values, num_losses)

    return losses


def stacked(losses):
    """Make the array `[K]` of any form of losses."""
    return lambda params: jnp.stack(jax.tree.leaves(losses(params))).reshape(-1)


def largest_difference(seed: int, transform=lambda fun: fun, **kwargs: Any) -> float:
    """Compare the task gradients of a program with `jax.jacrev`, relative to their scale."""
    losses, params = random_losses(seed, **kwargs), parameters(seed)

    @transform
    def both(params):
        grads = osgd_jax.densify(osgd_jax.task_grads(losses)(params))
        return grads, jax.jacrev(stacked(losses))(params)

    actual, expected = (
        np.concatenate([np.ravel(a) for a in tree.values()]) for tree in both(params)
    )
    assert np.all(np.isfinite(expected)), f"program {seed} is not finite"
    return float(np.max(np.abs(actual - expected)) / max(1.0, np.max(np.abs(expected))))


class _Draw:
    """Random choices and weights."""

    def __init__(self, seed: int, params: dict[str, jax.Array]):
        self.rng = np.random.default_rng(seed)
        self._params = params

    def index(self, stop: int) -> int:
        return int(self.rng.integers(stop))

    def flip(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, choices):
        return choices[self.index(len(choices))]

    def axis(self, x: jax.Array, later: float = 0.7) -> int:
        """Draw an axis, mostly not the first."""
        return (
            self.rng.integers(1, x.ndim) if x.ndim > 1 and self.flip(later) else self.index(x.ndim)
        )

    def constant(self, shape) -> jax.Array:
        return jnp.asarray(self.rng.normal(size=shape))

    def weights(self, shape) -> jax.Array:
        """Draw constants times elements of a parameter."""
        leaf = self.pick([self._params[name] for name in ("scale", "vector", "matrix")])
        places = self.rng.integers(leaf.size, size=shape)
        return self.constant(shape) * leaf.ravel()[places]

    def permutation(self, x: jax.Array, keep_first: float = 0.6) -> list[int]:
        if self.flip(keep_first):
            return [0, *(int(i) + 1 for i in self.rng.permutation(x.ndim - 1))]
        return [int(i) for i in self.rng.permutation(x.ndim)]

    def sizes(self, size: int) -> list[int]:
        """Factorize the size of an array in two."""
        first = self.pick([n for n in range(1, size + 1) if size % n == 0])
        return [first, size // first]


# ---------------------------------------------------------------------------------------------
# Operations
# ---------------------------------------------------------------------------------------------


def _reshape(draw, x):
    permutation = draw.permutation(x)
    if permutation[0] == 0 and draw.flip(0.7):
        sizes = [x.shape[0], *draw.sizes(x.size // x.shape[0])]
    else:
        sizes = draw.sizes(x.size)
    return lax.reshape(x, sizes, dimensions=draw.pick([None, permutation]))


def _reshape_each(draw, x):
    order = draw.pick("CF")
    sizes = draw.pick([[-1], draw.sizes(x.size // x.shape[0])])
    return jax.vmap(lambda row: jnp.reshape(row, sizes, order=order))(x)


def _slice(draw, x):
    starts = [draw.index(n) if draw.flip(0.3) else 0 for n in x.shape]
    return lax.slice(x, starts, x.shape, draw.pick([None, [draw.pick((1, 1, 2)) for _ in x.shape]]))


def _dynamic(draw, x):
    axis = draw.axis(x)
    start = jnp.int32(draw.index(x.shape[axis]))
    part = lax.dynamic_slice_in_dim(x, start, max(1, x.shape[axis] // 2), axis)
    return lax.dynamic_update_slice_in_dim(x, jnp.sin(part), 0, axis) if draw.flip() else part


def _gather(draw, x):
    axis = draw.axis(x)
    places = draw.rng.integers(x.shape[axis], size=draw.pick([(2,), (x.shape[axis],)]))
    return jnp.take(x, places, axis, mode=draw.pick(["clip", "fill", "wrap"]), fill_value=0)


def _gather_each(draw, x):
    axis = draw.axis(x)
    places = draw.rng.integers(
        x.shape[axis], size=[1 if i == axis else n for i, n in enumerate(x.shape)]
    )
    y = jnp.take_along_axis(x, places, axis)
    return jnp.squeeze(y, axis) if draw.flip() and x.ndim > 1 else y


def _scatter(draw, x):
    places = draw.rng.permutation(x.shape[0])[: max(1, x.shape[0] // 2)]
    update = getattr(x.at[places], draw.pick(["add", "set", "multiply"]))
    return update(draw.weights(x.shape[1:]), unique_indices=True)


def _sort(draw, x):
    return jnp.sort(x, axis=draw.axis(x))


def _cumulate(draw, x):
    function = draw.pick([lax.cumsum, lax.cumlogsumexp, lax.cummax])
    return function(x, axis=int(draw.axis(x)), reverse=draw.flip())


def _where(draw, x):
    return jnp.where(
        draw.pick([draw.constant(x.shape), x, draw.constant(())]) > 0, x, draw.weights(())
    )


def _arithmetic(draw, x):
    shape = [1 if draw.flip() else n for n in x.shape]
    y = draw.pick([draw.weights, draw.constant])(draw.pick([shape, [], x.shape[1:]]))
    function = draw.pick([jnp.multiply, jnp.add, jnp.subtract, lambda a, b: a / (2 + b**2)])
    return function(*draw.pick([(x, y), (y, x)]))


def _nonlinear(draw, x):
    return draw.pick([jnp.tanh, jax.nn.softplus, jax.nn.relu, jnp.square, jnp.negative])(x)


def _scan(draw, x):
    axis = int(draw.axis(x, later=0.5))
    rows = jnp.moveaxis(x, axis, 0)
    weights = draw.weights(())
    carry, out = lax.scan(
        lambda c, row: (jnp.sin(c + row * weights), c * row), 0 * rows[0] + 0.1, rows
    )
    return draw.pick([carry[None], out, jnp.moveaxis(out, 0, axis)])


def _cond(draw, x):
    test = draw.pick([jnp.sum(x) > 0, jnp.array(True)])
    return lax.cond(test, jnp.sin, lambda x: x * 2, x)


def _map(draw, x):
    weights = draw.weights(())
    return lax.map(lambda row: jnp.sin(row) * weights, x)


def _nested(draw, x):
    transform = draw.pick([jax.jit, jax.checkpoint, jax.vmap])
    weights = draw.weights(())
    return transform(lambda x: jnp.cos(x) * weights)(x)


@jax.custom_vjp
def _sine(x):
    return jnp.sin(x)


_sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, cotangent: (0.5 * cotangent * jnp.cos(x),))


@jax.custom_jvp
def _cosine(x):
    return jnp.cos(x)


_cosine.defjvp(lambda x, tangent: (jnp.cos(*x), 0.5 * tangent[0] * jnp.sin(*x)))


def _custom(draw, x):
    return draw.pick([_sine, _cosine, jax.vmap(_sine)])(x)


def _reduce(draw, x):
    if x.ndim == 1:
        return x
    reduce = draw.pick([jnp.sum, jnp.mean, jnp.max, jax.nn.logsumexp])
    return reduce(x, axis=int(draw.axis(x, later=0.85)), keepdims=draw.flip())


def _product(draw, x):
    axis = int(draw.axis(x, later=0.85))
    precision = draw.pick([None, "highest"])
    return jnp.tensordot(
        x, draw.weights((x.shape[axis], 3)) / 2, ((axis,), (0,)), precision=precision
    )


def _product_each(draw, x):
    x = x.reshape(x.shape[0], -1)
    subscripts = draw.pick(["kn,kn->k", "kn,kn->nk", "kn,jn->kj", "kn,jn->jk", "kn,km->knm"])
    y = draw.pick([x, draw.weights(x.shape)])
    return jnp.einsum(subscripts, *draw.pick([(x, y), (y, x)])) / 2


def _convolve(draw, x):
    groups = draw.pick([1, 2])
    maps = jnp.concatenate([x.reshape(x.shape[0], 1, -1)] * 2, axis=1)
    y = lax.conv_general_dilated(
        maps,
        draw.weights((2, 2 // groups, 2)) / 2,
        window_strides=(draw.pick([1, 2]),),
        padding=draw.pick([[(1, 1)], [(2, 1)]]),
        lhs_dilation=(draw.pick([1, 2]),),
        rhs_dilation=(draw.pick([1, 2]),),
        feature_group_count=groups,
    )
    return y[..., : max(1, 16 // len(x))]


def _pool(draw, x):
    window = [
        draw.pick([1, min(2, n)]) if axis or draw.flip(0.2) else 1 for axis, n in enumerate(x.shape)
    ]
    start, reduce = draw.pick([(0.0, lax.add), (-np.inf, lax.max)])
    strides = [draw.pick([1, n]) for n in window]
    # The dilated maximum has no derivative.
    dilation = [draw.pick([1, 2]) if axis and reduce is lax.add else 1 for axis in range(x.ndim)]
    return lax.reduce_window(*(x, start, reduce, window, strides, "SAME"), window_dilation=dilation)


def _concatenate(draw, x):
    parts = [x, draw.pick([x * 2, draw.weights(x.shape), jnp.sin(x)])]
    return jnp.concatenate(parts[:: draw.pick([1, -1])], axis=draw.axis(x))


def _stack(draw, x):
    return jnp.stack([x, jnp.sin(x)], axis=draw.index(x.ndim + 1))


def _flip(draw, x):
    return draw.pick([jnp.flip, functools.partial(jnp.roll, shift=1)])(x, axis=draw.axis(x))


def _pad(draw, x):
    return lax.pad(
        x, 0.0, [(draw.pick([0, 1, -1]) if n > 1 else 0, 0, draw.index(2)) for n in x.shape]
    )


def _broadcast(draw, x):
    y = jnp.expand_dims(x, draw.index(x.ndim + 1))
    return jnp.broadcast_to(y, [2 if n == 1 and draw.flip(0.3) else n for n in y.shape])


def _squeeze(draw, x):
    axes = [axis for axis, n in enumerate(x.shape) if n == 1 and x.ndim > 1]
    return jnp.squeeze(x, draw.pick(axes)) if axes else x


def _convert(draw, x):
    whole = jnp.asarray(draw.rng.integers(3, size=x.shape[1:]))
    return draw.pick(
        [(x + 1j * x**2).astype(complex).real + x.imag, x * (x > 0), x * whole.astype(float)]
    )


_OPERATIONS = (
    *(_reshape, _reshape_each, _reshape_each, _slice, _dynamic, _gather, _gather_each, _scatter),
    *(_sort, _cumulate, _where, _arithmetic, _arithmetic, _nonlinear, _scan, _cond, _map, _nested),
    *(_custom, _reduce, _product, _product_each, _convolve, _pool, _concatenate, _stack, _flip),
    *(_pad, _broadcast, _squeeze, _convert, lambda draw, x: jnp.transpose(x, draw.permutation(x))),
)


# ---------------------------------------------------------------------------------------------
# Forms of the losses
# ---------------------------------------------------------------------------------------------


def _array(draw, values, num_losses):
    """One array, by what treats its first axis apart where the last value allows it."""
    x = next(v for v in reversed(values) if v.shape[:1] == (num_losses,))
    x = jnp.sin(x) * draw.weights(x.shape[1:])
    x = _reshape_each(draw, x) if draw.flip() else x
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
    x = _reshape_each(draw, x[:, None])
    return jnp.mean(x * draw.constant(x.shape[1:]), axis=tuple(range(1, x.ndim)))


_FORMS = (
    *(_array, _array, _array, _separate, _concatenated, _set_one_by_one, _multiplied, _mapped),
    *(_of_parts, lambda *given: jnp.stack(_separate(*given))),
)
