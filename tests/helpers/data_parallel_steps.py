"""Steps with `axis_name`, which `test_data_parallel.py` runs on eight CPU devices.

Each case compares a step of eight devices (or two, or four of them), each on its part of the batch,
with one device's on all.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import osgd_jax
from osgd_jax import weightings

D, K = 8, 3
MESH = jax.make_mesh((D,), ("d",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
# Rows that are scattered (`wide`, in tiles that it does not fill) and rows that are summed whole;
# an unused array; and a ragged reach: stem and bias serve all losses, `late` and `wide` the last
# two, each head one.
PARAMS = jax.tree.map(
    lambda shape: rng.normal(size=shape).astype(np.float32) / 4,
    {
        "stem": (16, 64),
        "bias": (64,),
        "late": (64, 64),
        "wide": (64, 1000),
        "heads": [(64, 3), (64, 3), (64, 5)],
        "unused": (7,),
        "empty": (0, 3),
    },
    is_leaf=lambda node: isinstance(node, tuple),
)
INPUTS = rng.normal(size=(32, 16)).astype(np.float32)
SCOPES = [
    "shared",
    "all",
    "leaf",
    "reach",
    {"stem": 0, "bias": 1, "late": 1, "wide": 1, "heads": [0, 1, 1], "unused": 0, "empty": 1},
]


def losses(params, inputs):
    early = jnp.tanh(inputs @ params["stem"] + params["bias"])
    late = early + jnp.tanh(early @ params["late"]) + jnp.tanh(early @ params["wide"])[:, :64]
    hidden = (early, late, late * early)
    heads = zip(hidden, params["heads"], strict=True)
    nothing = jnp.sum(params["empty"])
    return tuple(nothing + jnp.mean((h @ head - k) ** 2) for k, (h, head) in enumerate(heads))


def grads_of(params, inputs, dense=False):
    grads = osgd_jax.task_grads(losses)(params, inputs)
    return osgd_jax.densify(grads) if dense else grads


def on_one_device(tx, dense=False, inputs=INPUTS):
    def step(params, inputs):
        values = losses(params, inputs)
        grads = grads_of(params, inputs, dense)
        return tx.update(grads, tx.init(params), params, losses=jnp.stack(values))

    return jax.jit(step)(PARAMS, inputs)


def on_eight(tx, dense=False, inputs=INPUTS, check_vma=True, mesh=MESH, axis="d"):
    def step(params, inputs):
        own = jax.lax.pcast(params, axis, to="varying") if check_vma else params
        values = jax.lax.pmean(jnp.stack(losses(own, inputs)), axis)
        grads = grads_of(own, inputs, dense)
        return tx.update(grads, tx.init(params), params, losses=values)

    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P(axis)), out_specs=P(), check_vma=check_vma
    )
    return jax.jit(mapped).lower(PARAMS, inputs).compile()


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), actual, expected
    )


def check_equal_to_one_device():
    for scope in SCOPES:
        # Dense gradients are told apart at run time, in two scopes.
        for dense in {False, scope in ("shared", "reach")}:
            tx = functools.partial(osgd_jax.orthogonalize, scope=scope)
            sharded = on_eight(tx(axis_name="d"), dense)(PARAMS, INPUTS)
            assert_close(sharded, on_one_device(tx(), dense))


def check_two_batches():
    def step(params, inputs, axis_name=None):
        own = jax.lax.pcast(params, "d", to="varying") if axis_name else params
        tx = osgd_jax.aggregate(weightings.modo(K), axis_name=axis_name)
        first, second = grads_of(own, inputs), grads_of(own, 2 * inputs, dense=True)
        return tx.update(first, tx.init(params), params, others=second)

    mapped = jax.shard_map(
        functools.partial(step, axis_name="d"), mesh=MESH, in_specs=(P(), P("d")), out_specs=P()
    )
    assert_close(jax.jit(mapped)(PARAMS, INPUTS), jax.jit(step)(PARAMS, INPUTS))


def check_other_numbers():
    """2, 4 and 8 devices, 1 to 5 losses, both precisions; rows ragged, tiny and long."""
    shapes = {"scalar": (), "tiny": (3,), "ragged": (5, 7), "long": (16, 1900), "late": (9,)}
    # Small integers, whose means are exact in any order: what is left is the balancing.
    cases = [
        {
            name: jnp.asarray(rng.integers(-4, 5, size=(8, k, *shape)), dtype)
            for name, shape in shapes.items()
        }
        for k, dtype in [*((k, jnp.float32) for k in range(1, 6)), (3, jnp.bfloat16)]
    ]

    def step(cases, axis_name=None):
        tx = osgd_jax.orthogonalize(axis_name=axis_name)

        def update(examples):
            rows = jax.tree.map(lambda leaf: leaf.mean(0), examples)
            count = len(rows["tiny"])
            tasks = dict.fromkeys(rows, range(count)) | {"late": range(count - 1, count)}
            grads = {
                name: osgd_jax.TaskRows(rows[name][tasks[name][0] :], tuple(tasks[name]), count)
                for name in rows
            }
            params = jax.tree.map(lambda leaf: leaf[0], rows)
            return tx.update(grads, tx.init(params), params)[0]

        return [update(examples) for examples in cases]

    expected = jax.jit(step)(cases)
    for count in (2, 4, 8):
        mesh = jax.make_mesh(
            (count,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
        )
        mapped = jax.shard_map(
            functools.partial(step, axis_name="d"), mesh=mesh, in_specs=P("d"), out_specs=P()
        )
        compiled = jax.jit(mapped).lower(cases).compile()
        assert "reduce-scatter" in compiled.as_text()
        jax.tree.map(assert_equal_up_to_rounding, compiled(cases), expected)


def assert_equal_up_to_rounding(actual, expected):
    assert actual.dtype == expected.dtype
    error = 32 * float(jnp.finfo(actual.dtype).eps)
    actual, expected = (np.asarray(each, np.float32) for each in (actual, expected))
    np.testing.assert_allclose(actual, expected, rtol=error, atol=error)


def check_other_ways():
    """A weighting with a state, of the losses; unchecked types; two mesh axes; random orders."""
    tx = functools.partial(osgd_jax.aggregate, weightings.uncertainty(K))
    expected = on_one_device(tx())
    assert_close(on_eight(tx(axis_name="d"))(PARAMS, INPUTS), expected)
    unchecked = on_eight(tx(axis_name="d"), check_vma=False)
    assert_close(unchecked(PARAMS, INPUTS), expected)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    over_two = on_eight(tx(axis_name=("x", "y")), mesh=mesh, axis=("x", "y"))
    assert_close(over_two(PARAMS, INPUTS), expected)
    tx = functools.partial(osgd_jax.osgd, 0.1, order="random", key=3)
    (updates, _), (expected, _) = (
        on_eight(tx(axis_name="d"))(PARAMS, INPUTS),
        on_one_device(tx()),
    )
    assert_close(updates, expected)


def check_same_weights_everywhere():
    """Bit for bit: a weighting that keeps the weights in its state."""
    orthogonal = weightings.orthogonal()

    def weigh(gramian, state, **kwargs):
        del state
        weights, _ = orthogonal.weigh(gramian, (), **kwargs)
        return weights, weights

    kept = weightings.Weighting(lambda: jnp.zeros(K), weigh, "row")
    tx = osgd_jax.aggregate(kept, axis_name="d")

    def step(params, inputs):
        own = jax.lax.pcast(params, "d", to="varying")
        _, state = tx.update(grads_of(own, inputs), tx.init(params), params)
        return jax.lax.pcast(state.weighting[None], "d", to="varying")

    mapped = jax.shard_map(step, mesh=MESH, in_specs=(P(), P("d")), out_specs=P("d"))
    weights = np.asarray(jax.jit(mapped)(PARAMS, INPUTS))
    assert weights.shape == (D, K)
    assert len({row.tobytes() for row in weights}) == 1
    assert (weights[0] != 1).any()


def check_nan_and_summed_gradients():
    inputs = INPUTS.copy()
    inputs[-1, 0] = np.nan  # on the last device only
    update, _ = on_eight(osgd_jax.orthogonalize(axis_name="d"), inputs=inputs)(PARAMS, inputs)
    assert all(np.isnan(update[name]).all() for name in ("stem", "bias", "late"))
    tx = osgd_jax.orthogonalize(axis_name="d")

    def step(params, inputs):
        return tx.update(grads_of(params, inputs), tx.init(params), params)

    mapped = jax.shard_map(step, mesh=MESH, in_specs=(P(), P("d")), out_specs=P())
    with pytest.raises(ValueError, match=r"the same on all its devices.*pcast"):
        jax.jit(mapped).lower(PARAMS, INPUTS)


def check_axis_name_forgotten():
    tx = osgd_jax.orthogonalize()
    with pytest.raises(ValueError, match=r"mesh axis 'd'.*pass axis_name='d'"):
        on_eight(tx)
    with pytest.raises(ValueError, match=r"check_vma=False.*Pass axis_name='d'"):
        on_eight(tx, check_vma=False)

    def averaged(params, inputs):
        grads = jax.lax.pmean(grads_of(params, inputs), "d")
        tx = osgd_jax.orthogonalize(axis_name="d")
        return tx.update(grads, tx.init(params), params)

    mapped = jax.shard_map(
        averaged, mesh=MESH, in_specs=(P(), P("d")), out_specs=P(), check_vma=False
    )
    assert_close(jax.jit(mapped)(PARAMS, INPUTS), on_one_device(tx))


def moved_bytes(compiled):
    """Bytes that each device sends, by kind, with the usual ring algorithms times D / (D - 1)."""
    sent = {"all-reduce": 0, "reduce-scatter": 0, "all-gather": 0}
    factor = {"all-reduce": 2, "reduce-scatter": D, "all-gather": 1}
    text = compiled.as_text()
    for result, kind in re.findall(r"= (.*?) (all-[a-z]+|reduce-scatter)(?:-start)?\(", text):
        for dtype, shape in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", result):
            size = math.prod(int(n) for n in shape.split(",") if n)
            sent[kind] += factor[kind] * size * int(dtype.lstrip("fsu")) // 8
    return sent


def check_bytes():
    def sgd(params, inputs):
        own = jax.lax.pcast(params, "d", to="varying")
        return jax.lax.pmean(jax.grad(lambda p: sum(losses(p, inputs)))(own), "d")

    mapped = jax.shard_map(sgd, mesh=MESH, in_specs=(P(), P("d")), out_specs=P())
    base = moved_bytes(jax.jit(mapped).lower(PARAMS, INPUTS).compile())
    used = {name: leaf for name, leaf in PARAMS.items() if name not in ("unused", "empty")}
    sizes = [leaf.size for leaf in jax.tree.leaves(used)]
    # The gradient of the unused array may be summed, too.
    assert 2 * 4 * sum(sizes) <= sum(base.values()) <= 2 * 4 * (sum(sizes) + 7)
    tx = osgd_jax.orthogonalize(axis_name="d")
    sent = moved_bytes(on_eight(tx))
    reach = osgd_jax.reach(losses)(PARAMS, INPUTS)
    del reach["unused"], reach["empty"]
    rows = [len(tasks) for tasks in jax.tree.leaves(reach, is_leaf=lambda n: isinstance(n, tuple))]
    in_full = int(np.dot(rows, sizes))
    # Two rows of `wide` in tiles, which all devices fill together; all other rows whole.
    tiled = -(-PARAMS["wide"].size // (4096 * D)) * 4096 * D
    assert sent["reduce-scatter"] == 2 * 4 * tiled
    assert sent["all-gather"] == 4 * tiled
    # With the largest entries [K] and the Gramian [K, K]; the losses are not used.
    whole = in_full - 2 * PARAMS["wide"].size
    assert sent["all-reduce"] == 2 * 4 * (whole + K + K * K)
    assert sum(sent.values()) <= 2 * 4 * in_full
    assert sum(sent.values()) <= (K + 1) / 2 * sum(base.values())


def check_row_memory():
    """A device holds its share of all rows, and few arrays in full size at a time."""
    depth, width = 8, 256
    layers = [jnp.eye(width)] * depth
    params = {"layers": layers, "heads": [jnp.ones((width, 1))] * K}

    def losses(params, x):
        for layer in params["layers"]:
            x = jnp.tanh(x @ layer)
        return tuple(jnp.mean((x @ head) ** 2) for head in params["heads"])

    tx = osgd_jax.orthogonalize(axis_name="d")

    def step(params, x):
        own = jax.lax.pcast(params, "d", to="varying")
        return tx.update(osgd_jax.task_grads(losses)(own, x), tx.init(params), params)[0]

    mapped = jax.shard_map(step, mesh=MESH, in_specs=(P(), P("d")), out_specs=P())
    compiled = jax.jit(mapped).lower(params, jnp.ones((16, width))).compile()
    layer_bytes = 4 * width**2
    heads_bytes = 4 * K * width
    allowed = K * depth * layer_bytes / D + 2 * layer_bytes + heads_bytes
    assert compiled.memory_analysis().temp_size_in_bytes <= allowed


if __name__ == "__main__":
    assert len(jax.devices()) == D
    check_equal_to_one_device()
    check_two_batches()
    check_other_numbers()
    check_other_ways()
    check_same_weights_everywhere()
    check_nan_and_summed_gradients()
    check_axis_name_forgotten()
    check_bytes()
    check_row_memory()
