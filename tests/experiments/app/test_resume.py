"""A run that is stopped in whatever way goes on as if it had never been."""

import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.experiments.running import (
    SMALL,
    environment,
    finish,
    finish_apart,
    metrics,
    parameters,
    refuse,
    start,
    summary,
)

_LONG = (*SMALL, "--epochs", "8", "--save-every", "3", "--log-every", "1")
_LONG = (
    *_LONG,
    "--keep-last",
    "3",
    "--optimizer",
    "osgd",
    "--order",
    "random",
    "--weight-decay",
    "1e-3",
)


def _assert_same_run(workdir, reference):
    assert metrics(workdir) == metrics(reference)
    assert [record["step"] for record in metrics(workdir)] == list(range(1, 41))
    assert summary(workdir) == summary(reference)
    for found, wanted in zip(parameters(workdir), parameters(reference), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("reference")
    finish("train", *_LONG, "--workdir", workdir)
    return workdir


def _log_length(workdir):
    file = workdir / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def _kill_and_finish(workdir, reference, kills, seed):
    """Kill one run again and again, at random moments after it has taken up work."""
    rng = random.Random(seed)
    done = 0
    while done < kills:
        shutil.rmtree(workdir, ignore_errors=True)
        while done < kills:
            process = start("train", *_LONG, "--workdir", workdir)
            before = _log_length(workdir)
            while process.poll() is None and _log_length(workdir) == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.6))
            process.kill()
            printed, _ = process.communicate()
            done += 1
            if process.returncode != -signal.SIGKILL:
                assert process.returncode == 0, printed
                break  # it had come to its end: begin a new one
        finish("train", *_LONG, "--workdir", workdir)
        _assert_same_run(workdir, reference)


def test_killed_runs_end_bit_identical(tmp_path, reference):
    _kill_and_finish(tmp_path / "run", reference, kills=3, seed=0)


@pytest.mark.slow
def test_runs_killed_twenty_times_end_bit_identical(tmp_path, reference):
    _kill_and_finish(tmp_path / "run", reference, kills=20, seed=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_its_number(tmp_path, reference, number):
    workdir, status = tmp_path / "run", 0
    for _ in range(10):  # a run may come to its end before the signal comes
        shutil.rmtree(workdir, ignore_errors=True)
        process = start("train", *_LONG, "--workdir", workdir)
        while _log_length(workdir) == 0:
            time.sleep(0.01)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
        status = process.returncode
        if status:
            break
    assert status == 128 + number, printed
    assert "Traceback" not in printed
    assert "Stopped after step" in printed
    stopped = int(printed.split("Stopped after step ")[1].split(";")[0])
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    assert f"Continuing after step {stopped}" in finish("train", *_LONG, "--workdir", workdir)
    _assert_same_run(workdir, reference)


def _damage(checkpoint, how):
    files = (checkpoint / "state" / "d").iterdir()
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    half = len(content) // 2
    if how == "garble":
        content[half : half + 64] = bytes(byte ^ 0xFF for byte in content[half : half + 64])
    largest.write_bytes(content[:half] if how == "truncate" else content)


def test_damaged_checkpoints_are_named_and_the_one_before_is_used(tmp_path, reference):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    (workdir / "summary.json").unlink()
    steps = sorted(int(each.name) for each in (workdir / "checkpoints").glob("[0-9]*"))
    for step, how in zip(steps[-2:], ("garble", "truncate"), strict=True):
        _damage(workdir / "checkpoints" / str(step), how)
    # The checkpoints of orbax leave what failed to their loops of events.
    printed = finish_apart("train", *_LONG, "--workdir", workdir)
    for step in steps[-2:]:
        assert f"The checkpoint of step {step} cannot be used" in printed
    assert f"Continuing after step {steps[-3]}" in printed
    _assert_same_run(workdir, reference)


# A limit on the size of a file takes the part of the full disk.
_ON_A_FULL_DISK = """
import resource, sys
most = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
from experiments import train
train.main()
"""


def test_a_full_disk_is_said_in_one_sentence_and_loses_no_checkpoint(tmp_path, reference):
    shutil.copytree(reference, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    folder = tmp_path / "run" / "checkpoints"
    *kept, last = sorted(int(each.name) for each in folder.glob("[0-9]*"))
    shutil.rmtree(folder / str(last))
    command = [sys.executable, "-c", _ON_A_FULL_DISK, "1000000", *_LONG, "--workdir"]
    ran = subprocess.run(
        [*command, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: there is no room in {folder} for the checkpoint of step")
    assert ran.stderr.count("\n") == 1
    assert sorted(int(each.name) for each in folder.iterdir()) == kept
    finish("train", *_LONG, "--workdir", tmp_path / "run")
    _assert_same_run(tmp_path / "run", reference)


def test_another_configuration_is_refused_with_the_fields_that_differ(reference):
    before = (reference / "config.json").read_text()
    printed = refuse("train", *_LONG, "--workdir", reference, "--seed", "1", "--momentum", "0.5")
    assert "momentum: 0.9 → 0.5; seed: 0 → 1" in printed
    assert (reference / "config.json").read_text() == before


def test_a_finished_run_started_again_changes_nothing(tmp_path, reference):
    shutil.copytree(reference, tmp_path / "run")
    finish("train", *_LONG, "--workdir", tmp_path / "run")
    _assert_same_run(tmp_path / "run", reference)
