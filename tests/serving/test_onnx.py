"""The results of onnxruntime on the ONNX files equal the predictor's."""

import importlib.util
import sys

import numpy as np
import pytest

from osgd_jax import AnytimePredictor
from tests.helpers.anytime_nets import Steps, Tokens, inputs
from tests.nets.small_nets import IMAGE_FAMILIES as FAMILIES
from tests.nets.small_nets import build, randomise

# jax2onnx uses what flax and jax call deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")
present = all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnxruntime"))
converted = pytest.mark.skipif(not present, reason="needs the extra `onnx`; see `make test-onnx`")


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run_stages(folder, x):
    """Yield the logits of each stage, fed by the names of its inputs."""
    seen = {"x": x}
    for k in range(len(list(folder.glob("stage-*.onnx")))):
        stage = session(folder / f"stage-{k}.onnx")
        names = [output.name for output in stage.get_outputs()]
        fed = {value.name: seen[value.name] for value in stage.get_inputs()}
        made = dict(zip(names, stage.run(None, fed), strict=True))
        assert not set(made) & set(seen)
        seen |= made
        yield made[f"logits_{k}"]


def check(predictor, folder, shape, xs):
    predictor.export_onnx(folder, input_shape=shape)
    whole = session(folder / "all.onnx")
    assert [value.name for value in whole.get_inputs()] == ["x"]
    names = [f"logits_{k}" for k in range(predictor.num_outputs)]
    assert [value.name for value in whole.get_outputs()] == names
    for x in xs:
        expected = [output.logits for output in predictor.stream(x)]
        for found in (whole.run(None, {"x": x}), list(run_stages(folder, x))):
            for logits, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-4)


@converted
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("norm", "spatial_dims"), [("batch", 2), ("group", 1)])
def test_every_family(family, norm, spatial_dims, tmp_path):
    net = randomise(build(family, 2, norm=norm, spatial_dims=spatial_dims))
    shape = (*(7, 6)[:spatial_dims], 2)
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(batch, *shape)).astype(np.float32) for batch in (1, 5)]
    check(AnytimePredictor(net), tmp_path / "made" / "net", shape, xs)


@converted
def test_a_net_of_ones_own_with_the_product_of_its_outputs(tmp_path):
    predictor = AnytimePredictor(Steps(), combine="product")
    check(predictor, tmp_path, (3, 2), [inputs(1), inputs(9)])


@converted
def test_token_ids(tmp_path):
    ids = np.random.default_rng(0).integers(0, 11, (4, 6), dtype=np.int32)
    check(AnytimePredictor(Tokens()), tmp_path, (6,), [ids[:1], ids])


def test_what_cannot_be_converted_is_said(tmp_path, monkeypatch):
    predictor = AnytimePredictor(Steps())
    predictor.export(tmp_path / "net", input_shape=(3, 2))
    with pytest.raises(ValueError, match="loaded from a file, which holds no net"):
        AnytimePredictor.load(tmp_path / "net").export_onnx(tmp_path / "onnx")
    with pytest.raises(ValueError, match="folder=3 must be a path"):
        predictor.export_onnx(3)
    with pytest.raises(ValueError, match=r"folder='.*' is a file; name a folder"):
        predictor.export_onnx(tmp_path / "net")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'osgd-jax\[onnx\]'"):
        predictor.export_onnx(tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
