"""Nets, predictors and generators on meshes, which `test_placement.py` runs on eight CPU devices.

Each case compares with the same computation on one device. The arguments name what to check.
"""

import contextlib
import pickle
import sys
import tempfile
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import osgd_jax
from osgd_jax import AnytimeGenerator, AnytimePredictor
from tests.helpers.anytime_nets import Steps, evaluated, inputs
from tests.nets.small_nets import FAMILIES, build, example_for, randomise

MESHES = {
    kind: jax.make_mesh((8,), ("data",), axis_types=(kind,))
    for kind in (AxisType.Auto, AxisType.Explicit)
}
TX = osgd_jax.osgd(0.1, momentum=0.9)


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), found, expected
    )


def split(array, mesh):
    """Split the last axis that can be, as fully sharded training does."""
    for axis in reversed(range(array.ndim)):
        if array.shape[axis] % 8 == 0:
            return jax.device_put(array, NamedSharding(mesh, P(*[None] * axis, "data")))
    return replicate(array, mesh)


def replicate(array, mesh):
    return jax.device_put(array, NamedSharding(mesh, P()))


def on_mesh(net, kind, place):
    placed = nnx.clone(net)
    nnx.update(placed, jax.tree.map(lambda leaf: place(leaf, MESHES[kind]), nnx.state(placed)))
    return placed


def training_step(graphdef, tokens):
    """Give a compiled `(params, rest, x) → (losses, params, rest)`."""

    def losses_of(params, rest, x):
        net = nnx.merge(graphdef, params, rest, copy=True)
        outputs = net(x)
        if tokens:
            entropy = optax.softmax_cross_entropy_with_integer_labels
            losses = tuple(entropy(logits[:, :-1], x[:, 1:]).mean() for logits in outputs)
        else:
            losses = tuple(jnp.mean(logits**2) for logits in outputs)
        return losses, nnx.state(net, nnx.BatchStat)

    @jax.jit
    def step(params, rest, x):
        grads_of = osgd_jax.value_and_task_grads(losses_of, has_aux=True)
        (losses, rest), grads = grads_of(params, rest, x)
        updates, _ = TX.update(grads, TX.init(params), params)
        return losses, optax.apply_updates(params, updates), rest

    return step


def check_training(family, kinds=tuple(MESHES), places=(replicate, split), **sizes):
    net = randomise(build(family, 1, **sizes))
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    x = example_for(family, batch=8).astype(jnp.int32 if FAMILIES[family].tokens else jnp.float32)
    step = training_step(graphdef, FAMILIES[family].tokens)
    expected = step(params, rest, x)
    for kind in kinds:
        mesh = MESHES[kind]
        for place in places:
            placed = jax.tree.map(lambda leaf: place(leaf, mesh), (params, rest))  # noqa: B023
            found = step(*placed, jax.device_put(x, NamedSharding(mesh, P("data"))))
            close(found, expected)
            if kind == AxisType.Explicit:
                for new, old in zip(*map(jax.tree.leaves, (found[1:], placed)), strict=True):
                    assert new.sharding.is_equivalent_to(old.sharding, old.ndim)


def contexts():
    """Give, one after the other, what the caller may have around a call."""
    yield contextlib.nullcontext()
    yield jax.default_device(jax.devices()[2])
    yield from map(jax.set_mesh, MESHES.values())  # begins with the call


def everywhere(x):
    """Give an array wherever it can be: on the host, on devices, over meshes."""
    places = [NamedSharding(mesh, spec) for mesh in MESHES.values() for spec in (P("data"), P())]
    places += [jax.devices()[0], jax.devices()[3]]
    placed = [jax.device_put(x, place) for place in places]
    # These keep the type that they have on the mesh.
    placed += [jax.device_put(each, jax.devices()[0]) for each in placed[:4]]
    return [x, jnp.asarray(x), *placed]


def check_order_of_calls():
    """Whatever comes first, whatever comes next is answered as well."""
    net, x = Steps(num_outputs=2), inputs(8)
    expected = evaluated(net, x)
    for first in everywhere(x):
        predictor = AnytimePredictor(net)
        for each in (first, *everywhere(x)):
            close(predictor.predict(each).logits, expected[-1])


