"""Files of runs and results, and the command lines that name them."""

import dataclasses
import importlib
import os
import pkgutil
from pathlib import Path

import pytest

import experiments
from experiments.app import command_line, files
from tests.experiments.running import refuse

# Modules that need packages of other environments.
_APART = ("benchmark.peer", "serve.deployment", "serve.metrics", "serve.service")
_PROGRAMS = [
    name
    for _, name, _ in pkgutil.walk_packages(experiments.__path__, "experiments.")
    if not any(part in name for part in _APART)
]


def _configs():
    for name in _PROGRAMS:
        for config in vars(importlib.import_module(name)).values():
            if dataclasses.is_dataclass(config) and config.__module__ == name:
                yield config


def test_no_program_writes_into_the_stored_results_unless_told():
    defaults = [
        field.default
        for config in _configs()
        for field in dataclasses.fields(config)
        if isinstance(field.default, Path)
    ]
    assert len(defaults) >= 10
    assert all(default.parts[0] == "runs" for default in defaults)


@pytest.mark.parametrize("option", ["--workdir", "--start-from", "--data-dir", "--manual-dir"])
def test_the_home_directory_is_expanded_in_options(monkeypatch, option):
    from experiments.app.config import TrainConfig

    arguments = ["train", option, "~/folder", *(["--workdir", "w"] * (option != "--workdir"))]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setenv("HOME", "/home/somebody")
    config = command_line.read(TrainConfig, "experiments.train", None)
    found = {
        "--workdir": config.workdir,
        "--start-from": config.run.start_from,
        "--data-dir": config.dataset.data_dir,
        "--manual-dir": config.dataset.manual_dir,
    }
    assert found[option] == Path("/home/somebody/folder")


def test_positional_paths_are_expanded_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for module in ("evaluate", "export"):
        assert f"{tmp_path}/run holds no run" in refuse(module, "~/run")
    assert f"{tmp_path}/net" in refuse("predict", "~/net", "image.png")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"is damaged \(Expecting"),
        ("", r"is damaged \(Expecting value"),
        ("[1]", r"is damaged \(it lacks name"),
        ("{}", r"is damaged \(it lacks name"),
        (b"\xff\xfe\x00", "is damaged"),
    ],
)
def test_damaged_json_is_named(tmp_path, content, words):
    file = tmp_path / "found.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"found.json {words}"):
        files.read_json(file, "name")


def test_records_end_with_the_last_whole_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert files.read_records(file) == []
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert files.read_records(file) == [{"step": 1}, {"step": 2}]
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="is damaged in line 2"):
        files.read_records(file)


def test_targets_that_cannot_be_written_are_told_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"workdir=.*file.* must be a folder, got a file"):
            files.open_folder(folder, "workdir")
    with pytest.raises(ValueError, match=r"output=.* must be a file, got a folder"):
        files.open_file(tmp_path)
    with pytest.raises(ValueError, match=r"workdir=/proc/run must be a folder to write to"):
        files.open_folder(Path("/proc/run"), "workdir")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied"):
        files.open_folder(tmp_path, "workdir")


@pytest.mark.parametrize("seed", ["-1", "3000000000"])
@pytest.mark.parametrize("arguments", [("train", "--workdir", "w"), ("pinn",)])
def test_seeds_have_one_range(arguments, seed):
    assert f"seed={seed} must be at least 0 and at most 2147483647" in refuse(
        *arguments, "--seed", seed
    )
