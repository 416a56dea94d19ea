"""Transformers: values, gradients, causality."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import osgd_jax
from osgd_jax import AnytimePredictor, nets, plots
from tests.helpers import plain_transformer as plain
from tests.nets.small_nets import TRANSFORMERS, build, example_for, randomise

families = pytest.mark.parametrize("family", TRANSFORMERS)
VOCAB = 7


def make(net, **kwargs):
    sizes = {"vocab_size": VOCAB, "num_outputs": 2, "width": 12, "num_heads": 3, "depth": 2}
    return randomise(net(**{**sizes, "rngs": nnx.Rngs(0), **kwargs}))


def tokens(batch=2, length=6):
    return jnp.asarray(np.random.default_rng(2).integers(0, VOCAB, (batch, length)))


def quickly(function, *args):
    """Compile without optimization, for programs that run few times."""
    return jax.jit(function).lower(*args).compile({"xla_backend_optimization_level": 0})


def compiled(net, x):
    """All outputs."""
    graphdef, state = nnx.split(net)
    run = lambda state, x: nnx.merge(graphdef, state, copy=True)(x)  # noqa: E731
    return quickly(run, state, x)(state, x)


@functools.cache
def small(family):
    """A net with two outputs, and its compiled outputs of inputs like its example."""
    net = randomise(build(family, 1))
    graphdef, state = nnx.split(net)
    run = lambda state, x: nnx.merge(graphdef, state, copy=True)(x)  # noqa: E731
    program = quickly(run, state, example_for(family))
    return net, functools.partial(program, state)


def striped_logits(xp, net, x):
    """Compute a `WidthNestedTransformer`, with dense matrices."""
    stripes = tuple(stage.embedding.table.shape[1] for stage in net.stages)
    table = xp.concatenate([xp.asarray(stage.embedding.table[...]) for stage in net.stages], -1)
    state = table[xp.asarray(x)]
    for position in range(len(net.stages[0].layers)):
        layer = plain.dense_layer(xp, [stage.layers[position] for stage in net.stages])
        state = state + plain.increment(xp, layer, state, stripes)
    return plain.head(xp, plain.dense_head(xp, [s.head for s in net.stages]), state, stripes)


def test_branched_outputs_are_those_of_a_plain_transformer(x64):
    net = make(nets.BranchedTransformer, depth=3)
    x = tokens()
    state = np.asarray(net.stages[0].embedding.table)[np.asarray(x)]
    for stage, logits in zip(net.stages, compiled(net, x), strict=True):
        for layer in stage.layers:
            state = state + plain.increment(np, plain.dense_layer(np, [layer]), state, (12,))
        expected = plain.head(np, plain.dense_head(np, [stage.head]), state, (12,))
        np.testing.assert_allclose(logits, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("fractions", [None, (1 / 3, 1)])
def test_stripes_are_a_transformer_with_zeros_above_the_diagonal(x64, fractions):
    net = make(nets.WidthNestedTransformer, fractions=fractions)
    x = tokens()
    outputs = compiled(net, x)
    for k in range(2):
        expected = striped_logits(np, net.subnetwork(k), x)
        np.testing.assert_allclose(outputs[k], expected, rtol=1e-11, atol=1e-12)


def test_gradients_of_stripes_are_those_of_the_dense_matrices(x64):
    net = make(nets.WidthNestedTransformer, depth=1)
    x = tokens(batch=1, length=4)
    graphdef, state = nnx.split(net)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(1, 4, VOCAB)))

    def loss(state, logits_of):
        return (weights * logits_of(nnx.merge(graphdef, state, copy=True))).sum()

    def gradient(logits_of):
        return quickly(jax.grad(lambda state: loss(state, logits_of)), state)(state)

    actual = gradient(lambda net: net(x)[-1])
    expected = gradient(lambda net: striped_logits(jnp, net, x))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_deeper_streams_add_what_the_old_layers_added(x64):
    net = make(nets.DepthNestedTransformer)
    x = tokens()
    origin = np.asarray(net.stages[0].embedding.table)[np.asarray(x)]
    old, states = [], []
    for stage in net.stages:
        state, added = origin, []
        for position, layer in enumerate(stage.stream.blocks):
            if old:
                state = state + old[position]
            added.append(plain.increment(np, plain.dense_layer(np, [layer]), state, (12,)))
            state = state + added[-1]
        old = added
        states.append(state)
    heads = [plain.dense_head(np, [stage.head]) for stage in net.stages]
    expected = np.cumsum(
        [plain.head(np, head, state, (12,)) for head, state in zip(heads, states, strict=True)], 0
    )
    np.testing.assert_allclose(compiled(net, x), expected, rtol=1e-11, atol=1e-12)


def wider_layer(layer, state, before):
    """One stripe of a layer of a net nested in both, on the state of its stream."""
    heads, units, added, increment = before
    join = lambda old, new: new if old is None else np.concatenate([old, new], -1)  # noqa: E731
    array = lambda variable: np.asarray(variable[...])  # noqa: E731
    attention, mlp, stripes = layer.attention, layer.mlp, (state.shape[-1],)
    normed = plain.rms_norm(np, state, array(attention.norm.scale), stripes)
    shape = (*state.shape[:2], -1, attention.head_dim)
    parts = np.split(normed @ array(attention.project.kernel), 3, axis=-1)
    read = plain.read_earlier(np, *[part.reshape(shape) for part in parts])
    heads = join(heads, read.reshape(*state.shape[:2], -1))
    first = heads @ array(attention.out.kernel)
    added = join(added, first)
    normed = plain.rms_norm(np, state + added, array(mlp.norm.scale), stripes)
    gate, up = np.split(normed @ array(mlp.project.kernel), 2, axis=-1)
    units = join(units, gate / (1 + np.exp(-gate)) * up)
    increment = join(increment, first + units @ array(mlp.out.kernel))
    return state + increment, (heads, units, added, increment)


def test_wider_and_deeper_streams_compute_nothing_twice(x64):
    net = make(nets.NestedTransformer, num_outputs=3, depth=1)
    x = tokens()
    origin, kept, expected = np.zeros((*x.shape, 0)), [], [0.0]
    for stage in net.stages:
        new = np.asarray(stage.embedding.table)[np.asarray(x)]
        origin = state = np.concatenate([origin, new], -1)
        following = []
        for position, block in enumerate(stage.stream.blocks):
            olds = [(stage.stream.stripes[position], kept[position])] if kept else []
            for layer, before in (*olds, (block, (None,) * 4)):
                state, values = wider_layer(layer, state, before)
                following.append(values)
        kept = following
        head = plain.dense_head(np, [stage.head])
        read = state[..., -new.shape[-1] :]
        expected.append(expected[-1] + plain.head(np, head, read, (new.shape[-1],)))
    np.testing.assert_allclose(compiled(net, x), expected[1:], rtol=1e-11, atol=1e-12)


def test_float32_is_as_near_as_it_can_be():
    net, outputs = small("width-nested-transformer")
    x = example_for("width-nested-transformer")
    np.testing.assert_allclose(outputs(x)[-1], striped_logits(np, net, x), rtol=1e-4, atol=1e-4)


@families
def test_gradients_are_those_of_finite_differences(x64, family):
    net = randomise(build(family, 1))
    graphdef, state = nnx.split(net)
    x = example_for(family)
    rng = np.random.default_rng(4)

    def losses(state):
        outputs = nnx.merge(graphdef, state, copy=True)(x)
        return sum((k + 1) * jax.nn.log_softmax(y)[..., 0].mean() for k, y in enumerate(outputs))

    loss_and_gradient = quickly(jax.value_and_grad(losses), state)
    loss = lambda state: loss_and_gradient(state)[0]  # noqa: E731
    _, gradient = loss_and_gradient(state)
    for _ in range(3):
        direction = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape)), state)
        step = lambda size, d=direction: jax.tree.map(lambda v, u: v + size * u, state, d)  # noqa: E731
        difference = (loss(step(1e-5)) - loss(step(-1e-5))) / 2e-5
        along = jax.tree.map(lambda g, u: (g * u).sum(), gradient, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(along)), difference, rtol=1e-6)


@families
def test_no_position_reads_a_later_one(family):
    _, outputs = small(family)
    x = example_for(family)
    changed = x.at[:, 4].set((x[:, 4] + 1) % 3)
    for before, after in zip(outputs(x), outputs(changed), strict=True):
        np.testing.assert_array_equal(before[:, :4], after[:, :4])
        assert np.all(np.any(before[:, 4:] != after[:, 4:], axis=-1))


@families
@pytest.mark.parametrize("wrong", [3, -1])
def test_a_token_outside_of_the_vocabulary_is_not_a_number(family, wrong):
    _, outputs = small(family)
    for logits in outputs(example_for(family).at[0, 3].set(wrong)):
        assert np.isnan(logits[0]).all()
        assert np.isfinite(logits[1]).all()


def test_logits_of_half_precision_are_float32():
    net = build("width-nested-transformer", 1, dtype=jnp.bfloat16)
    outputs = nnx.eval_shape(lambda net: net(example_for("width-nested-transformer")), net)
    assert [logits.dtype for logits in outputs] == [jnp.float32] * 2


def test_cost_is_that_of_the_matrices():
    width, units, length, vocab = 24, 64, 10, 50
    net = nets.BranchedTransformer(
        vocab_size=vocab, num_outputs=1, width=width, num_heads=4, depth=3, rngs=nnx.Rngs(0)
    )
    ((parameters, work),) = osgd_jax.cost(net, (length,))
    layer = 4 * width**2 + 3 * width * units
    assert parameters == 3 * (layer + 2 * width) + 2 * vocab * width + width
    assert work == length * (3 * (layer + 2 * length * width) + width * vocab)


def test_predictor_runs_and_exports_them(tmp_path):
    net, outputs_of = small("nested-transformer")
    predictor = AnytimePredictor(net)
    x = example_for("nested-transformer")
    outputs = outputs_of(x)
    work = osgd_jax.cost(net, (7,))[0].multiply_adds
    for k, limit in ((0, {"budget": work}), (1, {})):
        answer = predictor.predict(x, **limit)
        np.testing.assert_allclose(answer.logits, outputs[k], rtol=1e-4, atol=1e-4)
    predictor.export(tmp_path / "net.anytime")
    loaded = AnytimePredictor.load(tmp_path / "net.anytime").predict(x[:1])
    np.testing.assert_allclose(loaded.logits, outputs[1][:1], rtol=1e-4, atol=1e-4)


@families
def test_nesting_can_be_drawn(family):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert plots.nesting(build(family, 1), (7,), axes=axes) is axes
    assert axes.patches
