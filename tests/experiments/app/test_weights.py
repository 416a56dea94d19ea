"""Weights of another run, whose classes are found by their names."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.app import data_record, nets
from experiments.app.config import TrainConfig
from experiments.app.data import Dataset
from experiments.app.programs import Trained
from experiments.app.weights import start_from

_CLASSES = ("ant", "bee", "cat", "dog", "emu")
_ORDER = [3, 0, 4, 2, 1]


def _dataset(classes=_CLASSES, **changes):
    made = Dataset("insects", len(classes), *(None,) * 3, input_shape=(8, 8, 1), classes=classes)
    return dataclasses.replace(made, **changes)


_FAMILIES = [
    pytest.param(family, marks=[pytest.mark.slow] * (family == "msdnet")) for family in nets.NETS
]


@pytest.mark.parametrize("family", _FAMILIES)
def test_logits_follow_their_classes_into_another_order(tmp_path, family):
    sizes = nets.Sizes(family, 1, widths=None if family == "msdnet" else (4,))
    there = nets.make_net(sizes, _dataset(), nnx.Rngs(0))
    trained = Trained(TrainConfig(tmp_path, net=sizes), _dataset(), there, None)  # pyright: ignore[reportArgumentType] - its state is not read
    dataset = _dataset(tuple(_CLASSES[place] for place in _ORDER))
    here = nets.make_net(sizes, dataset, nnx.Rngs(1))
    start_from(here, dataset, trained)
    for net in (there, here):
        net.eval()
    inputs = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    for new, old in zip(here(inputs), there(inputs), strict=True):
        np.testing.assert_array_equal(new, old[:, np.array(_ORDER)])
        assert len(np.unique(np.asarray(old)[0])) == len(_CLASSES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("ant", "bee", "cat", "dog", "Emu")}, ["net lacks: Emu", "of the net: emu"]),
        (
            {"classes": (*_CLASSES, "fly"), "num_classes": 6},
            ["has classes that the net lacks: fly"],
        ),
        ({"classes": _CLASSES[:4], "num_classes": 4}, ["lacks classes of the net: emu"]),
        ({"classes": (), "num_classes": 5}, ["net lacks: 0, 1, 2, 3, 4", "of the net: ant, bee"]),
        ({"dtype": "uint16"}, ["has type of numbers uint16, the net float32"]),
        ({"input_shape": (8, 8, 3)}, ["shape of an example (8, 8, 3), the net (8, 8, 1)"]),
        ({"input_shape": (16, 16, 1)}, ["shape of an example (16, 16, 1)"]),
        ({"input_shape": (8,)}, ["has vocabulary 5, the net None"]),
    ],
)
def test_data_that_a_net_does_not_take_is_refused_with_all_differences(monkeypatch, changes, words):
    monkeypatch.setattr(data_record.data, "load", lambda _: _dataset(**changes))
    with pytest.raises(ValueError, match="data=other does not fit the net") as refused:
        data_record.load_as(_dataset(), data_record.Source("other"), "data=other")
    for each in words:
        assert each in str(refused.value)


def test_weights_may_move_to_images_of_another_size(monkeypatch):
    larger = _dataset(input_shape=(16, 16, 1))
    monkeypatch.setattr(data_record.data, "load", lambda _: larger)
    source = data_record.Source("larger")
    assert data_record.load_as(_dataset(), source, "start_from=run", any_size=True) == larger


def test_any_data_is_standardised_as_the_net_knows_it():
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 1))
    known = _dataset(mean=(100.0,), deviation=(20.0,))
    as_read = _dataset(mean=(90.0,), deviation=(30.0,))
    before = _dataset(standardised=data_record.Raw("float32", (90.0,), (30.0,)))
    for dataset, inputs in ((as_read, pixels), (before, (pixels - 90) / 30)):
        found = data_record.standardised_as(dataset, known.raw).standardise(inputs)
        np.testing.assert_allclose(found, (pixels - 100) / 20, rtol=1e-4, atol=1e-5)
