"""Equations are split only where a rule understands all their parameters; each mode agrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import osgd_jax
from osgd_jax._gradients import nested, programs

RULES = [*nested.RULES.items(), *programs.RULES.items()]
rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape))


def assert_as_jacrev(losses, *args, transform=lambda fun: fun, **kwargs):
    actual = transform(lambda *args: osgd_jax.densify(osgd_jax.task_grads(losses)(*args)))(*args)
    expected = transform(jax.jacrev(lambda *args: jnp.stack(losses(*args)).reshape(-1)))(*args)
    kwargs = {"rtol": 1e-5, "atol": 1e-5, **kwargs}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **kwargs), actual, expected)


# ---------------------------------------------------------------------------------------------
# Parameters of equations
# ---------------------------------------------------------------------------------------------


def columns_first(K):
    x, weights = normal(K, 2, 3), normal(6)
    return lambda p: jax.vmap(lambda x: jnp.sum(jnp.ravel(p * x, order="F") * weights))(x)


def reshaped_by_columns(K):
    x = normal(K, 2, 3)
    return lambda p: jnp.sum(jax.vmap(lambda x: jnp.reshape(p * x, (3, 2), order="F"))(x)[:, 0], 1)


def transposed_square(K):
    x, weights = normal(K, K, 2, 3), normal(K, K)

    def losses(p):
        y = jnp.sum(x * p, axis=(2, 3))
        return jnp.sum(lax.reshape(y, (K, K), dimensions=(1, 0)) * weights, axis=1)

    return losses


def read_whole_and_by_slice(K):
    square = normal(K, K)

    def losses(p):
        y = jnp.sin(square * p[0, 0])
        return jnp.sum((square * p[1, 1] * y) @ y, axis=1)

    return losses


def repeated_along_the_first_axis(K):
    x = normal(K, 3)
    return lambda p: jnp.sum(x * p[:1] - jnp.sin(p[1:] * p[:1]), axis=1)


def grouped_convolution(K):
    images, weights = normal(K, 2, 6), normal(2, 5)

    def losses(p):
        maps = lax.conv_general_dilated(
            images, p[:, None], (1,), [(2, 1)], rhs_dilation=(2,), feature_group_count=2
        )
        return jnp.sum(maps * weights, axis=(1, 2))

    return losses


PROGRAMS = [
    columns_first,
    reshaped_by_columns,
    transposed_square,
    read_whole_and_by_slice,
    repeated_along_the_first_axis,
    grouped_convolution,
]


@pytest.mark.parametrize("K", [1, 2, 9])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_parameters_of_equations_are_kept(program, K):
    assert_as_jacrev(program(K), normal(2, 3), transform=jax.jit)


@pytest.mark.parametrize(("name", "rule"), RULES)
def test_an_unknown_parameter_leaves_an_equation_whole(name, rule):
    known = dict.fromkeys(rule.known) | dict(rule.required)
    assert rule.understands(known)
    assert not rule.understands(known | {"a_parameter_of_a_later_jax": None})
    for required in rule.required:
        assert not rule.understands(known | {required: "something else"})


def test_rules_know_all_parameters_of_this_jax():
    # Otherwise gradients are right, but expensive.
    x, kernel, images = normal(9, 4), normal(4, 4), normal(9, 2, 4)

    def program(x):
        y = jnp.reshape(-x * x / 2 + x - 1, (9, 2, 2)).astype(jnp.bfloat16)
        y = jnp.where(x > 0, lax.reduce_precision(x, 5, 7), lax.stop_gradient(x)) + jnp.sum(y)
        y = jnp.concatenate([x, y], axis=1)[:, :4] @ kernel + jnp.sum(x[:, :, None], 2)
        z = lax.conv_general_dilated(images * y[:, None], images[:2], (1,), "SAME")
        z = lax.reduce_window(z, 0.0, lax.add, (1, 1, 2), (1, 1, 2), "VALID")
        z = jnp.take_along_axis(z, jnp.zeros((9, 1, 1), int), axis=1)
        y = jnp.flip(jnp.cumsum(y, axis=1), 1).at[:, 0].set(jnp.max(jnp.exp(y), axis=1))
        y = jnp.pad(jnp.hstack(jnp.split(y, 2, axis=1)), ((0, 0), (0, 1)))
        y = lax.dynamic_update_slice(y, lax.dynamic_slice(y, (0, 1), (9, 2)), (0, 0))
        y = jax.checkpoint(jax.jit(lambda y: jnp.tanh(y) ** 3))(y)
        y = lax.cond(y[0, 0] > 0, jnp.sin, jnp.cos, y)
        _, y = lax.scan(lambda carry, row: (carry + row, carry * row), y[0], y)
        return jnp.concatenate([jnp.squeeze(jnp.transpose(z, (0, 2, 1)), 2), y[:, :2]])

    def equations(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for value in jax.tree.leaves(equation.params):
                yield from equations(value) if hasattr(value, "eqns") else ()
                yield from equations(value.jaxpr) if hasattr(value, "jaxpr") else ()

    rules = nested.RULES
    covered = [e for e in equations(jax.make_jaxpr(program)(x).jaxpr) if e.primitive.name in rules]
    assert len({equation.primitive.name for equation in covered}) >= 35
    for equation in covered:
        assert rules[equation.primitive.name].understands(equation.params), equation


# ---------------------------------------------------------------------------------------------
# Modes of execution
# ---------------------------------------------------------------------------------------------


@jax.custom_vjp
def half_by_vjp(x):
    return jnp.sin(x)


half_by_vjp.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (0.5 * ct * jnp.cos(x),))


@jax.custom_jvp
def half_by_jvp(x):
    return jnp.sin(x)


half_by_jvp.defjvp(lambda x, t: (jnp.sin(*x), 0.5 * t[0] * jnp.cos(*x)))


def scanned(fun):
    return lambda p: lax.scan(lambda carry, p: (carry, fun(p)), 0, p[None])[1][0]


def gradient(fun):
    return jax.grad(lambda p: jnp.sum(jnp.sin(fun(p))))


MODES = {
    "eager": lambda fun: fun,
    "jit": jax.jit,
    "vmap": lambda fun: lambda p: jax.vmap(fun)(jnp.stack([p, 2 * p])),
    "scan": scanned,
    "grad": gradient,
    "jvp": lambda fun: lambda p: jax.jvp(fun, (p,), (jnp.cos(p),)),
    "checkpoint": jax.checkpoint,
    "grad of vmap of checkpoint": lambda fun: gradient(
        lambda p: jax.vmap(jax.checkpoint(fun))(jnp.stack([p, 2 * p]))
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("half", [half_by_vjp, half_by_jvp], ids=["custom_vjp", "custom_jvp"])
def test_modes_of_execution(half, mode):
    for K in (1, 2, 7, 8, 12):
        x = normal(K, 3)

        def losses(p, x=x):
            return jnp.sum(x * half(x @ p), axis=1)

        assert_as_jacrev(losses, normal(3, 3), transform=MODES[mode])


# ---------------------------------------------------------------------------------------------
# JAX's strict settings
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_debug_nans", True),
        ("jax_debug_infs", True),
    ],
)
def test_strict_settings(setting, value):
    x = normal(9, 3)
    params = {"wide": normal(3, 3), "narrow": jnp.ones((1, 3), jnp.bfloat16)}

    def each(p):
        return jnp.sum(jnp.tanh(x @ p["wide"]) * p["narrow"].astype(x.dtype), axis=1)

    before = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        for losses in (each, lambda p: tuple(each(p)[:3]), lambda p: jnp.stack([*each(p)[:2]])):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(
                    a.astype(jnp.float32), b.astype(jnp.float32), rtol=0.02, atol=0.02
                ),
                osgd_jax.densify(osgd_jax.task_grads(losses)(params)),
                jax.jacrev(lambda p, losses=losses: jnp.stack(list(losses(p))))(params),
            )
    finally:
        jax.config.update(setting, before)


def test_a_float16_loss_beside_a_gradient_beyond_its_range():
    # Their order of execution compares numbers, none of which may become infinite.
    def losses(p):
        return p["a"].astype(jnp.float16) ** 2, 1e30 * p["b"] * p["a"]

    params = {"a": jnp.float32(2), "b": jnp.float32(1)}
    rows = osgd_jax.task_grads(losses)(params)["a"].rows
    np.testing.assert_allclose(rows, [4, 1e30], rtol=1e-3)
