"""Operations of random programs, each drawn with its parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MAX_SIZE = 96


class Draw:
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


def reshape_each(draw, x):
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


def _split(draw, x):
    axis = int(draw.axis(x))
    parts = jnp.split(x, [max(1, x.shape[axis] // 2)], axis) if x.shape[axis] > 1 else [x]
    return jnp.concatenate([part * draw.weights(()) for part in parts[::-1]], axis)


def _scatter_each(draw, x):
    x = x.reshape(x.shape[0], -1)
    places = draw.rng.integers(x.shape[1], size=(x.shape[0], draw.pick([1, 2])))
    updates = draw.weights(places.shape)
    name = draw.pick(["add", "set"]) if places.shape[1] == 1 else "add"
    return jax.vmap(lambda row, at, update: getattr(row.at[at], name)(update))(x, places, updates)


def _scatter_part(draw, x):
    x = x.reshape(x.shape[0], -1)
    return x.at[:, draw.index(x.shape[1])].add(draw.weights((x.shape[0],)))


def _element_each(draw, x):
    """Index rows by their number, or by others, and columns."""
    rows = draw.pick([np.arange(x.shape[0]), draw.rng.integers(x.shape[0], size=x.shape[0])])
    x = x.reshape(x.shape[0], -1)
    columns = draw.rng.integers(x.shape[1] + draw.index(2), size=x.shape[0])
    y = x.at[rows, columns].get(mode=draw.pick(["clip", "fill"]), fill_value=0)
    return y[:, None] * x


def _dynamic_each(draw, x):
    x = x.reshape(x.shape[0], -1)
    starts = draw.rng.integers(x.shape[1], size=x.shape[0])
    size = max(1, x.shape[1] // 2)
    return jax.vmap(lambda row, start: lax.dynamic_slice(row, (start,), (size,)))(x, starts)


def _merge(draw, x):
    """Merge the first two axes for a layer, or for arithmetic."""
    y = x.reshape(-1, 1)
    layer = draw.pick([lambda: y * draw.weights((1, 2)), lambda: y @ draw.weights((1, 2))])
    y = layer() + draw.weights((2,))
    y = draw.pick([jnp.tanh, lambda y: y])(y)
    return y.reshape(x.shape[0], -1, 2)[:, : max(1, MAX_SIZE // 2 // x.shape[0])]


def _attend(draw, x):
    x = x.reshape(x.shape[0], -1, 1)[:, :5]
    mask = jnp.tri(x.shape[1], dtype=bool)
    scores = jnp.where(mask, x * draw.weights(()) @ jnp.swapaxes(x, 1, 2), -1e9)
    return jax.nn.softmax(scores) @ x


def _normalize(draw, x):
    axis = int(draw.axis(x, later=0.9))
    y = x - jnp.mean(x, axis, keepdims=True)
    return y * lax.rsqrt(jnp.var(x, axis, keepdims=True) + 0.1) * draw.weights(())


def _recur(draw, x):
    """Two carries over an axis, of which one is read by the other."""
    axis = int(draw.axis(x, later=0.9))
    rows, weights = jnp.moveaxis(x, axis, 0), draw.weights((2,))

    def step(carry, row):
        fast, slow = carry
        return (jnp.tanh(fast * weights[0] + row), slow + fast * weights[1]), slow * row

    (fast, slow), out = lax.scan(step, (rows[0], 0 * rows[0]), rows, reverse=draw.flip())
    return draw.pick([fast[None], slow + fast, jnp.moveaxis(out, 0, axis)])


def _remat(draw, x):
    weights = draw.weights((2,))

    def layer(x):
        y = jax.nn.gelu(x * weights[0]) + jax.jit(jnp.square)(x)
        return lax.fori_loop(0, 2, lambda i, y: jnp.tanh(y * weights[1] + i), y)

    return jax.checkpoint(layer)(x)


def _convert(draw, x):
    whole = jnp.asarray(draw.rng.integers(3, size=x.shape[1:]))
    return draw.pick(
        [(x + 1j * x**2).astype(complex).real + x.imag, x * (x > 0), x * whole.astype(float)]
    )


OPERATIONS = (
    *(_reshape, reshape_each, reshape_each, _slice, _dynamic, _gather, _gather_each, _scatter),
    *(_sort, _cumulate, _where, _arithmetic, _arithmetic, _nonlinear, _scan, _cond, _map, _nested),
    *(_custom, _reduce, _product, _product_each, _convolve, _pool, _concatenate, _stack, _flip),
    *(_split, _scatter_each, _scatter_part, _element_each, _dynamic_each, _merge, _attend),
    *(_normalize, _recur, _remat),
    *(_pad, _broadcast, _squeeze, _convert, lambda draw, x: jnp.transpose(x, draw.permutation(x))),
)
