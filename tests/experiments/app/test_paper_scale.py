"""Recipes of the paper's scale: what they set, and a rehearsal."""

from pathlib import Path

import pytest
from flax import nnx

import osgd_jax
from experiments import paper_scale
from experiments.app.data import Dataset
from experiments.app.nets import make_net
from tests.experiments.running import finish, refuse

ROOT = Path(__file__).parents[3]

# Training images, classes and input shape.
SETS = {
    "tfds:cifar100": (50_000, 100, (32, 32, 3)),
    "tfds:imagenet2012": (1_281_167, 1000, (224, 224, 3)),
}

SUMMARY = {
    "test_accuracy": [0.5] * 10,
    "validation_accuracy": [0.6] * 10,
    "multiply_adds": [1e6 * k for k in range(1, 11)],
    "steps": 100,
    "clock": {"seconds": 1800.0},
}


@pytest.mark.parametrize("recipe", paper_scale.names())
def test_recipes_are_settings_of_the_training_program(recipe):
    runs = {
        method: paper_scale.run_of(paper_scale.Config(recipe, method, seed=3))
        for method in ("clipped", "osgd", "mixed", "last")
    }
    settings, _ = paper_scale.read(recipe)
    for run in runs.values():
        assert settings.items() <= run.as_json().items()
        assert run.run.seed == 3
    assert (runs["clipped"].method.optimizer, runs["clipped"].method.clip_norm) == ("sgd", 1)
    assert runs["osgd"].method.optimizer == "osgd"
    assert runs["last"].run.loss_weights == (*[0] * (settings["outputs"] - 1), 1)
    assert runs["mixed"].run.start_from == runs["last"].workdir


@pytest.mark.parametrize("recipe", paper_scale.names())
def test_recipes_say_their_command_their_work_and_an_estimate_of_their_time(recipe):
    run = paper_scale.run_of(paper_scale.Config(recipe))
    images, classes, shape = SETS[run.dataset.data]
    blank = Dataset(run.dataset.data, classes, None, None, None, input_shape=shape)
    net = nnx.eval_shape(lambda: make_net(run.net, blank, nnx.Rngs(0)))
    million = [each.multiply_adds / 1e6 for each in osgd_jax.cost(net, shape)]
    examples = round((1 - run.dataset.validation_fraction) * images) * run.run.epochs
    operations = paper_scale.work(round(million[-1] * 1e6), examples)
    hours = f"{paper_scale.h100_hours(operations, run.net.precision):.2g}"
    said = (ROOT / "experiments" / "app" / "recipes" / f"{recipe}.toml").read_text()
    assert f"make paper-scale RECIPE={recipe} " in said
    assert f"Million multiply-adds: {', '.join(f'{each:.1f}' for each in million)}." in said
    assert f"{hours} hours of SGD on an H100, {operations:.1e} operations" in said
    page = (ROOT / "docs" / "paper_scale.md").read_text()
    assert f"| {million[0]:.1f} to {million[-1]:.1f} | {hours} |" in page.partition(recipe)[2]


def test_the_result_stands_beside_what_is_published_for_the_same_data():
    config = paper_scale.Config("cifar_msdnet", "sgd")
    text = paper_scale.page(config, paper_scale.run_of(config), SUMMARY)
    assert "| 1 | 1.0 | 60.0 | 50.0 | 64.6 | 65.3 |" in text
    assert "| 10 | 10.0 | 60.0 | 50.0 | 76.0 | 76.3 |" in text
    # Six operations for each multiply-add of 6,400 examples.
    assert "3.8e+11 operations, an estimated 2.2e-05 hours of an H100; 0.50 hours" in text
    config = paper_scale.Config("cifar_msdnet", "sgd", data="tfds:cifar10", train_size=450)
    text = paper_scale.page(config, paper_scale.run_of(config), SUMMARY)
    assert "| 1 | 1.0 | 60.0 | 50.0 |\n" in text
    assert "450 examples: a rehearsal" in text


def test_an_unknown_recipe_is_refused_with_those_that_are_known():
    assert "cifar_msdnet" in refuse("paper_scale", "cifar_resnet")


@pytest.mark.slow
def test_a_rehearsal_continues_into_the_mixed_regime(tmp_path):
    rehearsal = ("--data", "digits", "--train-size", 128, "--epochs", 2, "--output", tmp_path)
    finish("paper_scale", "cifar_depth_nested", "--method", "last", *rehearsal)
    printed = finish("paper_scale", "cifar_depth_nested", "--method", "mixed", *rehearsal)
    assert "of 128 examples: a rehearsal" in printed
    written = tmp_path / "cifar_depth_nested_digits_mixed_0" / "comparison.md"
    assert written.read_text() in printed
