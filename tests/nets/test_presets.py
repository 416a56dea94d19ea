from pathlib import Path

import pytest
from flax import nnx

from osgd_jax.nets import presets

_STORED = (Path(__file__).parents[2] / "docs" / "presets_table.md").read_text()


def test_stored_table_is_current():
    rows = _STORED.splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == list(presets.PRESETS)
    families = ("branched-20", "width-20", "depth-26", "nested-26", "msdnet-budgeted-10")
    others = "imagenet-width-50", "lm-width-10m"
    current = presets.table(*(f"cifar-{name}" for name in families), *others)
    assert set(current.splitlines()) <= set(rows)


@pytest.mark.slow
def test_whole_stored_table_is_current():
    assert presets.table() + "\n" == _STORED


def test_table():
    header, rule, row = presets.table("cifar-branched-20").splitlines()
    assert header.count("|") == rule.count("|") == row.count("|") == 5
    assert row.startswith("| `cifar-branched-20` | 32×32×3 | ")
    assert row.count(",") == 4


@pytest.mark.parametrize(
    "name", [n for n in presets.PRESETS if "msdnet" not in n and "lm-" not in n]
)
def test_names_say_the_number_of_layers(name):
    arguments = presets.PRESETS[name].arguments
    doublings = 2 if "depth" in name or "nested" in name else 0
    convolutions = 3 if arguments.get("block") == "bottleneck" else 2
    depth = sum(arguments["blocks"]) * 2**doublings * convolutions + 2
    assert name.endswith(f"-{depth}")


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if "lm-" in name])
def test_language_models_have_the_layers_of_their_namesakes(name):
    arguments = presets.PRESETS[name].arguments
    doublings = arguments["num_outputs"] - 1 if "depth" in name or "nested" in name else 0
    layers = arguments["depth"] * 2**doublings
    assert (layers, arguments["width"]) == ((6, 384) if name.endswith("10m") else (12, 768))


@pytest.mark.parametrize("name", ["cifar-width-20", "cifar-depth-26", "imagenet-nested-50"])
def test_presets_can_be_changed(name):
    net = nnx.eval_shape(lambda: presets.make(name, num_classes=7, rngs=nnx.Rngs(0)))
    assert net.num_classes == 7
    assert isinstance(net, presets.PRESETS[name].make)


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="name='resnet' must be one of cifar-branched-20"):
        presets.make("resnet", rngs=nnx.Rngs(0))
