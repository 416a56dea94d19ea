"""Norms of task gradients; clipping and normalising them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import osgd_jax


def task_gradients(scales=(1.0, 1.0, 1.0), seed=0):
    rng = np.random.default_rng(seed)
    column = np.asarray(scales)[:, None]
    dense = {
        "a": (rng.normal(size=(3, 6)) * column).astype(np.float32),
        "b": (rng.normal(size=(3, 4)) * column * [[0], [1], [1]]).astype(np.float32),
    }
    dense = jax.tree.map(jnp.asarray, dense)
    ragged = osgd_jax.to_task_rows(dense, {"a": (0, 1, 2), "b": (1, 2)})
    norms = np.linalg.norm(
        np.concatenate([np.asarray(leaf, float) for leaf in dense.values()], axis=1), axis=1
    )
    return dense, ragged, norms


@given(st.tuples(*[st.integers(-30, 30)] * 3))
def test_norms_at_any_scale(exponents):
    dense, ragged, norms = task_gradients([10.0**exponent for exponent in exponents])
    np.testing.assert_allclose(osgd_jax.task_norms(dense), norms, rtol=1e-5)
    np.testing.assert_allclose(osgd_jax.task_norms(ragged), norms, rtol=1e-5)


def test_clip_scales_down_the_long_ones_only():
    dense, ragged, norms = task_gradients([0.1, 1.0, 100.0])
    limit = float(norms[1])
    tx = osgd_jax.clip_task_norms(limit * 1.001)
    for form in (dense, ragged):
        clipped, _ = tx.update(form, tx.init(None))
        assert jax.tree.structure(clipped) == jax.tree.structure(form)
        np.testing.assert_allclose(
            osgd_jax.task_norms(clipped), [norms[0], norms[1], limit * 1.001], rtol=1e-5
        )
        np.testing.assert_array_equal(osgd_jax.densify(clipped)["a"][:2], dense["a"][:2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_normalize(dtype):
    dense, ragged, _ = task_gradients([0.1, 1.0, 100.0])
    cast = lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)  # noqa: E731
    tx = osgd_jax.normalize_task_norms()
    for form in (cast(dense), cast(ragged)):
        normal, _ = tx.update(form, tx.init(None))
        np.testing.assert_allclose(osgd_jax.task_norms(normal), [1, 1, 1], rtol=5e-3)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(normal))


def test_a_zero_gradient_stays_zero_and_nan_stays_nan():
    rows = jnp.asarray([[0.0, 0.0], [jnp.nan, 1.0], [3.0, 4.0]])
    for tx in (osgd_jax.normalize_task_norms(), osgd_jax.clip_task_norms(1.0)):
        scaled, _ = tx.update(rows, tx.init(None))
        np.testing.assert_array_equal(scaled[0], [0, 0])
        assert np.isnan(scaled[1, 0])
        np.testing.assert_allclose(scaled[2], [0.6, 0.8], rtol=1e-6)


def test_before_orthogonalize_in_a_chain():
    dense, ragged, norms = task_gradients([0.1, 1.0, 100.0])
    tx = optax.chain(
        osgd_jax.normalize_task_norms(), osgd_jax.orthogonalize(scope="all"), optax.sgd(1.0)
    )
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), dense)
    by_hand = jax.tree.map(lambda leaf: leaf / norms[:, None], dense)
    inner = osgd_jax.orthogonalize(scope="all")
    expected, _ = inner.update(by_hand, inner.init(params))
    for form in (dense, ragged):
        updates, _ = jax.jit(tx.update)(form, tx.init(params), params)
        jax.tree.map(lambda u, e: np.testing.assert_allclose(u, -e, atol=1e-5), updates, expected)
    assert tx.update({}, tx.init({}), {})[0] == {}