def check_predictor(predictor, x, expected):
    for context in contexts():
        with context:
            for output, logits in zip(predictor.stream(x), expected, strict=True):
                close(output.logits, logits)
            answer = predictor.predict(x, confidence=[0.45, None])
            close(answer.logits, np.stack(expected)[answer.exits, np.arange(len(x))])
            predictor.calibrate(x, repeats=1)
            assert predictor.predict(x, deadline=60.0).exits.tolist() == [1] * len(x)
            assert predictor.predict(x, budget=1e9).exits.tolist() == [1] * len(x)


def check_predictors(kind, place):
    """A predictor, its copy and its file, from a net on a mesh and in any context."""
    net, x = Steps(num_outputs=2), inputs(8)
    expected, placed = evaluated(net, x), on_mesh(net, kind, place)
    sharded = jax.device_put(x, NamedSharding(MESHES[kind], P("data")))
    with jax.set_mesh(MESHES[kind]), tempfile.TemporaryDirectory() as folder:
        predictor = AnytimePredictor(placed)
        predictor.export(Path(folder) / "net", input_shape=x.shape[1:])
        check_file(Path(folder) / "net")
        loaded = AnytimePredictor.load(Path(folder) / "net")
    check_predictor(pickle.loads(pickle.dumps(predictor)), sharded, expected)
    check_predictor(loaded, sharded, expected)
    loaded = pickle.loads(pickle.dumps(loaded))
    for each in everywhere(x):
        close(loaded.predict(each).logits, expected[-1])


def check_file(path):
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith("stage-"):
                assert export.deserialize(bytearray(archive.read(name))).nr_devices == 1


def check_generators(kind, place):
    """A generator, its copy and its file, from a net on a mesh and in any context."""
    net = randomise(build("width-nested-transformer", 1, width=16, num_heads=2))
    prompts, drawn = [[0, 1], [2, 0]], {"temperature": 2.0}
    keys = jax.random.split(jax.random.key(0), 2)
    limits = [{}, {"confidence": 0.4}, {"deadline": 60.0}]
    plain = AnytimeGenerator(net, max_length=4)
    expected = [plain.generate(prompts, 2, key=keys, **drawn, **limit).tokens for limit in limits]
    text = AnytimeGenerator(on_mesh(net, kind, place), max_length=4)
    with jax.set_mesh(MESHES[kind]), tempfile.TemporaryDirectory() as folder:
        text.export(Path(folder) / "net")
        check_file(Path(folder) / "net")
        loaded = AnytimeGenerator.load(Path(folder) / "net")
    placed = [keys, *(replicate(keys, mesh) for mesh in MESHES.values())]
    placed.append(jax.device_put(keys, jax.devices()[3]))
    for each in (pickle.loads(pickle.dumps(text)), loaded):
        for context, key in zip(contexts(), placed, strict=True):
            with context:
                for limit, tokens in zip(limits, expected, strict=True):
                    found = each.generate(jnp.asarray(prompts), 2, key=key, **drawn, **limit)
                    np.testing.assert_array_equal(found.tokens, tokens)


def check_costs(kind):
    for family in FAMILIES:
        net, x = build(family, 1, **({} if FAMILIES[family].tokens else {"norm": "group"})), 0
        x = example_for(family)
        expected = osgd_jax.cost(net, x.shape[1:])
        with jax.set_mesh(MESHES[kind]):
            assert osgd_jax.cost(on_mesh(net, kind, split), x.shape[1:]) == expected


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    match sys.argv[1]:
        case "training":
            check_training("branched", [AxisType.Explicit], [split], widths=(8,))
            check_training("branched-transformer", [AxisType.Explicit], [split])
        case "training of all":
            for family in FAMILIES:
                check_training(family, [AxisType.Explicit])
            check_training("nested", [AxisType.Explicit], [split], norm="group", remat=True)
            check_training("nested-transformer", [*MESHES], [split], remat=True)
        case "predictors":
            check_order_of_calls()
            check_predictors(AxisType.Explicit, split)
            check_predictors(AxisType.Auto, replicate)
        case "generators":
            check_generators(AxisType.Explicit, split)
        case "costs":
            check_costs(AxisType.Explicit)
