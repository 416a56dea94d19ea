"""The training application on built-in data: what it writes, what it refuses."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import osgd_jax
from experiments.app import data, methods, nets, programs
from experiments.app.config import RunSettings, TrainConfig
from osgd_jax import weightings
from tests.experiments.running import SMALL, finish, metrics, refuse, summary


def test_writes_configuration_metrics_and_summary(tmp_path):
    options = ("--epochs", "16", "--widths", "8", "--train-size", "1000", "--batch-size", "200")
    options += ("--learning-rate", "0.5")
    printed = finish("train", *SMALL, *options, "--workdir", tmp_path)
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
        cosine, (first, last) = record["task_cosines"][0][1], record["gradient_norms"]
        assert 0 < first < 100
        assert 0 < last < 100
        assert -1 < cosine < 1
    found = summary(tmp_path)
    assert found["steps"] == 80
    assert found["final_losses"] == records[-1]["losses"]
    mean = np.mean([record["task_cosines"][0][1] for record in records])
    assert f"Most opposed: output 1 and output 2, mean cosine {mean:.2f}" in printed
    assert found["diagnosis"] in printed
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
    options = ("--optimizer", "sgd", "--loss-weights", "1", "2")
    options += ("--schedule", "step", "--precision", "bfloat16", "--label-smoothing", "0.1")
    options += ("--clip-norm", "1")
    finish("train", *SMALL, *options, "--workdir", tmp_path)
    records = metrics(tmp_path)
    assert all(np.shape(record["task_cosines"]) == (2, 2) for record in records)
    assert all(min(record["gradient_norms"]) > 0 for record in records)
    assert [record["learning_rate"] for record in records] == pytest.approx(
        [0.1, 0.1, 0.1, 0.01, 0.001, 0.001]
    )


def test_the_rate_rises_from_zero_and_then_follows_its_schedule():
    run = RunSettings(epochs=3, learning_rate=0.3, warmup_epochs=1)
    rates = [programs.schedule(run, steps_per_epoch=5)(step) for step in range(15)]
    cosine = 0.15 * (1 + np.cos(np.pi * np.arange(10) / 10))
    np.testing.assert_allclose(rates, [*(0.3 * np.arange(5) / 5), *cosine], atol=1e-6)


def test_the_scope_is_the_librarys_for_the_method_and_is_written_down(tmp_path):
    for optimizer, make in (("osgd", osgd_jax.orthogonalize), ("mgda", osgd_jax.aggregate)):
        default = inspect.signature(make).parameters["scope"].default
        config = TrainConfig(tmp_path, method=methods.Settings(optimizer))
        assert config.as_json()["scope"] == default
    chosen = TrainConfig(tmp_path, method=methods.Settings("mgda", "leaf"))
    assert chosen.as_json()["scope"] == "leaf"


def test_the_configuration_is_flat_in_its_file_and_read_back(tmp_path):
    config = TrainConfig(
        tmp_path,
        dataset=data.Source("mnist1d", data_dir=tmp_path / "data"),
        net=nets.Sizes("nested", 2, (8, 8)),
        method=methods.Settings(scope="all"),
        run=RunSettings(epochs=3, loss_weights=(1.0, 2.0)),
    )
    fields = json.loads(json.dumps(config.as_json()))
    assert {"data", "widths", "optimizer", "epochs", "flip", "shard_state"} <= fields.keys()
    assert not any(isinstance(value, dict) for value in fields.values())
    assert TrainConfig.from_json(fields) == config


@pytest.mark.parametrize("name", methods.ROW_METHODS)
def test_row_methods_are_known_by_name(name):
    method = methods.method(methods.Settings(name), num_tasks=2)
    grads = {"shared": jnp.ones((2, 3)), "head": jnp.array([[1.0], [0.0]])}
    params = {"shared": jnp.ones(3), "head": jnp.ones(1)}
    direction, _ = method.balance.update(
        grads, method.balance.init(params), params, losses=jnp.ones(2)
    )
    assert jax.tree.map(jnp.shape, direction) == jax.tree.map(jnp.shape, params)


def test_clipping_shortens_what_weight_decay_then_adds_to():
    clipped = methods.method(
        methods.Settings("sgd", momentum=0.0, weight_decay=0.5, clip_norm=1.0)
    ).optimizer(0.1)
    params = jnp.array([2.0, 0.0])
    for gradient, shortened in (([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])):
        update, _ = clipped.update(jnp.array(gradient), clipped.init(params), params)
        np.testing.assert_allclose(update, -0.1 * (np.array(shortened) + 0.5 * params), rtol=1e-6)


def test_a_weighting_with_a_state_trains(tmp_path):
    finish("train", *SMALL, "--optimizer", "famo", "--workdir", tmp_path)
    assert np.isfinite(summary(tmp_path)["final_losses"]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "0"], "epochs=0 must be at least 1"),
        (["--loss-weights", "1"], "loss_weights=(1.0,) must be 2 numbers"),
        (["--clip-norm", "0"], "clip_norm=0.0 must be above 0"),
        (["--optimizer", "adam"], "optimizer='adam' is unknown; use one of sgd, osgd"),
        (
            ["--data", "cifar11"],
            "data='cifar11' is unknown; use digits, mnist1d, pydoc, text:PATH, tfds:NAME",
        ),
        (["--data", "folder:/nowhere"], "/nowhere does not exist"),
        (["--batch-size", "500"], "batch_size=500 exceeds the 200 training examples"),
        (["--data", "mnist1d", "--flip"], "are for images"),
        (["--warmup-epochs", "2"], "warmup_epochs=2.0 must be at least 0 and below 2"),
        (["--learning-rate", "nan"], "learning_rate=nan must be above 0"),
        (["--widths", "8", "0"], "widths=(8, 0) must be one or more numbers, each at least 1"),
        (["--net", "msdnet"], "net=msdnet has no widths"),
        (["--unknown"], "unknown"),
        (["--workdir", "/proc/run"], "/proc/run"),
    ],
)
def test_a_wrong_option_gets_one_sentence(tmp_path, options, words):
    assert words in refuse("train", *SMALL, "--workdir", tmp_path, *options)


def test_every_weighting_can_be_named():
    for name in set(weightings.__all__) - {"Weighting", "constant", "smooth"}:
        made = methods.method(methods.Settings(name), num_tasks=3)
        assert made.name == name
        assert made.balance is not None
