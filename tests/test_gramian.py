"""Gramian, weighted sum, cosines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import osgd_jax
from osgd_jax import TaskRows, _gramian

pytestmark = pytest.mark.numerical


def tree(num_tasks: int, seed: int = 0, dtype="float32"):
    """Dense and ragged task gradients, and the Jacobian `[K, P]` in the order of the leaves."""
    rng = np.random.default_rng(seed)
    reach = {"a": tuple(range(num_tasks)), "b": tuple(range(1, num_tasks)), "c": (0,), "d": ()}
    shapes = {"a": (3, 2), "b": (), "c": (4,), "d": (2,)}
    dense = {}
    for name, tasks in reach.items():
        rows = rng.normal(size=(num_tasks, *shapes[name]))
        rows[[task for task in range(num_tasks) if task not in tasks]] = 0
        dense[name] = jnp.asarray(rows, dtype)
    jacobian = np.concatenate(
        [np.asarray(dense[name], np.float64).reshape(num_tasks, -1) for name in "abcd"], axis=1
    )
    return dense, osgd_jax.to_task_rows(dense, reach), jacobian


@pytest.mark.parametrize(
    ("num_tasks", "dtype"),
    [
        (1, "float32"),
        (2, "float16"),
        (3, "bfloat16"),
        (4, "float64"),
        (5, "float32"),
        (7, "float64"),
    ],
)
def test_gramian_and_combine(num_tasks, dtype, x64):
    dense, ragged, jacobian = tree(num_tasks, dtype=dtype)
    weights = np.random.default_rng(1).normal(size=num_tasks)
    wide = dtype == "float64"
    for form in (dense, ragged):
        gramian = jax.jit(osgd_jax.gramian)(form)
        assert gramian.dtype == (jnp.float64 if wide else jnp.float32)
        np.testing.assert_allclose(
            gramian, jacobian @ jacobian.T, rtol=0, atol=1e-12 if wide else 2e-5
        )
        combined = jax.jit(osgd_jax.combine)(form, jnp.asarray(weights, gramian.dtype))
        flat = np.concatenate([np.asarray(combined[name], float).ravel() for name in "abcd"])
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(combined))
        assert combined["d"].shape == (2,)
        tolerance = {"bfloat16": 3e-2, "float16": 3e-3, "float32": 1e-5, "float64": 1e-12}[dtype]
        np.testing.assert_allclose(flat, weights @ jacobian, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("num_tasks", "dtype"),
    [(1, "float32"), (2, "float32"), (3, "bfloat16"), (4, "float32"), (5, "float32")],
)
def test_gramian_of_arrays_that_are_cut_and_of_arrays_that_are_put_together(num_tasks, dtype):
    rng = np.random.default_rng(2)
    shapes = [(70_001,), (3, 50_000), (5,), (), (4, 3)]
    late = tuple(range(num_tasks // 2, num_tasks))
    rows = [jnp.asarray(rng.normal(size=(num_tasks, *shape)), dtype) for shape in shapes]
    # The first array and the last are of the last tasks only.
    dense = [rows[0].at[: late[0]].set(0), *rows[1:-1], rows[-1].at[: late[0]].set(0)]
    everything = tuple(range(num_tasks))
    ragged = osgd_jax.to_task_rows(dense, [late, everything, everything, everything, late])
    jacobian = np.concatenate(
        [np.asarray(each, np.float64).reshape(num_tasks, -1) for each in dense], axis=1
    )
    expected = jacobian @ jacobian.T
    # The sums of numbers of few bits err to one side, by far less than their last bit.
    atol = {"float32": 5e-7, "bfloat16": 6e-6}[dtype] * expected.max()
    for form in (dense, ragged):
        found = jax.jit(osgd_jax.gramian)(form)
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("size", [2**16, 70_001])
def test_derivatives_and_vmap_of_the_gramian_of_long_rows(size):
    rows, changes = np.random.default_rng(3).normal(size=(2, 2, 3, size)).astype(np.float32)
    weights = np.random.default_rng(4).normal(size=(3, 3))

    def summed(rows):
        return jnp.sum(weights * osgd_jax.gramian(rows))

    found = jax.jit(jax.vmap(jax.grad(summed)))(rows)
    both = weights + weights.T
    np.testing.assert_allclose(found, both @ rows.astype(float), rtol=1e-4, atol=1e-4)
    _, second = jax.jit(lambda rows, changes: jax.jvp(jax.grad(summed), (rows,), (changes,)))(
        rows[0], changes[0]
    )
    np.testing.assert_allclose(second, both @ changes[0].astype(float), rtol=1e-4, atol=1e-4)


def test_no_number_of_the_gramian_is_scattered():
    _, ragged, _ = tree(3)
    tx = osgd_jax.orthogonalize(scope="all")
    lowered = jax.jit(tx.update).lower(ragged, tx.init(None))
    assert "scatter" not in lowered.as_text()


gramian_of = jax.jit(osgd_jax.gramian)
cosines_of = jax.jit(osgd_jax.task_cosines)


@given(st.integers(0, 1000), st.tuples(*[st.integers(-17, 17)] * 3))
def test_gramian_of_rows_of_any_scale(seed, exponents):
    factors = np.asarray([10.0**exponent for exponent in exponents], np.float32)
    rows = np.random.default_rng(seed).normal(size=(3, 9)).astype(np.float32) * factors[:, None]
    gramian = np.asarray(gramian_of(jnp.asarray(rows)), float)
    norms = np.linalg.norm(rows.astype(float), axis=1)
    expected = rows.astype(float) @ rows.astype(float).T
    np.testing.assert_allclose(
        gramian / np.outer(norms, norms), expected / np.outer(norms, norms), atol=1e-5
    )
    cosines = np.asarray(cosines_of(jnp.asarray(gramian, jnp.float32)))
    np.testing.assert_allclose(cosines, expected / np.outer(norms, norms), atol=1e-5)


@pytest.mark.parametrize("value", [0, 1e-45, 1e-39, 1.2e-38, 1, 1.7e38, 3.4e38, np.inf, np.nan])
def test_scales_can_be_divided_by(value):
    # Neither a scale nor its reciprocal may be subnormal, since both can be flushed to zero.
    (scale,) = jax.jit(_gramian.row_scales)(jnp.asarray([value], jnp.float32))
    assert 2.0**-126 <= scale <= 2.0**126
    if 2.0**-126 <= value < np.inf:
        assert 1 <= value / float(scale) < 4


def test_half_precision_is_summed_in_float32():
    # 4096 ones: in float16 the sum of squares would stop at 2048.
    gramian = osgd_jax.gramian({"w": jnp.ones((2, 4096), jnp.float16)})
    np.testing.assert_array_equal(gramian, np.full((2, 2), 4096))


def test_cosines_with_a_zero_row():
    gramian = osgd_jax.gramian(jnp.asarray([[3.0, 0.0], [0.0, 0.0], [4.0, 4.0]]))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        osgd_jax.task_cosines(gramian), [[1, 0, half], [0, 0, 0], [half, 0, 1]], atol=1e-6
    )


@pytest.mark.usefixtures("not_finite")
def test_gramian_shows_what_is_not_finite():
    gramian = osgd_jax.gramian(jnp.asarray([[jnp.nan, 0.0], [1.0, 2.0]]))
    assert np.all(np.isnan(gramian[0]))
    assert gramian[1, 1] == 5


def test_dense_and_ragged_leaves_together():
    dense, ragged, jacobian = tree(3)
    mixed = {"a": dense["a"], "b": ragged["b"], "c": ragged["c"], "d": dense["d"]}
    np.testing.assert_allclose(osgd_jax.gramian(mixed), jacobian @ jacobian.T, atol=1e-5)
    tx = osgd_jax.orthogonalize(scope="all")
    updates, _ = jax.jit(tx.update)(mixed, tx.init(None))
    expected, _ = jax.jit(tx.update)(dense, tx.init(None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), updates, expected)


def test_combine_of_a_parameter_without_rows_is_zero():
    rows = TaskRows(jnp.zeros((0, 2, 3), jnp.bfloat16), (), 2)
    combined = osgd_jax.combine({"w": rows}, jnp.ones(2))
    assert combined["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(combined["w"], np.zeros((2, 3)))
