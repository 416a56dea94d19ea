"""Uses of a workdir: another try, a longer run, weights of another run, data that has moved."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from rich.console import Console

from experiments.app import data, methods, nets, programs
from experiments.app.config import RunSettings, TrainConfig
from experiments.app.training import train
from experiments.app.workdir import open_workdir, read_config
from tests.experiments.running import SMALL, finish, metrics, parameters, refuse, summary

_QUIET = Console(quiet=True)


def _config(workdir, *, run=None, **groups):
    run = {"epochs": 2, "batch_size": 40, "log_every": 1, "schedule": "constant"} | (run or {})
    groups = {
        "dataset": data.Source(train_size=120),
        "net": nets.Sizes("width-nested", 2, (4,)),
        "method": methods.Settings("sgd"),
    } | groups
    return TrainConfig(workdir, run=RunSettings(**run), **groups)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of two epochs of three steps at a constant rate."""
    workdir = tmp_path_factory.mktemp("finished")
    train(_config(workdir), _QUIET)
    return workdir


def test_after_a_wrong_path_the_corrected_command_runs(tmp_path):
    printed = refuse("train", *SMALL, "--data", "folder:/nowhere", "--workdir", tmp_path)
    assert "/nowhere does not exist" in printed
    printed = refuse("train", *SMALL, "--learning-rate", "1e30", "--workdir", tmp_path)
    at = int(re.search(r"of output \d is not finite at step (\d+);", printed)[1])
    assert all(record["step"] < at for record in metrics(tmp_path))
    assert not list((tmp_path / "checkpoints").iterdir())
    finish("train", *SMALL, "--workdir", tmp_path)
    assert [record["step"] for record in metrics(tmp_path)] == [2, 4, 5, 6, 8, 10]
    assert json.loads((tmp_path / "config.json").read_text())["learning_rate"] == 0.1


def test_what_has_saved_something_keeps_its_configuration(tmp_path, finished):
    for kept in ("checkpoints", "summary.json"):
        workdir = tmp_path / kept
        workdir.mkdir()
        for name in ("config.json", kept):
            copy = shutil.copytree if (finished / name).is_dir() else shutil.copy
            copy(finished / name, workdir / name)
        before = (workdir / "config.json").read_text()
        with pytest.raises(ValueError, match=r"seed: 0 → 1\); .* --start-from"):
            open_workdir(_config(workdir, run={"seed": 1}))
        assert (workdir / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("written", "now", "words"),
    [
        ({"cutout": 0, "test_split": None, "tau": ..., "update": ...}, {}, None),
        ({"mixup": 0.2}, {}, "mixup: 0.2, an option that was removed"),
        ({"update": ...}, {"update": "adamw"}, "update: sgd → adamw"),
        ({"recipe": ...}, {"recipe": "cifar_nested"}, None),
        ({"epochs": "two"}, {}, "config.json is damaged"),
    ],
)
def test_settings_of_other_versions_are_taken_or_refused(tmp_path, written, now, words):
    """`...` stands for a setting that the other version lacked."""
    old = _config(tmp_path).as_json() | written
    old = {name: value for name, value in old.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(old | {"versions": {}}))
    (tmp_path / "summary.json").write_text("{}")
    config = TrainConfig.from_json(_config(tmp_path).as_json() | now)
    if words is None:
        assert open_workdir(config).items() >= config.as_json().items()
        assert read_config(tmp_path) == config
    else:
        with pytest.raises(ValueError, match=words):
            open_workdir(config)


def test_more_epochs_at_a_constant_rate_are_the_longer_run(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "longer")
    longer = {"epochs": 4}
    train(_config(tmp_path / "longer", run=longer), _QUIET)
    train(_config(tmp_path / "at_once", run=longer), _QUIET)
    assert metrics(tmp_path / "longer") == metrics(tmp_path / "at_once")
    assert summary(tmp_path / "longer") == summary(tmp_path / "at_once")
    for each, other in zip(*map(parameters, tmp_path.iterdir()), strict=True):
        np.testing.assert_array_equal(each, other)
    with pytest.raises(ValueError, match="epochs: 4 → 3"):
        open_workdir(_config(tmp_path / "longer", run={"epochs": 3}))


def test_more_epochs_under_another_schedule_are_refused_with_the_reason(tmp_path):
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    cosine = _config(tmp_path, run={"schedule": "cosine"})
    (tmp_path / "config.json").write_text(json.dumps(cosine.as_json() | {"versions": {}}))
    with pytest.raises(ValueError, match=r"epochs: 2 → 4.*under --schedule constant alone"):
        open_workdir(_config(tmp_path, run={"schedule": "cosine", "epochs": 4}))


def test_a_run_starts_from_the_weights_of_another(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "first")
    rate = {"learning_rate": 1e-9, "start_from": tmp_path / "first"}
    method = methods.Settings("moco")  # its state is not that of the other run
    second = _config(tmp_path / "second", run=rate, method=method)
    train(second, _QUIET)
    there, here = (
        nnx.state(programs.read_trained(each).net, nnx.Param)
        for each in (finished, tmp_path / "second")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), there, here)
    # The weights are in its checkpoints now, and the other run may go or move.
    shutil.rmtree(tmp_path / "first")
    moved = dataclasses.replace(second.run, start_from=tmp_path / "elsewhere" / "first")
    train(dataclasses.replace(second, run=moved), _QUIET)


def test_weights_of_another_net_are_refused_with_what_differs(tmp_path, finished):
    run = {"start_from": finished}
    with pytest.raises(ValueError, match=r"another net: .* has shape .* there and .*give the"):
        train(_config(tmp_path, run=run, net=nets.Sizes("width-nested", 2, (8,))), _QUIET)
    with pytest.raises(ValueError, match="holds no run"):
        train(_config(tmp_path, run={"start_from": tmp_path / "nothing"}), _QUIET)


def _folder(path, classes=("cat", "dog")):
    rng = np.random.default_rng(0)
    for name in classes:
        (path / name).mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(path / name / f"{index:02}.png")
    return path


def test_a_folder_that_has_moved_is_the_same_data_and_one_that_changed_is_not(tmp_path):
    source = data.Source(f"folder:{_folder(tmp_path / 'here')}", validation_fraction=0.2)
    run = {"epochs": 1, "batch_size": 8}
    train(_config(tmp_path / "run", run=run, dataset=source), _QUIET)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = dataclasses.replace(source, data=f"folder:{tmp_path / 'there'}")
    train(_config(tmp_path / "run", run=run | {"epochs": 2}, dataset=moved), _QUIET)
    assert summary(tmp_path / "run")["steps"] == 6
    (tmp_path / "there" / "dog" / "00.png").unlink()
    with pytest.raises(ValueError, match=r"is not what the run in .* was trained on .*examples: "):
        train(_config(tmp_path / "run", run=run | {"epochs": 3}, dataset=moved), _QUIET)
