"""Training that goes on with a net that gets more outputs: `--grow-from` and `--keep`."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import osgd_jax
from experiments.app import data, methods, nets, programs
from experiments.app.config import RunSettings, TrainConfig
from experiments.app.step import Batch, Objective, initial_state, update
from experiments.app.training import train
from osgd_jax.nets import stages_from
from tests.experiments.running import finish, metrics, refuse, summary

_QUIET = Console(quiet=True)
_DATA = data.Source(train_size=120)
_OPTIONS = ("--epochs", "1", "--batch-size", "40", "--train-size", "120", "--log-every", "1")


_SGD = methods.Settings("sgd")
_OSGD = methods.Settings("osgd")


def _config(workdir, outputs, *, run=None, method=_SGD, net=None):
    run = {"epochs": 1, "batch_size": 40, "log_every": 1, "schedule": "constant"} | (run or {})
    return TrainConfig(
        workdir,
        dataset=_DATA,
        net=net or nets.Sizes(outputs=outputs),
        method=method,
        run=RunSettings(**run),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a net with two outputs."""
    workdir = tmp_path_factory.mktemp("trained")
    train(_config(workdir, 2, net=nets.Sizes("width-nested", 2, (4,))), _QUIET)
    return workdir


def _grown(trained, workdir, keep, outputs=3, method=_SGD, **run):
    run = {"grow_from": trained, "keep": keep} | run
    return _config(workdir, outputs, run=run, method=method)


