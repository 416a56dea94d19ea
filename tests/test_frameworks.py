"""The recipes of `docs/how_to/in_your_framework.md` against the frameworks' own training steps."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import osgd_jax
from osgd_jax import weightings
from tests.helpers.run_on_eight import run_on_eight

eqx = pytest.importorskip("equinox")
hk = pytest.importorskip("haiku")

_PAGE = (Path(__file__).parents[1] / "docs/how_to/in_your_framework.md").read_text()
_BLOCKS = {
    section.partition("\n")[0]: re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for section in _PAGE.split("\n## ")
}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
BALANCERS = {
    "sum": osgd_jax.aggregate(weightings.sum()),
    "orthogonalize": osgd_jax.orthogonalize(),
    "upgrad": osgd_jax.aggregate(weightings.upgrad()),
}


@pytest.fixture(autouse=True)
def _in_float64(x64):
    """Float64, but for parameters that a framework makes in float32."""


def run(section, balancer="sum"):
    """Run a recipe with another balancer than that of the page, and return its names."""
    namespace = {}
    exec(_BLOCKS["# In your framework"][0], namespace)
    namespace["tx"] = optax.chain(BALANCERS[balancer], OPTIMIZER)
    for block in _BLOCKS[section]:
        exec(block, namespace)
    return namespace


def total(names, outputs):
    return sum(names["losses_of"](outputs, names["y"]))


def plain_steps(loss, params, count=1):
    """Train as before, on the sum of the losses."""
    state = OPTIMIZER.init(params)
    for _ in range(count):
        updates, state = OPTIMIZER.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(actual, expected):
    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=8 * np.finfo(b.dtype).eps)

    jax.tree.map(check, actual, expected)


def test_linen():
    names = run("Flax linen")
    net, x = names["net"], names["x"]
    state = TrainState.create(
        apply_fn=net.apply, params=net.init(jax.random.key(0), x), tx=OPTIMIZER
    )
    for _ in range(2):  # one step by `apply_gradients`, one by the three calls
        grads = jax.grad(lambda p: total(names, net.apply(p, x)))(state.params)
        state = state.apply_gradients(grads=grads)
    assert names["state"].step == state.step
    assert_close(names["state"].params, state.params)


def test_nnx():
    names = run("Flax NNX")
    module = names["Module"](nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, OPTIMIZER, wrt=nnx.Param)
    optimizer.update(module, nnx.grad(lambda m: total(names, m(names["x"])))(module))
    assert_close(nnx.state(names["module"]), nnx.state(module))


def test_equinox():
    names = run("Equinox")
    keys = names["keys"]
    heads = [eqx.nn.Linear(8, 1, key=key) for key in keys[1:]]
    model = names["Model"](eqx.nn.Linear(4, 8, key=keys[0]), heads)
    grads = eqx.filter_grad(lambda model: total(names, jax.vmap(model)(names["x"])))(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, _ = OPTIMIZER.update(grads, OPTIMIZER.init(params), params)
    expected = eqx.apply_updates(model, updates)
    found = names["model"]
    assert found.activation is jnp.tanh
    assert_close(*(eqx.filter(m, eqx.is_inexact_array) for m in (found, expected)))


def test_haiku():
    names = run("Haiku")
    apply, x = names["transformed"].apply, names["x"]
    params = names["transformed"].init(jax.random.key(0), x)
    assert_close(names["params"], plain_steps(lambda p: total(names, apply(p, x)), params))


def test_nested_scans():
    names = run("Reinforcement learning in nested scans")

    def summed(losses):
        def value_and_grads(params, batch):
            return losses(params, batch), jax.grad(lambda p: sum(losses(p, batch)))(params)

        return value_and_grads

    class Plain:
        value_and_task_grads = staticmethod(summed)

    found = names["params"], names["losses"]
    names |= {"osgd_jax": Plain, "tx": optax.with_extra_args_support(OPTIMIZER)}
    train = jax.jit(jax.vmap(lambda key: names["train"](key, names["initial"](key))))
    (params, _), losses = train(names["agents"])
    assert losses.shape == (2, 2, 2, 2, 3)
    assert_close(found, (params, losses))


def test_lookahead():
    names = run("Wrappers that take no losses")
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(names["pair"]))
    assert not np.allclose(names["pair"].fast["w"], 1)


@pytest.mark.parametrize("balancer", ["orthogonalize", "upgrad"])
@pytest.mark.parametrize(
    "section",
    ["Flax linen", "Flax NNX", "Equinox", "Haiku", "Reinforcement learning in nested scans"],
)
def test_other_balancers(section, balancer):
    names = run(section, balancer)
    assert all(jnp.isfinite(loss).all() for loss in jax.tree.leaves(names["losses"]))


def test_pmap_on_several_devices():
    run_on_eight("pmap_steps")


def _from_train_state(tx):
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(3)}, tx=tx)
    return state.apply_gradients(grads={"w": jnp.ones((2, 3))}, losses=jnp.ones(2))


def _from_lookahead(tx):
    tx, params = optax.lookahead(tx, 5, 0.5), optax.LookaheadParams.init_synced(jnp.ones(3))
    return tx.update(jnp.ones((2, 3)), tx.init(params), params)


@pytest.mark.parametrize("update", [_from_train_state, _from_lookahead])
def test_a_wrapper_without_losses_says_where_they_go(update):
    tx = osgd_jax.aggregate(weightings.famo(2))
    with pytest.raises(ValueError, match=r"famo .*TrainState\.apply_gradients.*lookahead"):
        update(tx)
