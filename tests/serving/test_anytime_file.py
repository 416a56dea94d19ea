import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from osgd_jax import AnytimePredictor, nets
from tests.helpers.anytime_nets import Steps, evaluated, inputs

# What the docstring of the file's module says is enough to run a file without osgd_jax.
READER = """
import json, sys, zipfile
for name in ("osgd_jax", "flax", "optax"):
    sys.modules[name] = None
import jax, numpy as np
with zipfile.ZipFile(sys.argv[1]) as archive:
    manifest = json.loads(archive.read("manifest.json"))
    data = archive.read("weights.bin")
    weights = [
        np.frombuffer(data, w["dtype"], int(np.prod(w["shape"])), w["offset"]).reshape(w["shape"])
        for w in manifest["weights"]
    ]
    carry, outputs = [np.load(sys.argv[2])], []
    for stage in manifest["stages"]:
        run = jax.export.deserialize(bytearray(archive.read(stage["member"]))).call
        logits, fresh = run([weights[i] for i in stage["weights"]], carry)
        made = iter(fresh)
        carry = [next(made) if i is None else carry[i] for i in stage["passes"]]
        outputs.append(logits)
np.save(sys.argv[3], np.stack(outputs))
"""

USER = """
import sys
import numpy as np
from osgd_jax import AnytimePredictor
predictor = AnytimePredictor.load(sys.argv[1])
outputs = [output.logits for output in predictor.stream(np.load(sys.argv[2]))]
np.save(sys.argv[3], np.stack(outputs))
assert "anytime_nets" not in sys.modules
"""


@pytest.fixture(scope="module")
def net():
    return Steps()


@pytest.fixture(scope="module")
def path(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net.anytime"
    AnytimePredictor(net, combine="product").export(path, input_shape=(3, 2))
    return path


def streamed(predictor, x):
    return np.stack([output.logits for output in predictor.stream(x)])


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("combine", ["latest", "product"])
def test_a_loaded_predictor_does_what_the_exported_one_does(net, tmp_path, batch, combine):
    predictor, x = AnytimePredictor(net, combine=combine), inputs(batch)
    predictor.export(tmp_path / "net", input_shape=(3, 2))
    loaded = AnytimePredictor.load(tmp_path / "net")
    assert loaded.num_outputs == 3
    np.testing.assert_allclose(streamed(loaded, x), streamed(predictor, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        loaded.predict(x, confidence=0.7).exits, predictor.predict(x, confidence=0.7).exits
    )
    assert len(loaded.calibrate(x, repeats=2)) == 3
    assert loaded.predict(x, deadline=60.0).exits.tolist() == [2] * batch
    costs = predictor._multiply_adds(((3, 2), "float32"))
    assert loaded._multiply_adds(((3, 2), "float32")) == costs
    assert loaded.predict(x, budget=costs[1]).exits.tolist() == [1] * batch


def test_an_msdnet_streams_leaves_early_and_loads(tmp_path):
    net = nets.MSDNet(
        num_classes=3,
        in_channels=1,
        channels=4,
        growth_rate=2,
        growth_factors=(1, 2),
        bottleneck_factors=(1, 2),
        base=1,
        step=1,
        rngs=nnx.Rngs(0),
    )
    rng = np.random.default_rng(0)
    statistics = nnx.state(net, nnx.BatchStat)
    nnx.update(net, jax.tree.map(lambda v: v + rng.uniform(0.05, 0.3, v.shape), statistics))
    x = rng.normal(size=(8, 8, 8, 1)).astype(np.float32)
    view = nnx.view(net, deterministic=True, use_running_average=True)
    expected = np.stack(nnx.jit(lambda net, x: net(x))(view, x))
    predictor = AnytimePredictor(net)
    np.testing.assert_allclose(streamed(predictor, x), expected, rtol=1e-4, atol=1e-4)

    probabilities = np.asarray(jax.nn.softmax(expected, axis=-1)).max(-1)  # [output, example]
    confidence = float(np.median(probabilities[0]))
    sure = probabilities >= confidence
    sure[-1] = True
    clear = (np.abs(probabilities - confidence) > 1e-4).all(0)
    answer = predictor.predict(x, confidence=confidence)
    np.testing.assert_array_equal(answer.exits[clear], sure.argmax(0)[clear])
    assert 0 < np.count_nonzero(answer.exits == 0) < 8

    predictor.export(tmp_path / "net", input_shape=(8, 8, 1))
    loaded = AnytimePredictor.load(tmp_path / "net")
    np.testing.assert_allclose(streamed(loaded, x[:3]), expected[:, :3], rtol=1e-4, atol=1e-4)


def test_nets_of_images_in_half_precision(tmp_path):
    net = nets.WidthNestedResNet(
        num_classes=3,
        in_channels=1,
        widths=(4, 8),
        blocks=(1, 1),
        param_dtype=jnp.bfloat16,
        rngs=nnx.Rngs(0),
    )
    predictor = AnytimePredictor(net)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    expected = predictor.predict(x).logits
    predictor.export(tmp_path / "net")  # the shape is that of the prediction
    loaded = AnytimePredictor.load(tmp_path / "net")
    np.testing.assert_allclose(loaded.predict(x).logits, expected, rtol=0.05, atol=0.05)
    with pytest.raises(
        ValueError, match=r"x of shape \(2, 9, 8, 1\) must have the shape \[batch, 8, 8, 1\]"
    ):
        loaded.predict(np.zeros((2, 9, 8, 1), np.float32))


@pytest.mark.parametrize("script", [READER, USER], ids=["jax alone", "osgd_jax"])
def test_a_file_runs_in_a_process_without_the_net(net, tmp_path, script):
    x = inputs(5)
    AnytimePredictor(net).export(tmp_path / "net", input_shape=(3, 2))
    np.save(tmp_path / "x.npy", x)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    files = [str(tmp_path / name) for name in ("net", "x.npy", "out.npy")]
    command = [sys.executable, "-c", textwrap.dedent(script), *files]
    subprocess.run(command, check=True, env=environment)
    expected = np.stack(evaluated(net, x))
    np.testing.assert_allclose(np.load(files[2]), expected, rtol=1e-5, atol=1e-6)


def test_a_file_is_for_all_platforms_and_holds_each_weight_once(tmp_path):
    net = Steps(length=5000)
    AnytimePredictor(net).export(tmp_path / "net", input_shape=(5000, 2))
    with zipfile.ZipFile(tmp_path / "net") as archive:
        manifest = json.loads(archive.read("manifest.json"))
        blobs = [archive.read(entry["member"]) for entry in manifest["stages"]]
        stored = archive.getinfo("weights.bin").file_size
    arrays = jax.tree.leaves(nnx.state(net, (nnx.Param, nnx.BatchStat)))
    assert stored == sum(array.nbytes for array in arrays) > 500_000
    assert sum(map(len, blobs)) < 100_000
    for blob in blobs:
        stage = export.deserialize(bytearray(blob))
        assert stage.platforms == ("cpu", "cuda", "tpu")
        assert str(stage.in_avals[-1].shape[0]) == "batch"


def test_double_precision_is_needed_where_it_was_used(tmp_path, x64):
    x = inputs().astype(np.float64)
    predictor = AnytimePredictor(Steps())
    expected = streamed(predictor, x)
    predictor.export(tmp_path / "net")
    loaded = AnytimePredictor.load(tmp_path / "net")
    np.testing.assert_allclose(streamed(loaded, x), expected, rtol=1e-12)
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"computes in float64: load it under jax.enable_x64"),
    ):
        AnytimePredictor.load(tmp_path / "net")


