"""From a run to answers: export, and prediction where the data set is not."""

import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from rich.console import Console

from experiments import evaluate
from experiments.app import data, methods, nets, programs
from experiments.app.config import RunSettings, TrainConfig
from experiments.app.training import train
from experiments.export import ExportConfig, export
from experiments.predict import predict
from tests.experiments.running import environment, finish, refuse


def _images(path):
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("cat", "dog")):
        (path / name).mkdir(parents=True)
        for index in range(40):
            pixels = rng.integers(0, 90, (12, 10 + index % 4, 3), np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(path / name / f"{index:02}.png")


def _train(workdir, source):
    config = TrainConfig(
        workdir,
        dataset=source,
        net=nets.Sizes("width-nested", 2, (4,)),
        method=methods.Settings("sgd"),
        run=RunSettings(epochs=3, batch_size=8),
    )
    train(config, Console(quiet=True))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder with `run`, trained on `pets`; `net.anytime` and `pixels`, of test images."""
    folder = tmp_path_factory.mktemp("served")
    _images(folder / "pets")
    _train(folder / "run", data.Source(f"folder:{folder / 'pets'}", validation_fraction=0.2))
    export(ExportConfig(folder / "run", folder / "out" / "net.anytime"))
    return folder


def _evaluated(workdir, inputs):
    """Logits as `evaluate` computes them, `[K, n, classes]`."""
    _, dataset, net, state = programs.read_trained(workdir)
    return np.asarray(programs.evaluation(nnx.graphdef(net), dataset)[0](state, inputs))


# Prediction in a process in which nothing but the library and pillow can be found.
_ALONE = """
import sys
from importlib.machinery import PathFinder
missing = {"tyro", "grain", "tensorboardX", "sklearn", "mnist1d", "matplotlib", "tensorflow"}
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in missing else PathFinder.find_spec(name, path, target)
sys.meta_path = [Finder if each is PathFinder else each for each in sys.meta_path]
from experiments import predict
predict.main()
"""


def test_a_bare_process_without_the_data_gives_the_logits_of_evaluate(served, tmp_path):
    (tmp_path / "mine").mkdir()
    wanted = []
    paths = sorted((served / "pets").glob("*/*.png"))[::9]
    for place, path in enumerate(paths):
        with Image.open(path) as image:
            image.save(tmp_path / "mine" / f"{place}.png")
    copies = sorted((tmp_path / "mine").iterdir())
    loaded = data.load(data.Source(f"folder:{served / 'pets'}", validation_fraction=0.2))
    assert loaded.classes == ("cat", "dog")
    command = [sys.executable, "-c", _ALONE, served / "out" / "net.anytime", *copies, "--json"]
    ran = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment(), check=False
    )
    assert ran.returncode == 0, ran.stderr
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == list(map(str, copies))
    side = loaded.input_shape[0]
    for path, answer in zip(copies, answers, strict=True):
        with Image.open(path) as image:
            width, height = image.size
            scaled = image.resize((round(width * side / min(image.size)), side))
        assert height == 12
        assert scaled.size[1] == side
        inputs = data.images.read_image(path, loaded.input_shape, loaded.dtype)[None]
        wanted = _evaluated(served / "run", inputs)[-1, 0]
        np.testing.assert_allclose(answer["logits"], wanted, atol=1e-4)
        shares = np.exp(wanted) / np.exp(wanted).sum()
        np.testing.assert_allclose(list(answer["probabilities"].values()), shares, atol=1e-4)
        assert answer["class"] == loaded.classes[wanted.argmax()]
        assert answer["output"] == 2


def test_images_of_any_mode_and_orientation_are_read_as_in_training(served, tmp_path):
    pixels = np.zeros((12, 12, 3), np.uint8)
    pixels[:6] = [180, 40, 40]
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: to be turned by a quarter, clockwise
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    upright.convert("RGBA").save(tmp_path / "alpha.png")
    grey = np.full((12, 12), 100, np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    names = ("upright", "turned", "alpha", "grey", "deep")
    paths = [tmp_path / f"{name}.png" for name in names]
    answers = list(predict(served / "out" / "net.anytime", paths))
    logits = dict(zip(names, (answer["logits"] for answer in answers), strict=True))
    for name, like in (("turned", "upright"), ("alpha", "upright"), ("deep", "grey")):
        np.testing.assert_allclose(logits[name], logits[like], atol=1e-5)


def test_digits_of_image_files_are_scaled_to_those_of_training(tmp_path, digits_run):
    file = export(ExportConfig(digits_run, tmp_path / "net.anytime"))
    test = data.load(data.Source("digits", train_size=200)).test
    from sklearn.datasets import load_digits

    images = {each.tobytes(): each for each in load_digits().images}
    order = np.random.default_rng(0).permutation(len(images))
    assert len(order) == len(load_digits().images)
    chosen = load_digits().images[order[:5]]  # the test images come first
    paths = []
    for place, pixels in enumerate(chosen):
        paths.append(tmp_path / f"{place}.png")
        Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(paths[-1])
    found = [answer["logits"] for answer in predict(file, paths)]
    run = programs.read_trained(digits_run)
    logits, _ = programs.evaluation(nnx.graphdef(run.net), data.load(run.config.dataset))
    wanted = np.asarray(logits(run.state, test.inputs[:5]))[-1]
    np.testing.assert_allclose(found, wanted, atol=0.02)  # of pixels that were rounded


def test_limits_and_wrong_arguments(served, tmp_path):
    file, image = served / "out" / "net.anytime", served / "pets" / "cat" / "00.png"
    first = next(predict(file, [image], confidence=1e-6))
    last = next(predict(file, [image], confidence=1.0))
    assert (first["output"], last["output"]) == (1, 2)
    for thresholds in ((1e-6, 1.0), (1.0, 1e-6)):
        answer = next(predict(file, [image], confidence=thresholds))
        assert answer["output"] == thresholds.index(1e-6) + 1
    agreeing = next(predict(file, [image], confidence=1.0, rule="agreement"))
    assert agreeing["output"] == 2  # nothing stands before the first
    with pytest.raises(ValueError, match="confidence="):
        next(predict(file, [image], confidence=(0.5, 0.5, 0.5)))
    assert next(predict(file, [image], deadline=0.0))["output"] == 1
    np.testing.assert_allclose(
        next(predict(file, [image], deadline=60.0))["logits"], last["logits"], atol=1e-5
    )
    printed = finish("predict", file, "--confidence", "0.9,0.5", "--rule", "margin", image)
    assert "cat" in printed
    assert "%" in printed
    (tmp_path / "no.png").write_text("nothing")
    printed = refuse("predict", file, image, tmp_path / "no.png", tmp_path / "missing.png")
    assert "no.png is no readable image" in printed
    assert "missing.png does not exist" in printed
    assert "cat" in printed
    (tmp_path / "alone.anytime").write_bytes(file.read_bytes())
    assert "alone.anytime.json does not exist" in refuse("predict", tmp_path / "alone.anytime", "x")
    about = file.with_name("net.anytime.json").read_text()
    (tmp_path / "alone.anytime.json").write_text(about.replace('"sha256": "', '"sha256": "0'))
    printed = refuse("predict", tmp_path / "alone.anytime", "x")
    assert "alone.anytime.json describes another file" in printed
    (tmp_path / "alone.anytime.json").write_text(about[:20])
    assert "alone.anytime.json is damaged" in refuse("predict", tmp_path / "alone.anytime", "x")


def test_evaluate_finds_data_elsewhere_and_refuses_other_data(served, tmp_path):
    def accuracies(**options):
        found = evaluate.evaluate(evaluate.EvaluationConfig(served / "run", **options))[0]
        return [output["accuracy"] for output in found["outputs"]]

    wanted = accuracies()
    assert accuracies(rule="margin") == wanted
    (served / "pets").rename(served / "moved")
    try:
        with pytest.raises(ValueError, match="does not exist"):
            accuracies()
        assert accuracies(data=f"folder:{served / 'moved'}") == wanted
    finally:
        (served / "moved").rename(served / "pets")
    _images(tmp_path / "other")
    (tmp_path / "other" / "cat").rename(tmp_path / "other" / "bird")
    with pytest.raises(ValueError, match="has classes"):
        accuracies(data=f"folder:{tmp_path / 'other'}")