@pytest.fixture(scope="module")
def frozen(trained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("frozen")
    method = methods.Settings("osgd", weight_decay=1e-3)
    train(_grown(trained, workdir, "frozen", 4, method), _QUIET)
    return workdir


def _old_variables(net):
    return jax.tree.leaves(nnx.state(net, nnx.Not(stages_from(2))))


def test_frozen_outputs_are_the_same_to_the_bit(trained, frozen, tmp_path):
    before, after = (programs.read_trained(each).net for each in (trained, frozen))
    assert (before.num_outputs, after.num_outputs) == (2, 4)
    for old, new in zip(_old_variables(before), _old_variables(after), strict=True):
        np.testing.assert_array_equal(old, new)
    examples = data.load(_DATA).test.read(np.arange(8)).inputs
    former, grown = (osgd_jax.AnytimePredictor(net) for net in (before, after))
    grown.export(tmp_path / "net.anytime", input_shape=examples.shape[1:])
    for predictor in (grown, osgd_jax.AnytimePredictor.load(tmp_path / "net.anytime")):
        old, new = (
            [each.logits for each in each.stream(examples)][:2] for each in (former, predictor)
        )
        np.testing.assert_array_equal(old[0], new[0])
        # The stage of the last output is compiled again, since later ones read from it.
        np.testing.assert_allclose(old[1], new[1], rtol=1e-5, atol=1e-5)


def test_the_new_outputs_of_a_frozen_net_are_trained_and_logged(frozen):
    records, results = metrics(frozen), summary(frozen)
    assert all(len(record["losses"]) == 4 for record in records)
    assert all(np.shape(record["task_cosines"]) == (2, 2) for record in records)
    assert "output 3" in results["diagnosis"]
    assert "output 1" not in results["diagnosis"]
    assert results["changed_answers"] == [0, 0]
    assert results["former_test_accuracy"] == results["test_accuracy"][:2]
    start = programs.make_net(
        programs.read_trained(frozen).config.net, data.load(_DATA), nnx.Rngs(0)
    )
    here, there = (
        jax.tree.leaves(nnx.state(net, nnx.All(nnx.Param, stages_from(2))))
        for net in (start, programs.read_trained(frozen).net)
    )
    assert all((a != b).any() for a, b in zip(here, there, strict=True))


def test_one_frozen_output_more_and_a_continued_run(trained, tmp_path):
    """Two epochs are the same in one piece and in two, without the run that grew."""
    copied = shutil.copytree(trained, tmp_path / "old")
    whole = _grown(trained, tmp_path / "whole", "frozen", epochs=2)
    train(whole, _QUIET)
    assert "one output alone" in summary(whole.workdir)["diagnosis"]
    parts = _grown(copied, tmp_path / "parts", "frozen", epochs=1)
    train(parts, _QUIET)
    shutil.rmtree(copied)
    train(dataclasses.replace(parts, run=dataclasses.replace(parts.run, epochs=2)), _QUIET)
    for a, b in zip(
        *(
            jax.tree.leaves(nnx.state(programs.read_trained(each.workdir).net))
            for each in (whole, parts)
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_net_grows_twice(frozen, tmp_path):
    config = _grown(frozen, tmp_path / "again", "joint", 5)
    train(config, _QUIET)
    net = programs.read_trained(config.workdir).config.net
    assert (net.net, net.widths, net.outputs, net.grown_from) == ("width-nested", (4,), 5, (2, 4))
    assert len(summary(config.workdir)["former_test_accuracy"]) == 4


def test_a_held_step_is_orthogonal_to_the_old_gradients(trained, tmp_path):
    config = _grown(trained, tmp_path / "run", "held", method=_OSGD)
    results = train(config, _QUIET)
    assert len(results["changed_answers"]) == 2
    read = programs.read_trained(config.workdir)
    graphdef, params, rest = nnx.split(read.net, nnx.Param, ...)
    method = methods.method(read.config.method, num_tasks=3, hold=read.config.held)
    sgd = dataclasses.replace(method, optimizer=None)
    optimizer = methods.step(methods.Settings(momentum=0.0), 1e-3)
    state = initial_state(sgd, optimizer, params, rest, 0)
    dataset = data.load(_DATA)
    split = dataset.train.read(np.arange(40))
    targets = jax.nn.one_hot(split.labels, dataset.num_classes)
    batch = Batch(dataset.standardise(split.inputs), targets)
    after, _ = jax.jit(update, static_argnums=(0, 1, 2, 3))(
        graphdef, Objective(), sgd, optimizer, state, batch
    )
    step = jax.tree.map(lambda a, b: a - b, after.params, params)

    def losses(params):
        logits = nnx.merge(graphdef, params, rest, copy=True)(batch.inputs)
        return Objective().losses(logits, batch.targets)

    grads = osgd_jax.densify(osgd_jax.task_grads(losses)(params))
    rows = np.concatenate(
        [np.asarray(leaf, np.float64).reshape(3, -1) for leaf in jax.tree.leaves(grads)], axis=1
    )
    moved = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(step)])
    cosines = rows @ moved / np.linalg.norm(rows, axis=1) / np.linalg.norm(moved)
    np.testing.assert_allclose(cosines[:2], 0, atol=1e-3)
    assert cosines[2] < -0.1


def test_options_that_do_not_fit_are_refused(trained, tmp_path):
    grow = (*_OPTIONS, "--workdir", tmp_path / "run", "--grow-from", trained)
    for options, expected in (
        (("--outputs", "3"), "give both, with keep frozen, held or joint"),
        (("--outputs", "2", "--keep", "joint"), "outputs=2 must be above the 2 of grow_from="),
        (("--keep", "held", "--optimizer", "sgd"), "optimizer=sgd cannot hold outputs"),
        (("--keep", "held", "--weight-decay", "0.1"), "weight_decay=0.1 would move the outputs"),
        (("--keep", "joint", "--net", "branched"), "net=branched must be that of grow_from="),
        (("--keep", "joint", "--widths", "8"), "widths=(8,) must be that of grow_from="),
        (("--keep", "joint", "--start-from", trained), "cannot be given with grow_from="),
    ):
        assert expected in refuse("train", *grow, *options)
    assert not (tmp_path / "run").exists()


def test_the_command_line_grows_a_net_and_says_what_changed(trained, tmp_path):
    options = ("--grow-from", trained, "--outputs", "3", "--keep", "frozen")
    printed = finish("train", *_OPTIONS, *options, "--workdir", tmp_path / "run")
    assert "0.0 0.0 % of their answers changed" in printed
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["keep"], saved["outputs"], saved["grown_from"]) == ("frozen", 3, [2])
    evaluated = finish("evaluate", tmp_path / "run")
    assert "output" in evaluated
