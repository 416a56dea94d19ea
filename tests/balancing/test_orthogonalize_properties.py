"""Orthogonalization: properties that hold for all gradients, and what is not finite."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import osgd_jax
from tests.helpers import reference

pytestmark = pytest.mark.numerical

# ---------------------------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
exponents = st.integers(-18, 18)


def random_rows(seed: int, num_tasks: int = 3, size: int = 7, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_tasks, size)).astype(dtype)


@functools.cache
def _update(order, scope):
    tx = osgd_jax.orthogonalize(order, scope)
    return jax.jit(lambda grads: tx.update(grads, tx.init(None))[0])


def direction(rows: np.ndarray, order="first_to_last", scope="all") -> np.ndarray:
    return np.asarray(_update(order, scope)(jnp.asarray(rows)))


@functools.cache
def _weights(num_tasks: int):
    weighting = osgd_jax.weightings.orthogonal()

    def weights(rows):
        gramian = osgd_jax.gramian(rows)
        leading = [
            weighting.weigh(gramian[:i, :i], weighting.init())[0] for i in range(1, num_tasks + 1)
        ]
        return jnp.stack([jnp.pad(w, (0, num_tasks - len(w))) for w in leading])

    return jax.jit(weights)


def orthogonal_rows(rows: np.ndarray) -> np.ndarray:
    """The u_i: how the direction changes when a task is added."""
    weights = np.asarray(_weights(len(rows))(jnp.asarray(rows)), np.float64)
    return np.diff(weights, axis=0, prepend=0) @ rows.astype(np.float64)


def assert_orthogonal_to_earlier(orthogonal, rows, tolerance):
    for i, j in itertools.combinations(range(len(rows)), 2):
        norms = np.linalg.norm(orthogonal[j]) * np.linalg.norm(rows[i].astype(float))
        assert abs(orthogonal[j] @ rows[i]) <= tolerance * norms, (i, j)


@given(seeds)
def test_each_row_is_orthogonal_to_the_earlier_gradients(seed):
    rows = random_rows(seed, 4, 40)
    orthogonal = orthogonal_rows(rows)
    assert_orthogonal_to_earlier(orthogonal, rows, 1e-5)
    np.testing.assert_allclose(
        orthogonal, reference.gram_schmidt(rows, range(4)), atol=1e-4 * np.abs(rows).max()
    )
    np.testing.assert_allclose(direction(rows), orthogonal.sum(axis=0), atol=1e-4)


@given(seeds)
def test_the_direction_agrees_with_the_first_gradient(seed):
    # <sum u_i, g_1> = <g_1, g_1>, whatever the later rows are.
    rows = random_rows(seed, 4, 40)
    np.testing.assert_allclose(direction(rows) @ rows[0], rows[0] @ rows[0], rtol=1e-4)


@given(seeds, st.integers(-37, 37))
def test_one_task_is_the_identity(seed, exponent):
    rows = random_rows(seed, 1) * np.float32(10.0**exponent)
    # Some processors flush subnormal elements to zero.
    np.testing.assert_allclose(direction(rows), rows[0], rtol=0, atol=np.finfo(np.float32).tiny)


@given(seeds, st.sampled_from([(0, 0, 1), (0, 1, 0), (0, 1, 1)]))
def test_equal_rows_count_once(seed, indices):
    rows = random_rows(seed, 2)
    np.testing.assert_allclose(direction(rows[list(indices)]), direction(rows), atol=1e-5)


@given(seeds, st.sampled_from([-3.0, -1.0, 1e-3, 0.5, 7.0, 1e6]))
def test_parallel_rows_count_once(seed, factor):
    rows = random_rows(seed, 2)
    three = np.stack([rows[0], np.float32(factor) * rows[0], rows[1]])
    np.testing.assert_allclose(direction(three), direction(rows), atol=1e-5)


@given(seeds)
def test_orthogonal_rows_give_the_sum(seed):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(7, 3)))[0].T
    rows = (basis * rng.uniform(0.1, 10, size=(3, 1))).astype(np.float32)
    np.testing.assert_allclose(direction(rows), rows.sum(axis=0), atol=2e-5)


@given(seeds, st.sampled_from(["all", "shared"]))
def test_permuting_the_parameters_changes_nothing(seed, scope):
    rows = random_rows(seed)
    permutation = np.random.default_rng(seed).permutation(7)
    np.testing.assert_allclose(
        direction(rows[:, permutation], scope=scope), direction(rows)[permutation], atol=1e-5
    )


@given(seeds)
def test_splitting_a_parameter_array_changes_nothing(seed):
    rows = random_rows(seed)
    parts = _update("first_to_last", "shared")([jnp.asarray(rows[:, :2]), jnp.asarray(rows[:, 2:])])
    np.testing.assert_allclose(np.concatenate(parts), direction(rows), atol=1e-5)


@given(seeds, exponents, st.sampled_from(["all", "shared", "leaf", "reach"]))
def test_scaling_all_losses_scales_the_update(seed, exponent, scope):
    rows = random_rows(seed)
    factor = np.float32(10.0**exponent)
    expected = direction(rows).astype(float) * float(factor)
    scaled = direction(rows * factor, scope=scope)
    np.testing.assert_allclose(scaled, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@given(seeds, st.integers(-60, 60))
def test_scaling_by_a_power_of_two_is_exact(seed, exponent):
    rows = random_rows(seed)
    factor = np.float32(2.0**exponent)
    np.testing.assert_array_equal(direction(rows * factor), direction(rows) * factor)


@given(seeds, st.tuples(exponents, exponents, exponents))
def test_rows_of_very_different_scale(seed, scales):
    factors = np.asarray([10.0**exponent for exponent in scales], np.float32)
    rows = random_rows(seed, 3, 40) * factors[:, None]
    expected = reference.gram_schmidt(rows, range(3))
    # To rounding of the largest of the rows that are added up.
    np.testing.assert_allclose(
        direction(rows), expected.sum(axis=0), atol=1e-5 * np.abs(rows).max(), rtol=0
    )


@given(seeds, exponents, exponents)
def test_small_first_row_still_takes_its_part_of_a_large_second(seed, small, large):
    rows = random_rows(seed, 2) * np.float32([[10.0**small], [10.0**large]])
    update = direction(rows).astype(float)
    unit = rows[0].astype(float) / np.linalg.norm(rows[0].astype(float))
    expected = np.linalg.norm(rows[0].astype(float))
    assert abs(update @ unit - expected) <= 1e-5 * np.abs(rows.astype(float)).max()


@given(seeds, st.integers(0, 2))
def test_a_zero_row_is_as_if_it_were_not_there(seed, position):
    rows = random_rows(seed, 2)
    three = np.insert(rows, position, 0, axis=0)
    np.testing.assert_allclose(direction(three), direction(rows), atol=1e-6)


@pytest.mark.parametrize("scope", ["shared", "all", "leaf", "reach"])
def test_all_rows_zero(scope):
    np.testing.assert_array_equal(direction(np.zeros((3, 7), np.float32), scope=scope), np.zeros(7))


@given(seeds)
def test_more_tasks_than_parameters(seed):
    rows = random_rows(seed, 6, 3)
    update = direction(rows)
    assert np.all(np.isfinite(update))
    # The first three rows span everything, so that the others add nothing.
    expected = reference.gram_schmidt(rows, range(6), tolerance=1e-6).sum(axis=0)
    orthogonality = np.abs(np.linalg.det(rows[:3] / np.linalg.norm(rows[:3], axis=1)[:, None]))
    if orthogonality > 0.1:
        np.testing.assert_allclose(update, expected, atol=1e-3 * np.abs(rows).max())


@given(seeds, st.floats(-5, -1), st.integers(2, 3))
def test_nearly_parallel_rows_are_skipped_or_orthogonal(seed, exponent, num_tasks):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=200)
    other = rng.normal(size=200)
    other -= other @ first / (first @ first) * first
    other *= np.linalg.norm(first) / np.linalg.norm(other)
    angle = 10.0**exponent
    rows = [first, np.cos(angle) * first + np.sin(angle) * other, rng.normal(size=200)]
    rows = np.asarray(rows, np.float32)[:num_tasks]
    orthogonal = orthogonal_rows(rows)
    assert np.all(np.isfinite(orthogonal))
    # A skipped row is zero up to the rounding of the weights it is taken from.
    skipped = np.linalg.norm(orthogonal[1]) <= 1e-6 * np.linalg.norm(rows[1])
    assert not skipped or angle < 2e-3
    if not skipped:
        assert_orthogonal_to_earlier(orthogonal[:2], rows[:2], 1e-3)
    for j in range(num_tasks - 1):
        if num_tasks == 3 and not (j == 1 and skipped):
            norms = np.linalg.norm(orthogonal[2]) * np.linalg.norm(rows[j])
            assert abs(orthogonal[2] @ rows[j].astype(float)) <= 1e-3 * norms


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_what_is_skipped_is_skipped_whole(num_tasks):
    # At an angle of 3e-4 the orthogonal part is 9e-8 of the row, in squared norm: below 1e-6.
    rows = np.asarray([[1, 0, 0], [1, 3e-4, 0], [0, 1, 1]], np.float32)[:num_tasks]
    expected = [[1, 0, 0], [1, 1, 1]][num_tasks - 2]
    np.testing.assert_allclose(direction(rows), expected, atol=1e-6)


@pytest.mark.usefixtures("not_finite")
def test_weights_show_what_is_not_finite():
    weighting = osgd_jax.weightings.orthogonal()
    weights, _ = weighting.weigh(jnp.asarray([[jnp.nan, 0.5], [0.5, 1.0]]), weighting.init())
    assert np.isnan(weights[0])


# ---------------------------------------------------------------------------------------------
# What is not finite, and what is at the edge of it
# ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("not_finite")
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("task", [0, 2])
@pytest.mark.parametrize("scope", ["shared", "all"])
def test_not_finite_in_gives_nan_in_every_array_of_the_group(bad, task, scope):
    rows = random_rows(0)
    broken = rows.copy()
    broken[task, 2] = bad
    grads = {"a": jnp.asarray(broken), "b": jnp.asarray(rows)}
    updates = _update("first_to_last", scope)(grads)
    assert np.all(np.isnan(updates["a"]))
    assert np.all(np.isnan(updates["b"]))
    reach = {"a": (0, 1, 2), "b": tuple({0, 1, 2} - {task})}
    updates = _update("first_to_last", scope)(osgd_jax.to_task_rows(grads, reach))
    assert np.all(np.isnan(updates["b"]))


@pytest.mark.usefixtures("not_finite")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_stays_in_its_group(bad):
    rows = jnp.asarray(random_rows(0))
    grads = {"a": rows.at[1, 2].set(bad), "b": rows}
    updates = _update("first_to_last", "leaf")(grads)
    assert np.all(np.isnan(updates["a"]))
    np.testing.assert_allclose(updates["b"], direction(rows), rtol=1e-6)


@pytest.mark.usefixtures("not_finite")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["dense", "ragged"])
def test_private_arrays_show_their_own_values(bad, form):
    rows = jnp.asarray(random_rows(0))
    head = jnp.zeros((3, 2)).at[1].set(jnp.asarray([bad, 5.0]))
    grads = {"stem": rows, "head": head}
    if form == "ragged":
        grads = osgd_jax.to_task_rows(grads, {"stem": (0, 1, 2), "head": (1,)})
    updates = _update("first_to_last", "shared")(grads)
    np.testing.assert_array_equal(updates["head"], head[1])
    np.testing.assert_allclose(updates["stem"], direction(rows), rtol=1e-6)


EXTREMES = [0, 1e-45, 1e-42, 1.2e-38, 1e-30, 1e-18, 1, 1e18, 1e30, 1e37, 1.7e38, 3.4e38]


@pytest.mark.usefixtures("not_finite")
@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "eager"])
def test_no_finite_gradient_gives_nan_or_infinity(jitted):
    rng = np.random.default_rng(0)
    tx = osgd_jax.orthogonalize(scope="all")

    def update(rows):
        return tx.update(rows, tx.init(None))[0]

    updates = jax.vmap(update)
    rows = rng.choice(EXTREMES, size=(4000, 3, 1)) * rng.uniform(-1, 1, size=(4000, 3, 4))
    rows = rows.astype(np.float32)
    assert np.all(np.isfinite(rows))
    out = np.asarray((jax.jit(updates) if jitted else updates)(jnp.asarray(rows)))
    bad = ~np.isfinite(out).all(axis=1)
    assert not bad.any(), (rows[bad][:3], out[bad][:3])


def test_the_extremes_are_right_where_they_can_be():
    # The larger of two rows is not lost because the smaller is at the other end of the range.
    rows = np.asarray([[1e-37, 0], [1e37, 2e37]], np.float32)
    np.testing.assert_allclose(direction(rows)[1], 2e37, rtol=1e-5)
    rows = np.asarray([[3e38, 0], [0, 2e38]], np.float32)
    assert np.all(direction(rows) > 1e38)
    # Two million times the largest float32 in the squared norm.
    rows = np.full((1, 4096), 3e38, np.float32)
    np.testing.assert_array_equal(direction(rows), rows[0])


def test_subnormal_gradients_count_as_zero():
    rows = np.asarray([[1e-42, 0], [1, 2]], np.float32)
    np.testing.assert_array_equal(direction(rows), rows[1])