def test_any_damage_is_noticed(path, tmp_path):
    whole, copy = path.read_bytes(), tmp_path / "copy"
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in (0, 1, 20, 60, 200, len(whole) // 2, len(whole) - 1)]
    damaged += [whole + b"\0", b"PK" + whole, b"\x93NUMPY" * 50]
    for position in [*range(0, 110, 5), *rng.integers(0, len(whole), 40)]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    said = re.compile(r"was not written by|is damaged or cut short|has the format")
    for content in damaged:
        copy.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            AnytimePredictor.load(copy)


def test_another_version_is_refused(path, tmp_path):
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes().replace(b"format 1\n", b"format 2\n", 1))
    with pytest.raises(ValueError, match="has the format '2', this version of osgd_jax reads 1"):
        AnytimePredictor.load(copy)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        AnytimePredictor.load(tmp_path / "none")


def test_a_failed_export_leaves_what_was_there(path, tmp_path, monkeypatch, net):
    target = tmp_path / "net"
    target.write_bytes(b"before")

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            AnytimePredictor(net).export(target, input_shape=(3, 2))
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["net"]
    AnytimePredictor(net).export(target, input_shape=(3, 2))
    assert os.listdir(tmp_path) == ["net"]
    assert AnytimePredictor.load(target).num_outputs == 3


def test_an_exported_predictor_can_be_exported_again(path, tmp_path):
    loaded, x = AnytimePredictor.load(path), inputs()
    loaded.export(tmp_path / "again", input_shape=(3, 2))
    again = AnytimePredictor.load(tmp_path / "again")
    np.testing.assert_array_equal(streamed(again, x), streamed(loaded, x))


def test_export_needs_to_know_the_shape(net, tmp_path):
    predictor = AnytimePredictor(net)
    with pytest.raises(ValueError, match=r"input_shape must be given.* run on examples of 0 kinds"):
        predictor.export(tmp_path / "net")
    with pytest.raises(ValueError, match=r"input_shape=\(3, 1\) must be \[length, 2\]"):
        predictor.export(tmp_path / "net", input_shape=(3, 1))
    assert not os.listdir(tmp_path)
