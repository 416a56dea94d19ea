"""JAX's strict settings: no implicit broadcast or promotion, no NaN or infinity on the way.

`make test-guards` also runs the numerical tests under them.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import osgd_jax
from osgd_jax import weightings
from tests.nets import small_nets
from tests.weightings.catalogue import CATALOGUE

K = 3
REACH = {"bias": (0, 1, 2), "heads": [(0,), (2,)], "late": (1, 2)}
SHAPES = {"bias": (3,), "heads": [(3, 2), ()], "late": (4,)}
PARAMS = jax.tree.map(jnp.ones, SHAPES, is_leaf=lambda node: isinstance(node, tuple))
LOSSES = np.array([0.5, 1.0, 2.0], np.float32)
TASK_NORMS = osgd_jax.clip_task_norms(0.5), osgd_jax.normalize_task_norms()

TRANSFORMATIONS = {
    name: functools.partial(lambda make: osgd_jax.aggregate(make(K), "all", key=0), entry.make)
    for name, entry in CATALOGUE.items()
} | {
    "shared": lambda: osgd_jax.aggregate(weightings.mgda(), "shared"),
    "leaf": lambda: osgd_jax.aggregate(weightings.mgda(), "leaf"),
    "reach": lambda: osgd_jax.aggregate(weightings.mgda(), "reach"),
    "random order": lambda: osgd_jax.orthogonalize("random", key=0),
    "osgd": lambda: osgd_jax.osgd(0.1, momentum=0.9, nesterov=True),
    "graddrop": lambda: osgd_jax.graddrop(0, leak=(0.0, 0.5, 1.0)),
    "moco": lambda: osgd_jax.moco(K),
    "db_mtl": lambda: osgd_jax.db_mtl(K),
    "excess_mtl": lambda: osgd_jax.excess_mtl(K),
    "task norms": lambda: optax.chain(*TASK_NORMS, osgd_jax.orthogonalize()),
    "m_config": lambda: osgd_jax.m_config(0.1, K),
}


@contextlib.contextmanager
def strict_types():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@contextlib.contextmanager
def finite_numbers():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


@functools.cache
def gradients(dtype, dense):
    """Task gradients that conflict."""
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=(K, *p.shape)), dtype), PARAMS)
    grads = osgd_jax.to_task_rows(grads, REACH)
    return osgd_jax.densify(grads) if dense else grads


def two_steps(name, grads):
    tx = TRANSFORMATIONS[name]()
    if name == "m_config":
        grads = jax.tree.map(lambda leaf: leaf[0], osgd_jax.densify(grads))
    dtype = jnp.dtype(jax.tree.leaves(grads)[0].dtype)
    params = jax.tree.map(lambda param: param.astype(dtype), PARAMS)

    def steps(grads, losses):
        state = tx.init(params)
        for task in range(2):
            extra = {"task": task} if name == "m_config" else {"losses": losses}
            if name in ("modo", "sdmgrad"):
                extra["others"] = grads
            updates, state = tx.update(grads, state, params, **extra)
        return updates

    return steps, grads


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_no_broadcast_or_promotion_is_left_to_jax(name):
    for dtype in (jnp.float32, jnp.bfloat16):
        steps, grads = two_steps(name, gradients(dtype, dense=dtype == jnp.bfloat16))
        with strict_types():
            updates = jax.eval_shape(steps, grads, LOSSES)
        assert updates["bias"].dtype == dtype or name == "m_config"
    # States are then wider than gradients.
    steps, grads = two_steps(name, gradients(jnp.float32, dense=False))
    with jax.enable_x64(True), strict_types():
        jax.eval_shape(steps, grads, LOSSES)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_nothing_on_the_way_is_nan_or_infinite(name):
    # Outside of `jit`, where the result of each operation is looked at.
    dense = name in ("shared", "reach", "moco", "db_mtl", "excess_mtl", "graddrop")
    steps, grads = two_steps(name, gradients(jnp.float32, dense))
    with finite_numbers():
        updates = steps(grads, LOSSES)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


FUNCTIONS = {
    "gramian": osgd_jax.gramian,
    "cosines": lambda grads: osgd_jax.task_cosines(osgd_jax.gramian(grads)),
    "combine": lambda grads: osgd_jax.combine(grads, jnp.arange(K)),
    "norms": osgd_jax.task_norms,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_functions_of_task_gradients(name, dtype):
    grads = gradients(dtype, dense=False)
    with strict_types(), finite_numbers():
        FUNCTIONS[name](grads)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("family", small_nets.FAMILIES)
def test_nets(family, dtype):
    with strict_types():
        net = small_nets.build(family, 2, param_dtype=dtype)
        graphdef, state = nnx.split(net)
        logits = jax.eval_shape(
            lambda state, x: nnx.merge(graphdef, state)(x),
            state,
            small_nets.example_for(family),
        )
    assert len(logits) == 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_serving(dtype):
    with strict_types(), finite_numbers():
        net = small_nets.build("branched", 2, param_dtype=dtype)
        net.eval()
        predictor = osgd_jax.AnytimePredictor(net)
        assert predictor.predict(small_nets.example(2), confidence=0.5).logits.shape == (2, 3)
        net = small_nets.build("branched-transformer", 1, param_dtype=dtype)
        generator = osgd_jax.AnytimeGenerator(net, max_length=8)
        generator.generate(np.array([0, 1, 2]), 2, confidence=0.5)


def test_a_training_step():
    rng = np.random.default_rng(0)
    params = {"trunk": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.zeros(3)}
    x = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)

    def losses(params):
        hidden = jnp.tanh(x @ params["trunk"] + params["b"][None])
        return tuple(jnp.mean(jnp.square(hidden - target)) for target in (0.0, 0.5))

    def eight(params):
        return jnp.mean(jnp.square(jnp.tanh(x @ params["trunk"] + params["b"][None])), axis=1)

    for of in (losses, eight):
        with strict_types(), finite_numbers():
            values, grads = osgd_jax.value_and_task_grads(of)(params)
            tx = osgd_jax.osgd(0.1, momentum=0.9)
            updates, _ = tx.update(grads, tx.init(params), params, losses=values)
            optax.apply_updates(params, updates)
