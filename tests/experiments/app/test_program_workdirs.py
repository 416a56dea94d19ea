"""Both programs that train treat their workdirs alike, and so do the programs that read them."""

import json
import shutil

import pytest

from tests.experiments.running import SMALL, finish, refuse

_TRAIN = ("train", *SMALL)
_PINN = (
    *("pinn", "--problem", "klein_gordon", "--steps", "4", "--width", "4", "--layers", "1"),
    *("--points", "8", "--edge-points", "4", "--log-every", "2", "--save-every", "4"),
)
_PROGRAMS = {"train": (_TRAIN, "summary.json"), "pinn": (_PINN, "results.json")}
_BOTH = pytest.mark.parametrize("program", _PROGRAMS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_run):
    """The workdir of a finished run of each program; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(digits_run, folder / "train")
    finish(*_PINN, "--workdir", folder / "pinn")
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the workdirs."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def _content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "events" not in path.parts
    }


@_BOTH
def test_a_finished_run_repeated_keeps_all_its_files(copied, program):
    command, result = _PROGRAMS[program]
    before = _content(copied / program)
    finish(*command, "--workdir", copied / program)
    after = _content(copied / program)
    assert after[result] == before[result]
    assert json.loads(after[result])["clock"]["steps_per_second"] > 0
    assert after["metrics.jsonl"] == before["metrics.jsonl"]
    # The result stands for the log, too.
    (copied / program / "metrics.jsonl").unlink()
    finish(*command, "--workdir", copied / program)


@_BOTH
def test_a_result_that_is_gone_is_made_again_without_a_clock(copied, program):
    command, result = _PROGRAMS[program]
    before = json.loads((copied / program / result).read_text())
    (copied / program / result).unlink()
    finish(*command, "--workdir", copied / program)
    after = json.loads((copied / program / result).read_text())
    assert after == before | {"clock": None}
    (copied / program / result).unlink()
    (copied / program / "metrics.jsonl").unlink()
    assert "metrics.jsonl does not exist" in refuse(*command, "--workdir", copied / program)


@_BOTH
@pytest.mark.parametrize("gone", ["checkpoints", "nothing"])
def test_another_configuration_changes_nothing(copied, program, gone):
    command, _ = _PROGRAMS[program]
    shutil.rmtree(copied / program / gone, ignore_errors=True)
    before = _content(copied / program)
    printed = refuse(*command, "--seed", "1", "--workdir", copied / program)
    assert "holds a run of another configuration (seed: 0 → 1)" in printed
    assert _content(copied / program) == before


@_BOTH
def test_a_workdir_of_the_other_program_is_refused(copied, program):
    other = "pinn" if program == "train" else "train"
    before = _content(copied / other)
    printed = refuse(*_PROGRAMS[program][0], "--workdir", copied / other)
    assert f"holds a run of experiments.{other}; give a workdir of experiments.{program}" in (
        printed
    )
    assert _content(copied / other) == before


@pytest.mark.parametrize("reader", ["evaluate", "export"])
def test_programs_that_read_runs_name_what_is_wrong(copied, reader):
    run = copied / "train"
    output = () if reader == "evaluate" else ("--output", copied / "out")
    assert "holds a run of experiments.pinn" in refuse(reader, copied / "pinn", *output)
    assert "holds no run" in refuse(reader, run / "summary.json", *output)
    config = run / "config.json"
    text = config.read_text()
    for damaged, words in (
        (text[:50], "config.json is damaged (Unterminated"),
        ("{}", "config.json is damaged (it lacks data)"),
        (text.replace('"epochs": 2', '"epochs": "two"'), "config.json is damaged ('>='"),
    ):
        config.write_text(damaged)
        assert words in refuse(reader, run, *output)
    config.write_text(text)
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint" in refuse(reader, run, *output)
    assert not (run / "checkpoints").exists()
    for damaged in ("", "[]", "{}"):
        (run / "data.json").write_text(damaged)
        assert "data.json is damaged" in refuse(reader, run, *output)


@_BOTH
def test_damaged_files_of_a_run_are_named(copied, program):
    command, result = _PROGRAMS[program]
    for name in (result, "config.json"):
        (copied / program / name).write_text("{")
        assert f"{name} is damaged" in refuse(*command, "--workdir", copied / program)


@_BOTH
def test_a_workdir_that_cannot_be_one_is_refused(tmp_path, program):
    command, _ = _PROGRAMS[program]
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        printed = refuse(*command, "--workdir", workdir)
        assert f"error: workdir={workdir} must be a folder, got a file" in printed
    assert "error: workdir=/proc/run must be a folder to write to" in refuse(
        *command, "--workdir", "/proc/run"
    )


@_BOTH
def test_checkpoints_without_a_configuration_are_not_taken_over(copied, program):
    command, _ = _PROGRAMS[program]
    (copied / program / "config.json").unlink()
    printed = refuse(*command, "--workdir", copied / program)
    assert "config.json does not exist" in printed


def test_an_evaluation_reads_what_a_run_is_still_writing(copied):
    unfinished = copied / "train" / "checkpoints" / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    finish("evaluate", copied / "train")
    assert unfinished.exists()
