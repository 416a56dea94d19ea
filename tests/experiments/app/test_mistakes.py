"""Confusion matrices, figures of classes and wrong examples, by hand and of a folder of images."""

import csv
import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments.app import data, methods, nets, programs
from experiments.app.config import RunSettings, TrainConfig
from experiments.app.evaluation.mistakes import Mistakes
from experiments.app.evaluation.pictures import draw_confusion
from experiments.app.evaluation.tables import tables
from experiments.app.training import train
from tests.experiments.running import finish, refuse, summary

_CLASSES = ("cat", "[b]dog", "$emu")


def _probabilities(predicted, probability):
    """Return probabilities: the predicted class's, and equal shares of the rest."""
    predicted, probability = np.array(predicted), np.array(probability)[..., None]
    others = (1 - probability) / (len(_CLASSES) - 1)
    return np.where(np.arange(len(_CLASSES)) == predicted[..., None], probability, others)


@pytest.fixture(scope="module")
def by_hand():
    predicted = [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    probability = [[0.9, 0.6, 0.7, 0.8, 0.5], [0.9, 0.8, 0.7, 0.6, 0.95]]
    probabilities = _probabilities(predicted, probability)
    labels = np.array([0, 0, 1, 1, 1])
    return Mistakes.find(probabilities, labels, _CLASSES, list("abcde"))


def test_figures_by_hand(by_hand):
    np.testing.assert_array_equal(
        by_hand.confusion, [[[1, 1, 0], [2, 1, 0], [0, 0, 0]], [[2, 0, 0], [0, 3, 0], [0, 0, 0]]]
    )
    first, last = by_hand.described(0), by_hand.described(1)
    figures = [[each[name] for name in ("examples", "accuracy", "predicted", "precision")]
               for each in first["classes"]]  # fmt: skip
    assert figures == [[2, 1 / 2, 3, 1 / 3], [3, 1 / 3, 2, 1 / 2], [0, None, 0, None]]
    assert first["wrong"] == [
        {"example": "d", "true": "[b]dog", "predicted": "cat", "probability": 0.8},
        {"example": "b", "true": "cat", "predicted": "[b]dog", "probability": 0.6},
        {"example": "e", "true": "[b]dog", "predicted": "cat", "probability": 0.5},
    ]
    assert first["most_confused"] == [
        {"true": "[b]dog", "predicted": "cat", "examples": 2},
        {"true": "cat", "predicted": "[b]dog", "examples": 1},
    ]
    assert last["wrong"] == last["most_confused"] == []


def test_names_are_printed_and_drawn_as_they_are(by_hand, tmp_path):
    outputs = [
        {"accuracy": 0.5, "calibration_error": 0.1, "multiply_adds": 1, "parameters": 1}
        | by_hand.described(k)
        for k in (1, 0)
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    for table in tables({"examples": 5, "step": 1, "outputs": outputs}):
        console.print(table)
    printed = console.export_text()
    assert "[b]dog" in printed
    assert "$emu" in printed
    draw_confusion(by_hand, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5_000


def test_a_thousand_classes_stay_readable(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1000, 3000)
    probabilities = rng.dirichlet(np.full(1000, 0.01), (2, 3000))
    classes = tuple(f"class {c}" for c in range(1000))
    found = Mistakes.find(probabilities, labels, classes, range(3000))
    described = found.described(0)
    assert described["confusion"] is None
    assert len(described["classes"]) == 1000
    assert len(described["most_confused"]) == 20
    wrong = int((probabilities[0].argmax(-1) != labels).sum())
    assert described["wrong_examples"] == wrong > 2000
    assert len(described["wrong"]) == 1000
    found.write(tmp_path / "evaluation")
    with np.load(tmp_path / "evaluation-confusion.npz") as matrices:
        np.testing.assert_array_equal(matrices["confusion"], found.confusion)
        assert tuple(matrices["classes"]) == classes
    assert (tmp_path / "evaluation-confusion.npz").stat().st_size < 100_000
    rows = list(csv.DictReader((tmp_path / "evaluation-wrong.csv").read_text().splitlines()))
    assert sum(row["output"] == "1" for row in rows) == wrong


def _add(folder, count, seed, names=("cat", "dog")):
    """Images of noise, the first channel of cats and the second of dogs brighter."""
    rng = np.random.default_rng(seed)
    for channel, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 120, (8, 8, 3), np.uint8)
            pixels[..., channel] += 60
            Image.fromarray(pixels).save(folder / name / f"{seed}-{number:02}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `run`, trained on `pets`, evaluated; tests work on copies."""
    folder = tmp_path_factory.mktemp("trained")
    _add(folder / "pets", 30, 0)
    config = TrainConfig(
        folder / "run",
        dataset=data.Source(f"folder:{folder / 'pets'}", validation_fraction=0.2),
        net=nets.Sizes("width-nested", 2, (4,)),
        method=methods.Settings("sgd"),
        run=RunSettings(epochs=1, batch_size=8),
    )
    train(config, Console(quiet=True))
    finish("evaluate", folder / "run")
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the run and of its data, elsewhere."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "pets", tmp_path / "pets")
    return tmp_path


def _digests(folder, names):
    return {(folder / name).read_bytes() for name in names}


def _split(trained, split):
    source = data.Source(f"folder:{trained / 'pets'}", validation_fraction=0.2)
    return _digests(trained / "pets", data.load(source).files[split])


def _evaluation(workdir, name="evaluation"):
    return json.loads((workdir / f"{name}.json").read_text())


def test_all_forms_of_an_evaluation_agree(trained):
    run, found = trained / "run", _evaluation(trained / "run")
    accuracy = [output["accuracy"] for output in found["outputs"]]
    assert accuracy == pytest.approx(summary(run)["test_accuracy"])
    rows = list(csv.DictReader((run / "evaluation-wrong.csv").read_text().splitlines()))
    with np.load(run / "evaluation-confusion.npz") as matrices:
        confusion = matrices["confusion"]
    for k, output in enumerate(found["outputs"]):
        assert output["confusion"] == confusion[k].tolist()
        assert confusion[k].sum() == found["examples"]
        assert np.trace(confusion[k]) / found["examples"] == pytest.approx(accuracy[k])
        wrong = [row["example"] for row in rows if row["output"] == str(k + 1)]
        assert wrong == [each["example"] for each in output["wrong"]]
        assert len(wrong) == output["wrong_examples"] == confusion[k].sum() - np.trace(confusion[k])
        for each in output["wrong"]:
            assert each["example"].startswith(each["true"])
        assert _digests(trained / "pets", wrong) <= _split(trained, "test")
    for picture in ("evaluation", "evaluation-confusion", "evaluation-wrong"):
        assert (run / f"{picture}.png").stat().st_size > 5_000


def test_data_that_has_moved_is_the_same_test(copied):
    before = _evaluation(copied / "run")
    finish("evaluate", copied / "run", "--data", f"folder:{copied / 'pets'}")
    after = _evaluation(copied / "run")
    assert after["outputs"] == before["outputs"]
    assert not list((copied / "run").glob("evaluation-folder*"))


def test_images_added_since_the_training_bring_no_training_image_into_the_test(trained, copied):
    _add(copied / "pets", 12, 1)
    (copied / "pets" / "cat" / "0-00.png").unlink()
    (copied / "pets" / "dog" / "0-01.png").rename(copied / "pets" / "dog" / "renamed.png")
    before = (copied / "run" / "evaluation.json").read_bytes()
    printed = finish("evaluate", copied / "run", "--data", f"folder:{copied / 'pets'}")
    assert "has changed since the training" in printed
    assert "images added: 24 (" in printed
    assert "images removed: 1" in printed
    assert (copied / "run" / "evaluation.json").read_bytes() == before
    (found,) = (copied / "run").glob("evaluation-folder*.json")
    source = data.Source(f"folder:{copied / 'pets'}", validation_fraction=0.2)
    tested = _digests(copied / "pets", data.load(source).files["test"])
    assert _evaluation(copied / "run", found.stem)["examples"] == len(tested)
    assert not tested & _split(trained, "train")
    gone = (trained / "pets" / "cat" / "0-00.png").read_bytes()
    assert tested >= _split(trained, "test") - {gone}


def test_other_data_is_evaluated_whole_but_for_training_images(trained, copied):
    _add(copied / "others", 6, 2)
    train_files = sorted((copied / "pets" / "cat").iterdir())
    seen = [file for file in train_files if file.read_bytes() in _split(trained, "train")][:3]
    for number, file in enumerate(seen):
        shutil.copy(file, copied / "others" / "cat" / f"copy{number}.png")
    before = (copied / "run" / "evaluation.json").read_bytes()
    printed = finish("evaluate", copied / "run", "--data", f"folder:{copied / 'others'}")
    assert "All of it is evaluated" in printed
    assert "Left out, because the run was trained on them: 3 images" in printed
    assert (copied / "run" / "evaluation.json").read_bytes() == before
    (found,) = (copied / "run").glob("evaluation-folder*.json")
    assert _evaluation(copied / "run", found.stem)["examples"] == 12
    # If there is a test part, it alone is evaluated.
    (copied / "others" / "cat").rename(copied / "cats")
    shutil.rmtree(copied / "others")
    for split, count in (("train", 5), ("test", 4)):
        _add(copied / "others" / split, count, 3)
    finish("evaluate", copied / "run", "--data", f"folder:{copied / 'others'}")
    assert _evaluation(copied / "run", found.stem)["examples"] == 8


def test_a_run_that_starts_from_another_computes_the_same_and_remembers_its_images(trained, copied):
    _add(copied / "others", 20, 4)
    for file in (copied / "others").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)) // 2).save(file)  # darker
    config = TrainConfig(
        copied / "second",
        dataset=data.Source(f"folder:{copied / 'others'}", validation_fraction=0.2),
        net=nets.Sizes("width-nested", 2, (4,), norm="batch"),
        method=methods.Settings("sgd"),
        run=RunSettings(epochs=1, batch_size=8, learning_rate=1e-30, start_from=copied / "run"),
    )
    train(config, Console(quiet=True))
    first, second = (programs.read_trained(copied / name) for name in ("run", "second"))
    assert second.dataset.raw == first.dataset.raw
    for there, here in zip(
        jax.tree.leaves(first.state.params), jax.tree.leaves(second.state.params), strict=True
    ):
        np.testing.assert_array_equal(there, here)
    # What the first run has seen is left out of the second one's tests, too.
    with np.load(copied / "second" / "examples.npz") as fingerprints:
        seen = fingerprints["earlier"]
    assert len(seen) == len(_split(trained, "train"))
    finish("evaluate", copied / "second", "--data", f"folder:{copied / 'pets'}")
    (found,) = (copied / "second").glob("evaluation-folder*.json")
    assert _evaluation(copied / "second", found.stem)["examples"] == 60 - len(seen)


def test_training_does_not_go_on_with_other_images(copied):
    _add(copied / "pets", 2, 1)
    options = ("--data", f"folder:{copied / 'pets'}", "--validation-fraction", "0.2")
    options += ("--net", "width-nested", "--outputs", "2", "--widths", "4", "--optimizer", "sgd")
    options += ("--epochs", "1", "--batch-size", "8", "--workdir", copied / "run")
    printed = refuse("train", *options)
    assert "is not what the run in" in printed
    assert "images added: 4 (cat/1-00.png, cat/1-01.png, dog/1-00.png, dog/1-01.png)" in printed
