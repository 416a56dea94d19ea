"""Recipes: their settings, their claims about work and time, and a rehearsal."""

import io
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from flax import nnx
from rich.console import Console

import osgd_jax
from experiments import train
from experiments.app import recipes, summary
from experiments.app.config import TrainConfig
from experiments.app.data import Dataset
from experiments.app.nets import make_net
from tests.experiments.running import finish, refuse

ROOT = Path(__file__).parents[3]

# Training images, classes and input shape.
SETS = {
    "tfds:cifar100": (50_000, 100, (32, 32, 3)),
    "tfds:imagenet2012": (1_281_167, 1000, (224, 224, 3)),
}

# A forward pass and two of its size backward, of two operations for each multiply-add.
OPERATIONS = 6
# Operations a second that an H100 (SXM) is assumed to do: a hundredth of its dense peak in TF32, as
# kernels are short on small images in batches of 64; in bfloat16, on large ones, a twentieth.
SPEED = {"float32": 494.7e12 / 100, "bfloat16": 989.4e12 / 20}


def _read(monkeypatch, *options):
    monkeypatch.setattr("sys.argv", ["train", *map(str, options)])
    return train._read_config()


@pytest.mark.parametrize("recipe", recipes.names())
def test_recipes_are_settings_of_the_training_program(recipe):
    settings = recipes.settings(recipe)
    assert {"data", "net", "outputs", "epochs"} <= settings.keys()
    assert settings.items() <= TrainConfig.from_recipe(recipe).as_json().items()


def test_options_replace_single_settings_of_a_recipe(monkeypatch, tmp_path):
    options = ("--epochs", "2", "--no-flip", "--recipe", "cifar_msdnet", "--workdir", tmp_path)
    settings = _read(monkeypatch, *options).as_json()
    changed = {"epochs": 2, "flip": False, "recipe": "cifar_msdnet", "workdir": str(tmp_path)}
    assert settings == TrainConfig.from_recipe("cifar_msdnet").as_json() | changed
    assert _read(monkeypatch, *options[:2], "--workdir", tmp_path).as_json()["net"] != "msdnet"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_adds_the_options_of_each_method(monkeypatch):
    def printed(method):
        command = ["make", "-n", "paper-scale", f"METHOD={method}", "FOLDER=F", "SEED=3"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def configs(method):
        commands = printed(method).stdout.replace("\\\n", " ").splitlines()
        started = [each for each in commands if "-m experiments.train" in each]
        return [_read(monkeypatch, *shlex.split(each)[3:]) for each in started]

    for method, (optimizer, clip_norm) in {
        "sgd": ("sgd", None),
        "clipped": ("sgd", 1.0),
        "osgd": ("osgd", None),
        "pcd": ("pcd", None),
    }.items():
        (config,) = configs(method)
        assert (config.method.optimizer, config.method.clip_norm) == (optimizer, clip_norm)
        assert (config.recipe, config.run.seed) == ("cifar_msdnet", 3)
        assert config.workdir == Path(f"F/cifar_msdnet_{method}_3")
    last, mixed = configs("mixed")
    assert [last] == configs("last")
    assert last.run.loss_weights == (*[0] * 9, 1)
    assert (last.method.optimizer, mixed.method.optimizer) == ("sgd", "sgd")
    assert (mixed.run.start_from, mixed.run.loss_weights) == (last.workdir, None)
    assert "METHOD must be sgd, clipped, osgd, pcd, last or mixed, got x" in printed("x").stderr


@pytest.mark.parametrize("recipe", recipes.names())
def test_recipes_say_their_command_their_work_and_an_estimate_of_their_time(recipe):
    config = TrainConfig.from_recipe(recipe)
    images, classes, shape = SETS[config.dataset.data]
    blank = Dataset(config.dataset.data, classes, None, None, None, input_shape=shape)
    net = nnx.eval_shape(lambda: make_net(config.net, blank, nnx.Rngs(0)))
    multiply_adds = [each.multiply_adds for each in osgd_jax.cost(net, shape)]
    million = [f"{each / 1e6:.1f}" for each in multiply_adds]
    examples = round((1 - config.dataset.validation_fraction) * images) * config.run.epochs
    operations = OPERATIONS * multiply_adds[-1] * examples
    hours = f"{operations / SPEED[config.net.precision] / 3600:.2g}"
    said = (ROOT / "experiments" / "app" / "recipes" / f"{recipe}.toml").read_text()
    assert f"make paper-scale RECIPE={recipe} " in said
    assert f"Million multiply-adds: {', '.join(million)}." in said
    assert f"{hours} hours of SGD on an H100, {operations:.1e} operations" in said
    page = (ROOT / "docs" / "paper_scale.md").read_text()
    assert f"| {million[0]} to {million[-1]} | {hours} |" in page.partition(f"| `{recipe}` |")[2]


def test_the_result_stands_beside_the_published_one_on_the_same_data():
    found = {
        "test_accuracy": [0.5] * 10,
        "validation_accuracy": [0.6] * 10,
        "multiply_adds": [1e6 * k for k in range(1, 11)],
    }

    def rows(data):
        console = Console(width=140, file=io.StringIO(), record=True)
        console.print(summary.comparison("cifar_msdnet", data, found))
        lines = console.export_text().splitlines()
        return [line.replace("│", "").split() for line in lines if line.startswith("│")]

    assert rows("tfds:cifar100")[0] == ["1", "1.0", "60.0", "50.0", "64.6", "65.3"]
    assert rows("tfds:cifar100")[-1] == ["10", "10.0", "60.0", "50.0", "76.0", "76.3"]
    assert rows("tfds:cifar10")[0] == ["1", "1.0", "60.0", "50.0"]


def test_an_unknown_recipe_is_refused_with_those_that_are_known():
    printed = refuse("train", "--recipe", "cifar_resnet", "--workdir", "w")
    assert "error: `recipe` must be one of cifar_branched, cifar_depth_nested" in printed


@pytest.mark.slow
def test_a_rehearsal_continues_into_the_mixed_regime(tmp_path):
    rehearsal = ("train", "--recipe", "cifar_depth_nested", "--optimizer", "sgd")
    rehearsal += ("--data", "digits", "--train-size", 128, "--epochs", 2)
    finish(*rehearsal, "--loss-weights", 0, 0, 1, "--workdir", tmp_path / "last")
    mixed = ("--start-from", tmp_path / "last", "--workdir", tmp_path / "mixed")
    assert "cifar_depth_nested on digits" in finish(*rehearsal, *mixed)
