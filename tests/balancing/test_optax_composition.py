"""With optax and Flax: what the documentation says composes, line by line."""

import functools
import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import osgd_jax

rng = np.random.default_rng(0)
PARAMS = jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    {"stem": (3, 4), "middle": (4, 4), "heads": [(4,), (4,)]},
    is_leaf=lambda node: isinstance(node, tuple),
)
INPUTS = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
TARGETS = jnp.asarray(rng.normal(size=8), jnp.float32)


def losses(params, inputs=INPUTS, targets=TARGETS):
    hidden = jnp.tanh(inputs @ params["stem"])
    deeper = jnp.tanh(hidden @ params["middle"])
    outputs = hidden @ params["heads"][0], deeper @ params["heads"][1]
    return tuple(jnp.mean((output - targets) ** 2) for output in outputs)


RAGGED = osgd_jax.task_grads(losses)(PARAMS)
DENSE = osgd_jax.densify(RAGGED)
FORMS = pytest.mark.parametrize("grads", [RAGGED, DENSE], ids=["ragged", "dense"])


@functools.cache
def direction(**kwargs):
    tx = osgd_jax.orthogonalize(**kwargs)
    return jax.jit(tx.update)(RAGGED, tx.init(PARAMS), PARAMS)[0]


def step(tx, grads, state=None):
    state = tx.init(PARAMS) if state is None else state
    return jax.jit(tx.update)(grads, state, PARAMS)


def assert_close(actual, expected, **kwargs):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **kwargs}),
        actual,
        expected,
    )


def times(factor, tree):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


@pytest.mark.parametrize(
    "after",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.adamw(1e-3),
        optax.chain(optax.clip_by_global_norm(0.1), optax.add_decayed_weights(0.1), optax.sgd(1.0)),
        optax.lion(1e-3),
    ],
    ids=["sgd", "adamw", "clip", "lion"],
)
def test_anything_after_it_in_a_chain(after):
    updates, _ = step(optax.chain(osgd_jax.orthogonalize(), after), RAGGED)
    expected, _ = jax.jit(after.update)(direction(), after.init(PARAMS), PARAMS)
    assert_close(updates, expected)


@FORMS
def test_partition_with_a_tree_of_labels(grads):
    labels = {"stem": "trunk", "middle": "trunk", "heads": ["head", "head"]}
    tx = optax.partition(
        {"trunk": osgd_jax.osgd(0.1, scope="all"), "head": osgd_jax.osgd(0.5, scope="all")}, labels
    )
    updates, state = step(tx, grads)
    trunk = {name: grads[name] for name in ("stem", "middle")}
    inner = osgd_jax.orthogonalize(scope="all")
    assert_close(
        {name: updates[name] for name in trunk},
        times(-0.1, jax.jit(inner.update)(trunk, inner.init({}))[0]),
    )
    heads, _ = jax.jit(inner.update)({"heads": grads["heads"]}, inner.init({}))
    assert_close(updates["heads"], times(-0.5, heads["heads"]))
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(PARAMS))


FROZEN = {"stem": True, "middle": False, "heads": [False, True]}


@FORMS
def test_parameters_are_frozen_after_it(grads):
    frozen = optax.masked(optax.set_to_zero(), FROZEN)
    updates, _ = step(optax.chain(osgd_jax.osgd(0.1), frozen), grads)
    expected = jax.tree.map(lambda f, u: 0 * u if f else -0.1 * u, FROZEN, direction())
    assert_close(updates, expected)


def test_parameters_are_frozen_by_a_partition_of_task_transformations():
    labels = jax.tree.map(lambda frozen: "frozen" if frozen else "trained", FROZEN)
    none = optax.chain(osgd_jax.aggregate(osgd_jax.weightings.sum()), optax.set_to_zero())
    tx = optax.partition({"trained": osgd_jax.osgd(0.1), "frozen": none}, labels)
    for grads in (RAGGED, DENSE):
        updates, _ = step(tx, grads)
        fits = jax.tree.map(lambda u, p: u.shape == p.shape, updates, PARAMS)
        assert jax.tree.all(fits)
        assert all(
            np.any(u) != f
            for f, u in zip(jax.tree.leaves(FROZEN), jax.tree.leaves(updates), strict=True)
        )


