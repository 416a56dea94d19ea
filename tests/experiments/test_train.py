"""The training application on built-in data: what it writes, what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import methods
from osgd_jax import weightings
from tests.experiments.running import SMALL, finish, metrics, refuse, summary


def test_writes_configuration_metrics_and_summary(tmp_path):
    options = ("--epochs", "16", "--widths", "8", "--train-size", "1000", "--batch-size", "200")
    options += ("--learning-rate", "0.5")
    finish("train", *SMALL, *options, "--workdir", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["optimizer"] == "osgd"
    assert config["epochs"] == 16
    assert config["momentum"] == 0.9
    assert set(config["versions"]) >= {"jax", "optax", "flax", "osgd-jax"}
    records = metrics(tmp_path)
    assert [each["step"] for each in records] == sorted({*range(2, 81, 2), *range(5, 81, 5)})
    for record in records:
        assert record["epoch"] == pytest.approx(record["step"] / 5)
        assert np.shape(record["losses"]) == (2,)
        assert np.shape(record["task_cosines"]) == (2, 2)
        assert np.allclose(np.diagonal(record["task_cosines"]), 1, atol=1e-5)
        assert ("validation_accuracy" in record) == (record["step"] % 5 == 0)
        # Of orthogonalized gradients the last has weight 1, as none is subtracted after it.
        assert record["task_weights"][-1] == pytest.approx(1, abs=1e-3)
        cosine, (first, last) = record["task_cosines"][0][1], record["gradient_norms"]
        assert 0 < first < 100
        assert 0 < last < 100
        assert -1 < cosine < 1
    found = summary(tmp_path)
    assert found["steps"] == 80
    assert found["final_losses"] == records[-1]["losses"]
    assert found["validation_accuracy"] == records[-1]["validation_accuracy"]
    assert min(found["test_accuracy"]) > 0.3  # chance is 0.1
    assert found["parameters"] == sorted(found["parameters"])
    assert found["multiply_adds"] == sorted(found["multiply_adds"])
    assert list((tmp_path / "events").glob("events*"))
    clock = json.loads((tmp_path / "summary.json").read_text())["clock"]
    assert 0 <= clock["waiting_for_input"] < 0.05


def test_several_steps_in_one_call_give_what_single_steps_give(tmp_path):
    for name, together in (("one", 1), ("five", 5)):
        options = ("--steps-per-dispatch", together, "--log-every", 5, "--norm", "group")
        finish("train", *SMALL, *options, "--workdir", tmp_path / name)
    one, five = metrics(tmp_path / "one"), metrics(tmp_path / "five")
    assert len(one) == len(five) == 2
    for first, second in zip(one, five, strict=True):
        np.testing.assert_allclose(first["losses"], second["losses"], rtol=1e-4)
        np.testing.assert_allclose(first["task_cosines"], second["task_cosines"], atol=1e-3)


def test_sgd_logs_the_conflict_too(tmp_path):
    options = ("--optimizer", "sgd", "--distillation", "0.5", "--loss-weights", "1", "2")
    options += ("--schedule", "step", "--precision", "bfloat16", "--label-smoothing", "0.1")
    options += ("--clip-norm", "1")
    finish("train", *SMALL, *options, "--workdir", tmp_path)
    records = metrics(tmp_path)
    assert all(np.shape(record["task_cosines"]) == (2, 2) for record in records)
    assert [record["learning_rate"] for record in records] == pytest.approx(
        [0.1, 0.1, 0.1, 0.01, 0.001, 0.001]
    )


@pytest.mark.parametrize("name", methods.ROW_METHODS)
def test_row_methods_are_known_by_name(name):
    method = methods.method(name, momentum=0.9, num_tasks=2)
    grads = {"shared": jnp.ones((2, 3)), "head": jnp.array([[1.0], [0.0]])}
    params = {"shared": jnp.ones(3), "head": jnp.ones(1)}
    direction, _ = method.balance.update(
        grads, method.balance.init(params), params, losses=jnp.ones(2)
    )
    assert jax.tree.map(jnp.shape, direction) == jax.tree.map(jnp.shape, params)


def test_clipping_shortens_what_weight_decay_then_adds_to():
    clipped = methods.method("sgd", momentum=0.0, weight_decay=0.5, clip_norm=1.0).optimizer(0.1)
    params = jnp.array([2.0, 0.0])
    for gradient, shortened in (([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])):
        update, _ = clipped.update(jnp.array(gradient), clipped.init(params), params)
        np.testing.assert_allclose(update, -0.1 * (np.array(shortened) + 0.5 * params), rtol=1e-6)


@pytest.mark.parametrize("name", ["famo", "moco"])
def test_a_method_with_a_state_trains(tmp_path, name):
    finish("train", *SMALL, "--optimizer", name, "--workdir", tmp_path)
    assert np.isfinite(summary(tmp_path)["final_losses"]).all()


def test_a_loss_that_is_not_finite_stops_with_step_and_output(tmp_path):
    options = ("--learning-rate", "1e30", "--norm", "group", "--epochs", "3")
    printed = refuse("train", *SMALL, *options, "--workdir", tmp_path)
    assert "is not finite at step" in printed
    assert "of output" in printed
    steps = [record["step"] for record in metrics(tmp_path)]
    at = int(printed.split("not finite at step ")[1].split(";")[0])
    assert all(step < at for step in steps)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "0"], "epochs=0 must be at least 1"),
        (["--loss-weights", "1"], "loss_weights=(1.0,) must be 2 numbers"),
        (["--clip-norm", "0"], "clip_norm=0.0 must be above 0"),
        (["--optimizer", "adam"], "optimizer='adam' is unknown; use one of sgd, osgd"),
        (["--data", "cifar11"], "data='cifar11' is unknown; use digits, mnist1d, tfds:NAME"),
        (["--data", "folder:/nowhere"], "/nowhere does not exist"),
        (["--batch-size", "500"], "batch_size=500 exceeds the 200 training examples"),
        (["--data", "mnist1d", "--flip"], "are for images"),
        (["--net", "msdnet"], "net=msdnet has no widths"),
        (["--unknown"], "unknown"),
        (["--workdir", "/proc/run"], "/proc/run"),
    ],
)
def test_a_wrong_option_gets_one_sentence(tmp_path, options, words):
    assert words in refuse("train", *SMALL, "--workdir", tmp_path, *options)


def test_every_weighting_can_be_named():
    from experiments import methods

    for name in set(weightings.__all__) - {"Weighting", "constant"}:
        made = methods.method(name, momentum=0.9, num_tasks=3)
        assert made.name == name
        assert made.balance is not None
