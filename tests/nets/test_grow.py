"""A net that gets more outputs: the old ones stay, to the bit, and the new ones train."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import osgd_jax
from osgd_jax import nets
from osgd_jax._serving.stages import NetModel
from tests.nets.small_nets import (
    FAMILIES,
    TRANSFORMERS,
    build,
    example_for,
    randomise,
)

families = pytest.mark.parametrize("family", FAMILIES)
RNGS = nnx.Rngs(0)


def _arrays(net, *filters):
    return jax.tree.leaves(nnx.state(net, *filters))


def _assert_same_net(net, other):
    """The same layers, modes, dtypes and sizes, and the same numbers in them."""
    assert nnx.graphdef(net) == nnx.graphdef(other)
    for a, b in zip(_arrays(net), _arrays(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def _kinds(family):
    if family in TRANSFORMERS:
        return [{}, {"dtype": jnp.bfloat16}]
    half = {"spatial_dims": 1, "norm": "group", "param_dtype": jnp.bfloat16}
    return [{"spatial_dims": 2}, {"spatial_dims": 1, "dtype": jnp.bfloat16}, half]


@pytest.mark.parametrize(
    ("family", "kind"), [(family, kind) for family in FAMILIES for kind in _kinds(family)], ids=str
)
def test_first_outputs_are_the_net(family, kind):
    first = net = randomise(build(family, 0, **kind))
    net.eval()
    for num_outputs in range(2, 6):
        grown = nets.grow(net, num_outputs, rngs=nnx.Rngs(num_outputs))
        assert grown.num_outputs == num_outputs
        _assert_same_net(grown.subnetwork(num_outputs - 2), net)
        net = grown
    at_once = nets.grow(first, 5, rngs=nnx.Rngs(0))
    _assert_same_net(at_once.subnetwork(0), first)


@families
def test_old_outputs_cost_what_they_did(family):
    net = build(family, 1)
    grown = nnx.eval_shape(lambda: nets.grow(build(family, 1), 4, rngs=nnx.Rngs(0)))
    shape = example_for(family).shape[1:]
    costs = osgd_jax.cost(grown, shape)
    assert costs[:2] == osgd_jax.cost(net, shape)
    work = [cost.multiply_adds for cost in costs]
    assert sorted(set(work)) == work


@families
def test_predictor_runs_the_same_programs(family):
    net = randomise(build(family, 1, **({} if family in TRANSFORMERS else {"dtype": "bfloat16"})))
    x = example_for(family)
    stages = [
        NetModel(each).stages(x.shape[1:], x.dtype)
        for each in (net, nets.grow(net, 3, rngs=nnx.Rngs(0)))
    ]
    carry = [x]
    # The stage of the old last output is another program: it also makes what later stages read.
    for old, new in zip(stages[0][:-1], stages[1], strict=False):
        programs = [jax.make_jaxpr(each.call)(each.weights, carry) for each in (old, new)]
        assert str(programs[0]) == str(programs[1])
        assert old.passes == new.passes
        for a, b in zip(old.weights, new.weights, strict=True):
            np.testing.assert_array_equal(a, b)
        fresh = jax.eval_shape(old.call, old.weights, carry)[1]
        carry = old.next_carry(carry, fresh)


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("branched", {"dtype": jnp.bfloat16}),
        ("width-nested", {"spatial_dims": 1}),
        ("branched-transformer", {}),
    ],
)
def test_logits_are_equal_bit_for_bit(family, kind, tmp_path):
    net = randomise(build(family, 1, **kind))
    grown = nets.grow(net, 3, rngs=nnx.Rngs(1))
    x = example_for(family, **{"spatial_dims": 2, **kind})

    def assert_equal(old, new, count):
        assert (len(old), len(new)) == (2, count)
        for a, b in zip(old, new, strict=False):
            np.testing.assert_array_equal(a, b)

    assert_equal(net(x), grown(x), 3)  # in training mode, eagerly
    for a, b in zip(_arrays(net), _arrays(grown.subnetwork(1)), strict=True):
        np.testing.assert_array_equal(a, b)  # running averages, too
    predictors = [osgd_jax.AnytimePredictor(each) for each in (net, grown)]
    loaded = []
    for i, predictor in enumerate(predictors):
        predictor.export(tmp_path / str(i), input_shape=x.shape[1:])
        loaded.append(osgd_jax.AnytimePredictor.load(tmp_path / str(i)))
    for pair in (predictors, loaded):
        old, new = ([output.logits for output in each.stream(x)] for each in pair)
        np.testing.assert_array_equal(old[0], new[0])
        tolerance = 0.1 if "dtype" in kind else 1e-5
        np.testing.assert_allclose(old[1], new[1], rtol=tolerance, atol=tolerance)


@families
def test_growth_goes_on_as_it_began(family):
    """A net that is cut off and grows again gets the stages that it had."""
    net = build(family, 2)
    grown = nets.grow(net.subnetwork(1), 3, rngs=nnx.Rngs(1))
    # The third stage of these two small nets is on a new level, or wider than by default.
    other = family in ("branched", "nested")
    assert other == (nnx.graphdef(grown) != nnx.graphdef(net))


def test_assembled_net_grows():
    net = randomise(build("width-nested", 1, norm="group")).assembled()
    grown = nets.grow(net, 2, rngs=nnx.Rngs(0))
    _assert_same_net(grown.subnetwork(0), net)
    assert jax.eval_shape(lambda x: grown(x)[1], example_for("width-nested")).shape == (2, 3)


SIZES = [
    ("branched", 2, {}, {"widths": (4, 8), "blocks": (2, 2), "ends": (1, 2, 3, 4)}),
    ("branched", 1, {}, {"widths": (4,), "blocks": (4,), "ends": (1, 2, 3, 4)}),
    ("branched", 1, {"blocks": (7,)}, {"blocks": (7,), "ends": (1, 2, 4, 7)}),
    (
        "branched",
        1,
        {"widths": (4, 8), "blocks": (3, 1)},
        {"widths": (4, 8), "blocks": (3, 1), "ends": (1, 2, 3, 4)},
    ),
    ("msdnet", 1, {}, {"ends": (1, 2, 3, 4), "period": 2}),
    ("msdnet", 1, {"step": 3}, {"ends": (1, 2, 5, 8), "step": 1}),
    ("width-nested", 1, {}, {"stripes": ((1, 1, 2, 4), (2, 2, 4, 8)), "widths": (8, 16)}),
    ("width-nested", 1, {"widths": (18, 6)}, {"stripes": ((1, 1, 4, 12), (2, 2, 1, 1))}),
    ("nested", 1, {}, {"widths": (8, 16)}),
    ("depth-nested", 1, {}, {"widths": (4, 8), "blocks": (1, 1)}),
    ("branched-transformer", 1, {}, {"depth": 4, "ends": (1, 2, 3, 4)}),
    ("branched-transformer", 1, {"depth": 8}, {"depth": 8, "ends": (1, 2, 5, 8)}),
    ("width-nested-transformer", 1, {}, {"width": 32, "num_heads": 8}),
    ("width-nested-transformer", 1, {"width": 24}, {"width": 24, "num_heads": 6}),
    ("nested-transformer", 1, {}, {"width": 16, "num_heads": 4}),
    ("depth-nested-transformer", 1, {}, {"width": 8, "depth": 1}),
]


@pytest.mark.parametrize(("family", "k", "given", "wanted"), SIZES, ids=str)
def test_sizes_of_new_stages(family, k, given, wanted):
    sizes = nets.grow(build(family, k), 4, rngs=nnx.Rngs(0), **given).stage_sizes
    assert {name: getattr(sizes, name) for name in wanted} == wanted


def _grow(family, k, num_outputs=3, **given):
    return nets.grow(build(family, k), num_outputs, **{"rngs": RNGS, **given})


class _OwnNet(nets.AnytimeNet):
    """A net of no family."""

    def __init__(self):
        super().__init__([nets.Linear(2, 3, rngs=nnx.Rngs(0))], num_classes=3)


ERRORS = [
    (lambda: nets.grow(3, 4, rngs=RNGS), "net=int(…) must be a net of a family of osgd_jax.nets"),
    (lambda: nets.grow(_OwnNet(), 4, rngs=RNGS), "net=_OwnNet(…) must be a net of a family"),
    (lambda: _grow("nested", 2), "num_outputs=3 must be larger than the net's 3"),
    (lambda: _grow("nested", 2, 0), "num_outputs=0 must be an integer of at least 1"),
    (lambda: _grow("nested", 2, 3.5), "num_outputs=3.5 must be an integer of at least 1"),
    (lambda: _grow("nested", 1, rngs=0), "rngs=0 must be an nnx.Rngs, such as nnx.Rngs(0)."),
    (lambda: _grow("nested", 1, step=3), "step= must not be given: NestedResNet takes widths="),
    (lambda: _grow("depth-nested", 1, widths=(8,)), "DepthNestedResNet takes no sizes to grow."),
    (lambda: _grow("nested", 1, widths=(8,)), "widths=(8,) must be at least (5, 9): those of"),
    (lambda: _grow("nested", 1, widths=(8, 8)), "widths=(8, 8) must be at least (5, 9)"),
    (lambda: _grow("branched", 1, blocks=(2,)), "and have at least 1 more blocks"),
    (lambda: _grow("branched", 2, 4, blocks=(3, 1)), "must begin with those of the net, (4, 8)"),
    (lambda: _grow("branched", 1, widths=(8,)), "widths=(8,) and blocks=(3,) must begin with"),
    (lambda: _grow("branched", 1, widths=(4, 8)), "must have one entry for each level"),
    (lambda: _grow("msdnet", 1, step=0), "step=0 must be an integer of at least 1"),
    (lambda: _grow("branched-transformer", 1, depth=2), "depth=2 must be at least 3: the 2 layers"),
    (lambda: _grow("nested-transformer", 1, width=14), "width=14 must be a multiple of the 4"),
    (lambda: _grow("nested-transformer", 1, width=8), "and at least 12, so that each new output"),
    (lambda: nets.stages_from(-1), "first=-1 must be the index of a stage"),
    (lambda: nets.stages_from(True), "first=True must be the index of a stage"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_grown_net_shares_nothing_and_stays_in_place():
    place = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec("data"))
    net = build("width-nested", 2, spatial_dims=1)
    nnx.update(net, jax.device_put(nnx.state(net), place))
    grown = nets.grow(net, 4, rngs=nnx.Rngs(0))
    copies = _arrays(grown.subnetwork(2))
    assert all(array.sharding.is_equivalent_to(place, array.ndim) for array in copies)
    for array in copies:
        array.delete()  # as a step that donates its buffers does
    assert all(np.isfinite(array).all() for array in _arrays(net))


def test_stages_from_selects_what_new_outputs_add():
    net = nets.grow(build("width-nested", 1, spatial_dims=1), 4, rngs=nnx.Rngs(0))
    both = nnx.Dict(inside=net)
    for k in range(5):
        wanted = [array.shape for stage in net.stages[k:] for array in _arrays(stage)]
        for node in (net, both):
            assert [array.shape for array in _arrays(node, nets.stages_from(k))] == wanted
    assert nets.stages_from(2) == nets.stages_from(np.int64(2))
    assert hash(nets.stages_from(2)) == hash(nets.stages_from(2))


# Three ways to train a grown net.


def _losses(net, x):
    labels = jnp.arange(len(x)) % 3
    logits = [each if each.ndim == 2 else each[:, -1] for each in net(x)]
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return tuple(cross_entropy(each.astype(float), labels).mean() for each in logits)


@pytest.mark.parametrize("family", ["width-nested", "depth-nested", "nested-transformer"])
def test_frozen_outputs_stay_to_the_bit(family):
    kwargs = {} if family in TRANSFORMERS else {"spatial_dims": 1}
    net = randomise(build(family, 1, **kwargs))
    x = example_for(family, **kwargs)
    grown = nets.grow(net, 3, rngs=nnx.Rngs(1))
    grown.train()
    for stage in grown.stages[:2]:
        stage.eval()
    new = nnx.All(nnx.Param, nets.stages_from(2))
    optimizer = nnx.Optimizer(grown, optax.sgd(0.1, momentum=0.9), wrt=new)
    before = [jnp.copy(array) for array in _arrays(grown, nets.stages_from(2))]

    @nnx.jit
    def step(net, optimizer, x):
        loss, grads = nnx.value_and_grad(
            lambda net: _losses(net, x)[2], argnums=nnx.DiffState(0, new)
        )(net)
        optimizer.update(net, grads)
        return loss

    losses = [float(step(grown, optimizer, x)) for _ in range(4)]
    assert losses[-1] < losses[0]
    moved = zip(before, _arrays(grown, nets.stages_from(2)), strict=True)
    changed = [not np.array_equal(a, b) for a, b in moved]  # batch statistics are among them
    assert np.mean(changed) > 0.9
    net.eval()
    _assert_same_net(grown.subnetwork(1), net)


@pytest.mark.numerical
def test_held_steps_are_orthogonal_to_old_gradients_and_joint_ones_are_not(x64):
    net = nets.grow(randomise(build("width-nested", 1, spatial_dims=1)), 3, rngs=nnx.Rngs(1))
    x = example_for("width-nested", spatial_dims=1)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    ways = [osgd_jax.orthogonalize(hold=(0, 1)), osgd_jax.aggregate(osgd_jax.weightings.sum())]

    @jax.jit
    def step(params):
        def losses(params):
            return _losses(nnx.merge(graphdef, params, rest, copy=True), x)

        grads = osgd_jax.task_grads(losses)(params)
        updates = [tx.update(grads, tx.init(params), params)[0] for tx in ways]
        return osgd_jax.densify(grads), updates

    def flat(tree, *rows):
        return jnp.concatenate([a.reshape(*rows, -1) for a in jax.tree.leaves(tree)], axis=-1)

    grads, updates = step(params)
    grads = flat(grads, 3)
    held, joint = (
        grads @ update / jnp.linalg.norm(grads, axis=1) / jnp.linalg.norm(update)
        for update in map(flat, updates)
    )
    np.testing.assert_allclose(held[:2], 0, atol=1e-6)
    assert held[2] > 0.1
    assert (joint > 0.1).all()
