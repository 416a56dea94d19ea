"""Gramian, weighted sum, cosines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import osgd_jax
from osgd_jax import TaskRows
from osgd_jax._balancing import gramians

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
    (scale,) = jax.jit(gramians.row_scales)(jnp.asarray([value], jnp.float32))
    assert 2.0**-126 <= scale <= 2.0**126
    if 2.0**-126 <= value < np.inf:
        assert 1 <= value / float(scale) < 4


def symmetrized(rows, other_rows):
    return (rows @ other_rows.T + other_rows @ rows.T) / 2


@pytest.mark.parametrize(
    ("num_tasks", "dtype", "other_dtype"),
    [
        (1, "float32", "float32"),
        (3, "bfloat16", "float32"),
        (3, "float64", "float32"),
        (4, "float16", "float16"),
        (7, "float64", "float64"),
    ],
)
def test_gramian_of_two_batches(num_tasks, dtype, other_dtype, x64):
    dense, ragged, jacobian = tree(num_tasks, dtype=dtype)
    other_dense, other_ragged, other_jacobian = tree(num_tasks, seed=1, dtype=other_dtype)
    wide = "float64" in (dtype, other_dtype)
    expected = symmetrized(jacobian, other_jacobian)
    found = [
        jax.jit(osgd_jax.gramian)(*both)
        for both in ((dense, other_dense), (ragged, other_ragged), (ragged, other_dense))
    ]
    for each in found:
        assert each.dtype == (jnp.float64 if wide else jnp.float32)
        np.testing.assert_array_equal(each, each.T)
        np.testing.assert_allclose(each, expected, rtol=0, atol=1e-12 if wide else 2e-5)


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_gramian_of_two_batches_of_long_rows(num_tasks):
    rng = np.random.default_rng(5)
    shapes = [(70_001,), (3, 50_000), (5,), (4, 3)]
    batches = [
        [jnp.asarray(rng.normal(size=(num_tasks, *shape)), jnp.float32) for shape in shapes]
        for _ in range(2)
    ]
    # In the second batch the last array is reached by the last task only.
    batches[1][-1] = batches[1][-1].at[:-1].set(0)
    everything = tuple(range(num_tasks))
    second = osgd_jax.to_task_rows(batches[1], [everything] * 3 + [everything[-1:]])
    rows, other_rows = (
        np.concatenate([np.float64(each).reshape(num_tasks, -1) for each in batch], axis=1)
        for batch in batches
    )
    expected = symmetrized(rows, other_rows)
    norms = np.linalg.norm(rows, axis=1)
    for other in (batches[1], second):
        found = jax.jit(osgd_jax.gramian)(batches[0], other)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * norms.max() ** 2)


@given(st.integers(0, 1000), st.tuples(*[st.integers(-17, 17)] * 6))
def test_gramian_of_two_batches_of_any_scale(seed, exponents):
    factors = np.asarray([10.0**exponent for exponent in exponents], np.float32).reshape(2, 3, 1)
    both = np.random.default_rng(seed).normal(size=(2, 3, 9)).astype(np.float32) * factors
    found = np.float64(gramian_of(*map(jnp.asarray, both)))
    rows, other_rows = both.astype(float)
    norms = [np.linalg.norm(each, axis=1) for each in (rows, other_rows)]
    bounds = np.outer(*norms) + np.outer(*norms).T
    assert (np.abs(found - symmetrized(rows, other_rows)) <= 1e-6 * bounds).all()


def test_derivatives_and_vmap_of_the_gramian_of_two_batches():
    both = np.random.default_rng(3).normal(size=(2, 2, 3, 70_001)).astype(np.float32)
    weights = np.random.default_rng(4).normal(size=(3, 3))

    def summed(rows, others):
        return jnp.sum(weights * osgd_jax.gramian(rows, others))

    found = jax.jit(jax.vmap(jax.grad(summed, (0, 1))))(*both)
    mean = (weights + weights.T) / 2
    for each, other in zip(found, both[::-1], strict=True):
        np.testing.assert_allclose(each, mean @ other.astype(float), rtol=1e-4, atol=1e-4)


def test_two_batches_give_the_gramian_of_the_true_gradients_without_bias():
    """Gradients of a linear regression with two losses, whose true gradients are known."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2, 20))
    batches = truth + 2 * rng.normal(size=(10_000, 2, 1, 20)) + rng.normal(size=(10_000, 2, 2, 20))
    batches = jnp.asarray(batches, jnp.float32)
    unbiased = jax.jit(jax.vmap(osgd_jax.gramian))(batches[:, 0], batches[:, 1])
    biased = jax.jit(jax.vmap(osgd_jax.gramian))(batches[:, 0])
    errors = np.float64(unbiased) - truth @ truth.T
    standard = errors.std(axis=0) / 100
    assert (np.abs(errors.mean(axis=0)) < 4 * standard).all()
    # The noise that both losses share has variance 4 in each of 20 numbers, their own has 1.
    noise = 20 * (4 * np.ones((2, 2)) + np.eye(2))
    np.testing.assert_allclose(np.float64(biased).mean(axis=0), truth @ truth.T + noise, rtol=0.03)


def test_all_pairs_of_several_batches():
    """The recipe of the guide against the mean over all pairs of different batches."""
    rows = np.random.default_rng(6).normal(size=(5, 3, 40))
    grads = jnp.asarray(rows, jnp.float32)
    squares = jax.vmap(osgd_jax.gramian)(grads).sum(axis=0)
    found = (osgd_jax.gramian(grads.sum(axis=0)) - squares) / (5 * 4)
    pairs = [rows[i] @ rows[j].T for i in range(5) for j in range(5) if i != j]
    np.testing.assert_allclose(found, np.mean(pairs, axis=0), atol=1e-4)


def test_the_step_before_is_no_independent_batch():
    """It moved the parameters along its noise, and the loss p²/2 has curvature one."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 20_000)).astype(np.float32)
    rate, start = 0.1, 0.05
    before = start + noise[0]
    after = (start - rate * before) + noise[1]
    found = jax.vmap(osgd_jax.gramian)(before[:, None, None], after[:, None, None])
    expected = (1 - rate) * start**2 - rate
    np.testing.assert_allclose(found.mean(), expected, atol=4 / np.sqrt(20_000))
    assert expected < 0 < start**2


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"w": jnp.ones((2, 3))}, r"others must have the structure of grads.*\['b'\]"),
        ({"w": jnp.ones((2, 4)), "b": jnp.ones(2)}, r"others at \['w'\] must have shape \(2, 3\)"),
        ({"w": jnp.ones((3, 3)), "b": jnp.ones(3)}, r"others at .* got \(3,"),
        (
            osgd_jax.task_grads(lambda p: {"x": p["w"].sum(), "y": p["b"]})(
                {"w": jnp.ones(3), "b": jnp.ones(())}
            ),
            r"of the tasks .*'x', 'y'.*others of .*'p', 'q'",
        ),
    ],
)
def test_others_that_do_not_fit(others, message):
    grads = osgd_jax.task_grads(lambda p: {"p": p["w"].sum(), "q": p["b"]})(
        {"w": jnp.ones(3), "b": jnp.ones(())}
    )
    with pytest.raises(ValueError, match=message):
        osgd_jax.gramian(grads, others)


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