def test_a_partition_with_set_to_zero_says_how_to_freeze():
    labels = jax.tree.map(lambda frozen: "frozen" if frozen else "trained", FROZEN)
    tx = optax.partition({"trained": osgd_jax.osgd(0.1), "frozen": optax.set_to_zero()}, labels)
    updates, _ = tx.update(RAGGED, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"to freeze parameters.*optax\.set_to_zero"):
        optax.apply_updates(PARAMS, updates)


def test_multi_steps_around_it_says_where_it_stands():
    tx = optax.MultiSteps(osgd_jax.osgd(0.1), 2)
    with pytest.raises(ValueError, match=r"optax\.MultiSteps.*after .*not around"):
        tx.update(RAGGED, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), 0], ids=["raw", "seed"])
def test_which_key_flax_can_serialize(key):
    tx = osgd_jax.osgd(0.1, order="random", key=key)
    _, state = step(tx, RAGGED)
    if isinstance(key, int):
        with pytest.raises(TypeError, match="PRNGKey"):
            flax.serialization.to_bytes(state)
        return
    restored = flax.serialization.from_bytes(tx.init(PARAMS), flax.serialization.to_bytes(state))
    assert_close(step(tx, RAGGED, restored)[0], step(tx, RAGGED, state)[0], rtol=0, atol=0)


def test_masked_inside():
    mask = {"stem": True, "middle": False, "heads": [False, True]}
    tx = optax.chain(osgd_jax.orthogonalize(), optax.masked(optax.scale(-0.1), mask))
    updates, _ = step(tx, DENSE)
    expected = jax.tree.map(lambda m, u: -0.1 * u if m else u, mask, direction())
    assert_close(updates, expected)


def test_apply_if_finite_inside():
    tx = optax.chain(
        osgd_jax.orthogonalize(), optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), 3)
    )
    broken = jax.tree.map(jnp.copy, RAGGED)
    broken["stem"] = jax.tree.map(lambda rows: rows.at[0, 0, 0].set(jnp.nan), broken["stem"])
    updates, state = step(tx, broken)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates))
    assert state[1].notfinite_count == 1
    updates, state = step(tx, RAGGED, state)
    assert_close(updates, times(-0.1, direction()))
    assert state[1].notfinite_count == 0


def test_inject_hyperparams():
    tx = optax.inject_hyperparams(osgd_jax.osgd, static_args=("order", "scope"))(
        optax.linear_schedule(0.1, 0.2, 10), order="last_to_first", scope="all"
    )
    state = tx.init(PARAMS)
    expected = direction(order="last_to_first", scope="all")
    for rate in (0.1, 0.11):
        updates, state = step(tx, RAGGED, state)
        assert_close(updates, times(-rate, expected))
    tx = optax.inject_hyperparams(osgd_jax.osgd, static_args=("order", "scope"))(
        0.1, momentum=0.9, nesterov=True
    )
    state = tx.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.asarray(0.5)
    assert_close(step(tx, RAGGED, state)[0], times(-0.5 * 1.9, direction()))


@pytest.mark.parametrize("key", [3, jax.random.key(3)], ids=["seed", "key"])
@pytest.mark.parametrize("static", [("order", "scope"), ("order", "scope", "key")])
def test_inject_hyperparams_with_a_key(key, static):
    injected = optax.inject_hyperparams(osgd_jax.osgd, static_args=static)(
        0.1, order="random", key=key
    )
    plain = osgd_jax.osgd(0.1, order="random", key=3)
    state, plain_state = injected.init(PARAMS), plain.init(PARAMS)
    for _ in range(3):
        updates, state = step(injected, RAGGED, state)
        expected, plain_state = step(plain, RAGGED, plain_state)
        assert_close(updates, expected)


