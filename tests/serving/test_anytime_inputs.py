"""Inputs of a predictor: integers, copies in other processes, and refused ones."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from osgd_jax import (
    AnytimePredictor,
    OutputCost,
    cost,
    nets,
)
from tests.helpers.anytime_nets import Given, Steps, Tokens, evaluated, inputs

IDS = np.random.default_rng(0).integers(0, 11, (8, 6))


def image_net():
    sizes = {"num_classes": 3, "in_channels": 1, "widths": (4,), "blocks": (2,), "num_outputs": 2}
    return nets.BranchedResNet(**sizes, norm="group", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_token_ids_are_taken(dtype, tmp_path):
    net, ids = Tokens(), IDS.astype(dtype)
    expected = [np.asarray(logits) for logits in net(jnp.asarray(ids))]
    predictor = AnytimePredictor(net)
    assert len(predictor.calibrate(ids, repeats=2)) == 2
    for output, logits in zip(predictor.stream(ids), expected, strict=True):
        np.testing.assert_allclose(output.logits, logits, rtol=1e-5, atol=1e-6)
    assert predictor.predict(ids, budget=6 * 4 * 11).exits.tolist() == [0] * 8
    exits = predictor.predict(ids, confidence=0.3, rule="agreement").exits
    predictor.export(tmp_path / "seen")
    loaded = AnytimePredictor.load(tmp_path / "seen")
    np.testing.assert_allclose(loaded.predict(ids).logits, expected[-1], rtol=1e-5, atol=1e-6)
    again = loaded.predict(ids, confidence=0.3, rule="agreement").exits
    np.testing.assert_array_equal(again, exits)
    with pytest.raises(ValueError, match="x has the dtype float64 and must be integers"):
        loaded.predict(ids.astype(float))


def test_a_file_for_token_ids_needs_no_example(tmp_path):
    AnytimePredictor(Tokens()).export(tmp_path / "net", input_shape=(6,))
    loaded = AnytimePredictor.load(tmp_path / "net")
    np.testing.assert_allclose(loaded.predict(IDS).logits, Tokens()(IDS)[-1], rtol=1e-5, atol=1e-6)


def test_cost_of_nets_of_token_ids():
    # An embedding of 11 × 4, and heads of 4 × 11 and a bias, for each of six tokens.
    expected = [OutputCost(44 + 55, 6 * 44), OutputCost(44 + 2 * 55, 2 * 6 * 44)]
    assert cost(Tokens(), (6,)) == expected
    assert cost(Tokens(), np.array([6]), dtype=np.uint8) == expected
    with pytest.raises(ValueError, match="must be an integer"):
        cost(Tokens(), (6,), dtype=float)


def test_integers_stay_refused_where_a_net_takes_floats():
    x = np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="x has the dtype uint8 and must be floating, scaled"):
        AnytimePredictor(image_net()).predict(x)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, "pickle"], ids=["copy", "deepcopy", "pickle"]
)
def test_a_copy_does_what_the_predictor_does(duplicate, tmp_path):
    if duplicate == "pickle":
        duplicate = lambda predictor: pickle.loads(pickle.dumps(predictor))  # noqa: E731
    x = inputs(16)
    made = AnytimePredictor(Steps(), combine="product")
    made.calibrate(x, repeats=1)
    made.export(tmp_path / "net")
    for predictor in (made, AnytimePredictor.load(tmp_path / "net")):
        copied = duplicate(predictor)
        expected = predictor.predict(x, confidence=0.7)
        found = copied.predict(x, confidence=0.7)
        np.testing.assert_array_equal(found.exits, expected.exits)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert copied.latencies == predictor.latencies
        copied.export(tmp_path / "copy")  # it knows the shape, as the predictor does
        again = AnytimePredictor.load(tmp_path / "copy").predict(x).logits
        np.testing.assert_allclose(again, copied.predict(x).logits, rtol=1e-5, atol=1e-5)


def test_a_pickle_runs_in_another_process(tmp_path):
    predictor, x = AnytimePredictor(image_net()), np.ones((3, 8, 8, 1), np.float32)
    (tmp_path / "predictor").write_bytes(pickle.dumps(predictor))
    script = "import pickle, sys, numpy as np\n"
    script += "predictor = pickle.loads(open(sys.argv[1], 'rb').read())\n"
    script += "np.save(sys.argv[2], predictor.predict(np.ones((3, 8, 8, 1), np.float32)).logits)"
    command = [sys.executable, "-c", script, tmp_path / "predictor", tmp_path / "logits.npy"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    logits = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(logits, predictor.predict(x).logits, rtol=1e-5, atol=1e-6)


def test_a_net_need_not_say_its_shape():
    x = np.random.default_rng(0).normal(size=(4, 3, 2, 5)).astype(np.float32)
    for output, expected in zip(AnytimePredictor(Given()).stream(x), x.swapaxes(0, 1), strict=True):
        np.testing.assert_array_equal(output.logits, expected)
    with pytest.raises(ValueError, match=r"shape \(0, 3, 2, 5\) must have the shape \[batch, …\]"):
        AnytimePredictor(Given()).predict(x[:0])


def test_shapes_may_be_integers_of_numpy(tmp_path):
    shape = (np.int64(8), np.int32(8), np.int64(1))
    AnytimePredictor(image_net()).export(tmp_path / "net", input_shape=shape)
    x = np.ones((2, 8, 8, 1), np.float32)
    logits = AnytimePredictor.load(tmp_path / "net").predict(x).logits
    np.testing.assert_allclose(logits, evaluated(image_net(), x)[-1], rtol=1e-5, atol=1e-6)
    assert cost(image_net(), shape) == cost(image_net(), (8, 8, 1))


WRONG_CALLS = [
    (
        lambda p, x: jax.jit(lambda x: p.predict(x).logits)(x),
        "x is traced: predictors and generators run",
    ),
    (lambda p, x: jax.vmap(lambda x: p.predict(x).logits)(x[None]), "x is traced"),
    (lambda p, x: jax.grad(lambda x: p.predict(x).logits.sum())(x), "x is traced"),
    (lambda p, x: jax.jit(lambda x: list(p.stream(x)))(x), "x is traced"),
    (lambda p, x: p.predict(None), "x has the dtype object and must be floating"),
    (lambda p, x: p.predict("image.png"), "x has the dtype <U9 and must be floating"),
    (lambda p, x: p.predict(x > 0), "x has the dtype bool and must be floating"),
    (lambda p, x: p.predict(x + 0j), "x has the dtype complex64 and must be floating"),
    (lambda p, x: p.predict([[1.0], [1.0, 2.0]]), "`x` must be an array: setting an array element"),
    (lambda p, x: p.predict(x, deadline="0.1"), "deadline='0.1' must be 0 seconds or more"),
    (lambda p, x: p.predict(x, deadline=[0.1]), r"deadline=\[0.1\] must be 0 seconds or more"),
    (lambda p, x: p.predict(x, budget="1e9"), "budget='1e9' must be at least"),
    (lambda p, x: p.predict(x, budget=[1e9] * 2), "budget=.* must be at least"),
    (lambda p, x: p.calibrate(x, repeats=2.5), "repeats=2.5 must be an integer of at least 1"),
    (lambda p, x: p.calibrate(x, repeats="9"), "repeats='9' must be an integer"),
    (lambda p, x: AnytimePredictor(None), "net is a NoneType without num_outputs; it must be"),
    (lambda p, x: AnytimePredictor(nets.BranchedResNet), "net.num_outputs=.* must be an integer"),
    (lambda p, x: AnytimePredictor(Steps(), combine=None), "combine=None must be 'latest' or"),
    (lambda p, x: AnytimePredictor(Steps(), combine=["latest"]), r"combine=\['latest'\] must be"),
    (lambda p, x: cost(None, (8, 8, 1)), "net is a NoneType without num_outputs"),
    (lambda p, x: cost(image_net(), 8), "input_shape=8 must be a sequence, the shape of one"),
    (lambda p, x: cost(image_net(), (8.0, 8, 1)), r"input_shape\[0\]=8.0 must be an integer"),
    (lambda p, x: cost(image_net(), (8, 0, 1)), r"input_shape\[1\]=0 must be an integer"),
    (lambda p, x: cost(image_net(), "881"), r"input_shape\[0\]='8' must be an integer"),
]


@pytest.mark.parametrize(("call", "message"), WRONG_CALLS, ids=[words for _, words in WRONG_CALLS])
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(AnytimePredictor(image_net()), jnp.ones((2, 8, 8, 1)))


WRONG_FILES = [
    ({"input_shape": (8.0, 8, 1)}, r"input_shape\[0\]=8.0 must be an integer of at least 1"),
    ({"input_shape": (8.0, 1)}, r"input_shape\[0\]=8.0 must be an integer of at least 1"),
    ({"input_shape": 8}, "input_shape=8 must be a sequence, the shape of one example"),
    ({"input_shape": (-8, 8, 1)}, r"input_shape\[0\]=-8 must be an integer of at least 1"),
    ({"input_shape": (8, 1)}, r"input_shape=\(8, 1\) must be \[height, width, 1\]"),
    ({"path": 3}, "path=3 must be a path, a str or pathlib.Path"),
    ({"path": b"net"}, "path=b'net' must be a path"),
    ({"path": "."}, "path='.' is a folder; add the name of a file"),
    ({"path": "missing/net"}, "path='missing/net' must be in a folder that exists; make 'missing'"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_FILES, ids=[w for _, w in WRONG_FILES])
def test_wrong_arguments_of_export_are_named(wrong, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"path": "net", "input_shape": (8, 8, 1), **wrong}
    with pytest.raises(ValueError, match=message):
        AnytimePredictor(image_net()).export(**arguments)
    assert not list(tmp_path.iterdir())


def test_wrong_paths_of_load_are_named():
    with pytest.raises(ValueError, match="path=3 must be a path"):
        AnytimePredictor.load(3)
    with pytest.raises(ValueError, match=r"path='.*' is a folder"):
        AnytimePredictor.load(Path(__file__).parent)
