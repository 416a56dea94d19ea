"""Properties of every family of nets."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import osgd_jax
from tests.nets.small_nets import (
    FAMILIES,
    IMAGE_FAMILIES,
    NORMS,
    NORMS_AND_DIMS,
    TRANSFORMERS,
    advance_call,
    build,
    example_for,
    randomise,
    train_call,
)

families = pytest.mark.parametrize("family", FAMILIES)
image_families = pytest.mark.parametrize("family", IMAGE_FAMILIES)


def _name(value):
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


norms = pytest.mark.parametrize(("family", "kwargs"), NORMS, ids=_name)
norms_and_dims = pytest.mark.parametrize(("family", "kwargs"), NORMS_AND_DIMS, ids=_name)


def signals(family):
    """Arguments that make an image net one-dimensional, the cheapest to compile."""
    return {} if family in TRANSFORMERS else {"spatial_dims": 1}


def assert_close(actual, expected, tolerance=1e-12):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@norms_and_dims
def test_outputs_equal_those_of_the_standalone_net(family, kwargs):
    with jax.enable_x64(True):
        net = randomise(build(family, 3, **kwargs))
        x = example_for(family, **kwargs)
        before = nnx.state(net)
        outputs, statistics = train_call(net)(before, x)
        assert len(outputs) == net.num_outputs == 4
        for k in range(3):
            standalone = build(family, k, seed=9, **kwargs)
            assert nnx.graphdef(standalone) == nnx.graphdef(net.subnetwork(k))
            nnx.update(standalone, {"stages": {j: before["stages"][j] for j in range(k + 1)}})
            inner, inner_statistics = train_call(standalone)(nnx.state(standalone), x)
            computed = jax.tree.leaves((inner, inner_statistics))
            assert all(leaf.dtype == jnp.float64 for leaf in computed)
            assert_close(inner, outputs[: k + 1])
            if kwargs.get("norm") == "batch":
                outer = {j: statistics["stages"][j] for j in range(k + 1)}
                assert_close(dict(inner_statistics["stages"]), outer)


@norms_and_dims
def test_stages_compute_what_one_call_computes(family, kwargs):
    net = randomise(build(family, 2, **kwargs))
    net.eval()
    inner = net.subnetwork(1)
    x = example_for(family, **kwargs)
    carry = inner_carry = net.start(x)
    for k, expected in enumerate(train_call(net)(nnx.state(net), x)[0]):
        logits, carry = advance_call(net, k)(nnx.state(net), carry)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        if k <= 1 and kwargs.get("spatial_dims") != 1:
            inner_logits, inner_carry = advance_call(inner, k)(nnx.state(inner), inner_carry)
            np.testing.assert_array_equal(inner_logits, logits)


@norms
def test_a_loss_reaches_its_own_and_earlier_stages_only(family, kwargs):
    kwargs = kwargs | signals(family)
    net = build(family, 3, **kwargs)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    x = example_for(family, **kwargs)

    def losses(params):
        logits = nnx.merge(graphdef, params, rest, copy=True)(x)
        return [jnp.square(y).mean() for y in logits]

    reached = osgd_jax.reach(losses)(params)
    is_tasks = lambda node: isinstance(node, tuple)  # noqa: E731
    for path, tasks in jax.tree_util.tree_leaves_with_path(reached, is_leaf=is_tasks):
        names = [getattr(key, "key", None) for key in path]
        stage = names[1]
        alone = family == "branched-transformer"
        if "head" not in names or (family in TRANSFORMERS and not alone):
            assert tasks == tuple(range(stage, 4)), path
        elif alone or "linear" in names:
            assert tasks == (stage,), path
        else:
            # Later stripes read what this head has normalised, later streams do not.
            assert min(tasks) == stage, path


@norms
def test_functional_training_step(family, kwargs):
    net = build(family, 1, **kwargs)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def loss(params, rest, x):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        logits = merged(x)
        return sum(jax.nn.logsumexp(y, -1).mean() for y in logits), nnx.state(merged, nnx.BatchStat)

    x = example_for(family)
    grads, statistics = jax.jit(jax.grad(loss, has_aux=True))(params, rest, x)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    assert jax.tree.structure(statistics) == jax.tree.structure(nnx.state(net, nnx.BatchStat))
    before = jax.tree.leaves(nnx.state(net, nnx.BatchStat))
    changed = [np.any(a != b) for a, b in zip(before, jax.tree.leaves(statistics), strict=True)]
    assert all(changed)
    assert bool(changed) == (kwargs.get("norm") == "batch")


@norms
def test_evaluation_uses_running_averages_and_keeps_them(family, kwargs):
    net = randomise(build(family, 1, **kwargs))
    view = nnx.view(net, deterministic=True, use_running_average=True)
    x = example_for(family, batch=3)
    before = nnx.state(view, nnx.BatchStat)
    call = train_call(view)
    together, after = call(nnx.state(view), x)
    alone = [call(nnx.state(view), x[i : i + 1])[0] for i in range(3)]
    for k, logits in enumerate(together):
        rows = np.concatenate([outputs[k] for outputs in alone])
        np.testing.assert_allclose(rows, logits, rtol=1e-4, atol=1e-5)
    assert_close(after, before, 0)


@families
def test_subnetwork_shares_variables(family):
    net = build(family, 2)
    inner = net.subnetwork(1)
    assert net.num_outputs == 3
    assert inner.num_outputs == 2
    variables = {path: v for path, v in nnx.iter_graph(net) if isinstance(v, nnx.Variable)}
    shared = {path: v for path, v in nnx.iter_graph(inner) if isinstance(v, nnx.Variable)}
    assert set(shared) == {path for path in variables if path[1] < 2}
    assert all(v is variables[path] for path, v in shared.items())


@families
def test_construction_is_abstract_when_asked(family):
    made = build(family, 2)
    abstract = nnx.eval_shape(lambda: build(family, 2))
    shapes = jax.tree.map(lambda v: (v.shape, v.dtype), nnx.state(abstract))
    assert shapes == jax.tree.map(lambda v: (v.shape, v.dtype), nnx.state(made))


@families
def test_seed_determines_the_parameters(family):
    first, again, other = (nnx.state(build(family, 1, seed=s), nnx.Param) for s in (3, 3, 4))
    assert_close(first, again, 0)
    kernels = [
        (a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
        if a.ndim > 1
    ]
    assert all(np.all(a != b) for a, b in kernels)


@image_families
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"norm": "layer"}, "norm='layer' must be 'batch' or 'group'"),
        ({"num_outputs": 0}, "num_outputs=0 must be an integer of at least 1"),
        ({"num_classes": 0}, "num_classes=0 must be an integer of at least 1"),
        ({"in_channels": -1}, "in_channels=-1 must be an integer of at least 1"),
        ({"spatial_dims": 3}, "spatial_dims=3 must be 1 or 2"),
    ],
)
def test_wrong_arguments_are_named(family, kwargs, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES[family].make(**{"num_classes": 3, "rngs": nnx.Rngs(0), **kwargs})


@families
def test_sizes_may_be_integers_of_numpy(family):
    name = "vocab_size" if family in TRANSFORMERS else "num_classes"
    net = nnx.eval_shape(
        lambda: FAMILIES[family].make(**{name: np.int64(3)}, rngs=nnx.Rngs(0), num_outputs=2)
    )
    assert net.num_classes == 3


@families
def test_wrong_inputs_are_named(family):
    net = build(family, 1)
    tokens = family in TRANSFORMERS
    wanted = "have the shape [batch, height, width, 2]"
    wanted = "be tokens, integers [batch, length]" if tokens else wanted
    for shape in [(2, 8, 2), (2, 8, 8, 3), (8, 8, 2)]:
        with pytest.raises(ValueError, match=rf"x of shape .* must {re.escape(wanted)}"):
            net(jnp.zeros(shape, int if tokens else float))
    for call in (lambda k: net.advance(k, None), net.subnetwork):
        for k in (-1, 2):
            with pytest.raises(ValueError, match=f"k={k} must be an output from 0 to 1"):
                call(k)


@families
def test_a_carry_of_another_stage_is_named(family):
    net = build(family, 2)
    net.eval()
    x = example_for(family)
    carries = [net.start(x)]
    for k in range(2):
        advance = lambda carry, k=k: net.advance(k, carry)  # noqa: E731
        carries.append(jax.eval_shape(advance, carries[-1])[1])
    for k in range(3):
        before = f"carry must be what {f'advance({k - 1}, …)' if k else 'start(x)'} gave"
        for other in {0, 1, 2} - {k}:
            message = re.escape(f"{before} for advance({k}, …); got one for advance({other}, …)")
            with pytest.raises(ValueError, match=message):
                net.advance(k, carries[other])
        with pytest.raises(ValueError, match=re.escape(f"{before} for advance({k}, …); got")):
            net.advance(k, x)


@families
def test_half_precision_and_rematerialisation(family):
    axes = signals(family)
    x = example_for(family, **axes)

    def make(**kwargs):
        net = build(family, 1, **axes, **kwargs)
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)

        def loss(params):
            logits = nnx.merge(graphdef, params, rest, copy=True)(x)
            return sum(jnp.square(y).mean() for y in logits)

        return jax.jit(jax.value_and_grad(loss)).trace(params), jax.jit(loss), params

    # Compiled without optimization: these programs run once.
    def run(traced):
        return traced.lower().compile({"xla_backend_optimization_level": 0})(params)

    step, _, params = make()
    remat_step, _, _ = make(remat=True)
    assert ["remat" in str(each.jaxpr) for each in (step, remat_step)] == [False, True]
    value, grads = run(step)
    remat_value, remat_grads = run(remat_step)
    np.testing.assert_allclose(remat_value, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(remat_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

    half_step, half_loss, _ = make(dtype=jnp.bfloat16)
    np.testing.assert_allclose(run(half_loss.trace(params)), value, rtol=0.1)
    half_grads = half_step.out_info[1]
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(half_grads))
    assert "bf16" in str(half_step.jaxpr)