def test_schedules():
    tx = osgd_jax.osgd(optax.piecewise_constant_schedule(1.0, {1: 0.1}))
    first, state = step(tx, RAGGED)
    second, _ = step(tx, RAGGED, state)
    assert_close(first, times(-1.0, direction()))
    assert_close(second, times(-0.1, direction()))


def test_microbatch_accumulates_task_gradients():
    grads_of = osgd_jax.task_grads(losses)
    accumulated = optax.microbatch(
        grads_of,
        argnums=(1, 2),
        microbatch_size=2,
        accumulator=optax.microbatching.AccumulationType.MEAN,
    )
    assert_close(jax.jit(accumulated)(PARAMS, INPUTS, TARGETS), grads_of(PARAMS, INPUTS, TARGETS))


TRANSFORMATIONS = {
    "osgd": osgd_jax.osgd(0.1, momentum=0.9),
    "random": osgd_jax.osgd(0.1, momentum=0.9, order="random", key=0),
    "adam": optax.chain(osgd_jax.orthogonalize(scope="leaf"), optax.adam(1e-3)),
    "clipped": optax.chain(osgd_jax.clip_task_norms(1.0), osgd_jax.orthogonalize(), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_structure_of_the_state_never_changes(name):
    tx = TRANSFORMATIONS[name]
    state = tx.init(PARAMS)

    def many(state, _):
        updates, state = tx.update(RAGGED, state, PARAMS)
        return state, updates

    # A carry of another structure, shape or dtype is an error of `lax.scan`.
    after, updates = jax.jit(lambda state: jax.lax.scan(many, state, length=3))(state)
    one_by_one, update = tx.init(PARAMS), jax.jit(tx.update)
    for i in range(3):
        expected, one_by_one = update(RAGGED, one_by_one, PARAMS)
        assert_close(jax.tree.map(lambda u, i=i: u[i], updates), expected)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_state_that_was_saved_goes_on_as_before(name):
    tx = TRANSFORMATIONS[name]
    _, state = step(tx, RAGGED)
    leaves, treedef = jax.tree.flatten(state)
    typed = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    arrays = [
        np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        for leaf, is_key in zip(leaves, typed, strict=True)
    ]
    arrays = pickle.loads(pickle.dumps(arrays))
    restored = treedef.unflatten(
        jax.random.wrap_key_data(array) if is_key else jnp.asarray(array)
        for array, is_key in zip(arrays, typed, strict=True)
    )
    assert_close(step(tx, RAGGED, restored)[0], step(tx, RAGGED, state)[0], rtol=0, atol=0)


def test_a_donated_state_leaves_the_transformation_usable():
    key = jax.random.key(0)
    tx = osgd_jax.osgd(0.1, order="random", key=key)
    update = jax.jit(lambda state, grads: tx.update(grads, state), donate_argnums=0)
    for _ in range(2):
        update(tx.init(PARAMS), RAGGED)
    assert not key.is_deleted()


def test_extra_arguments_of_others_pass_by():
    tx = optax.chain(osgd_jax.orthogonalize(), optax.scale_by_backtracking_linesearch(5))
    value, state = jnp.sum(jnp.stack(losses(PARAMS))), tx.init(PARAMS)
    updates, _ = tx.update(
        times(-0.01, RAGGED),
        state,
        PARAMS,
        value=value,
        grad=times(0.01, direction()),
        value_fn=lambda params: jnp.sum(jnp.stack(losses(params))),
    )
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


def test_losses_are_passed_to_the_weighting():
    seen = []

    def weigh(gramian, state, *, losses, key):
        del key
        seen.append(losses)
        return losses, state

    tx = osgd_jax.aggregate(osgd_jax.weightings.Weighting(lambda: (), weigh), scope="all")
    forms = ((2.0, 3.0), [jnp.float32(2), jnp.float32(3)], jnp.asarray([2.0, 3.0]))
    for form in (*forms, {"a": 2.0, "b": 3.0}):
        updates, _ = tx.update(DENSE, tx.init(PARAMS), PARAMS, losses=form)
        assert_close(updates, jax.tree.map(lambda g: 2 * g[0] + 3 * g[1], DENSE))
        assert seen[-1].shape == (2,)


@FORMS
@pytest.mark.parametrize(
    "wrong",
    [
        optax.masked(osgd_jax.orthogonalize(), {"stem": True, "middle": True, "heads": False}),
        optax.MultiSteps(osgd_jax.osgd(0.1), 2),
        optax.apply_if_finite(osgd_jax.osgd(0.1), 3),
    ],
    ids=["masked", "MultiSteps", "apply_if_finite"],
)
def test_wrappers_around_it_do_not_pass_silently(wrong, grads):
    """Compositions that the documentation excludes give an error, or updates that do not fit."""
    try:
        updates, _ = wrong.update(grads, wrong.init(PARAMS), PARAMS)
        optax.apply_updates(PARAMS, updates)
    except (TypeError, ValueError, AttributeError):
        return
    assert [u.shape for u in jax.tree.leaves(updates)] != [p.shape for p in jax.tree.leaves(PARAMS)]


# ---------------------------------------------------------------------------------------------
# Flax
# ---------------------------------------------------------------------------------------------


class Net(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(4, 1, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        hidden = nnx.tanh(self.norm(self.stem(x)))
        return self.heads[0](hidden), self.heads[1](jnp.sin(hidden))


@pytest.mark.parametrize("form", ["ragged", "dense"])
def test_nnx_optimizer(form):
    net = Net(nnx.Rngs(0))
    tx = osgd_jax.osgd(0.1, momentum=0.9)
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    # copied, since the optimizer updates the parameters in place
    params = jax.tree.map(jnp.copy, nnx.state(net, nnx.Param))
    state = tx.init(params)

    def task_gradients(net):
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)

        def losses(params):
            net = nnx.merge(graphdef, params, rest, copy=True)
            result = tuple(jnp.mean(output**2) for output in net(INPUTS))
            return result, nnx.state(net, nnx.BatchStat)

        grads, statistics = osgd_jax.task_grads(losses, has_aux=True)(params)
        return (grads if form == "ragged" else osgd_jax.densify(grads)), statistics

    @nnx.jit
    def train_step(net, optimizer):
        grads, statistics = task_gradients(net)
        optimizer.update(net, grads)
        nnx.update(net, statistics)

    for _ in range(3):
        expected_grads, _ = task_gradients(net)
        updates, state = tx.update(expected_grads, state, params)
        params = optax.apply_updates(params, updates)
        train_step(net, optimizer)
        assert_close(nnx.state(net, nnx.Param), params)
    assert optimizer.step[...] == 3
    assert not np.allclose(net.norm.mean[...], 0)


AGGREGATORS = {
    "aggregate": lambda: osgd_jax.aggregate(osgd_jax.weightings.mean()),
    "orthogonalize": lambda: osgd_jax.orthogonalize(),
    "orthogonalize, named": lambda: osgd_jax.orthogonalize(("a", "b")),
    "osgd": lambda: osgd_jax.osgd(0.1, momentum=0.9),
    "graddrop": lambda: osgd_jax.graddrop(0),
    "moco": lambda: osgd_jax.moco(2),
    "db_mtl": lambda: osgd_jax.db_mtl(2),
    "excess_mtl": lambda: osgd_jax.excess_mtl(2),
}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_aggregator_of_optax(name):
    assert isinstance(AGGREGATORS[name](), optax.experimental.aggregating.Aggregator)


def test_process_of_optax():
    process = optax.experimental.aggregating.process
    tx = process(osgd_jax.clip_task_norms(1.0), osgd_jax.orthogonalize(), optax.sgd(0.5))
    assert isinstance(tx, optax.experimental.aggregating.Aggregator)
    params, rows = jnp.zeros(2), jnp.array([[0.0, 5.0], [0.6, 0.6]])
    update = jax.jit(tx.update)
    updates, _ = update(rows, tx.init(params), params, losses=jnp.ones(2))
    # Clipped to (0, 1) and (0.6, 0.6); the second without its part along the first is (0.6, 0).
    np.testing.assert_allclose(updates, [-0.3, -0.5], rtol=1e-6)
