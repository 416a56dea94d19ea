"""Files of a run: config.json, metrics.jsonl, TensorBoard events; of `train` and of `pinn`."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import jax

from experiments.app.config import Config, differences
from experiments.app.files import open_folder, read_json, read_records, write_json, write_records
from experiments.app.machine import versions

_PACKAGES = ("osgd-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

# The programs that train, each with a setting that it alone has.
_PROGRAMS = MappingProxyType({"experiments.train": "data", "experiments.pinn": "problem"})

# What they write at the end.
_RESULTS = ("summary.json", "results.json")


class Configuration(Protocol):
    """Settings of a run, of either program."""

    def as_json(self) -> dict[str, Any]:
        """All settings, flat: the workdir, and the one by which the program is told."""
        ...


def open_workdir(config: Configuration) -> dict[str, Any]:
    """Write config.json, or check that the run in the workdir has the same configuration.

    A run that has not saved anything yet takes the new configuration.

    Returns:
      The contents of config.json: all settings and the versions.

    Raises:
      ValueError: the workdir cannot be written, or holds a run of another configuration (the
        message lists the differences) or of another program.
    """
    settings = config.as_json()
    workdir = Path(settings["workdir"])
    open_folder(workdir, "workdir")
    about = {**settings, "versions": versions(*_PACKAGES)}
    if has_results(workdir) or _config_file(workdir).exists():
        (program,) = (name for name, field in _PROGRAMS.items() if field in settings)
        saved = read_settings(workdir, program)
        if has_results(workdir):
            _check_same(workdir, saved, settings)
    if jax.process_index() == 0:
        write_json(_config_file(workdir), about)
    return about


def read_settings(workdir: Path, program: str = "experiments.train") -> dict[str, Any]:
    """Read config.json of a run of `program`, without the versions.

    Raises:
      ValueError: there is no run in the folder, its file is damaged, or it is another program's.
    """
    file = _config_file(workdir)
    if not file.exists():
        raise ValueError(f"{workdir} holds no run: {file} does not exist.")
    saved = read_json(file)
    found = [name for name, field in _PROGRAMS.items() if field in saved]
    if not found:
        raise ValueError(f"{file} is damaged (it lacks {_PROGRAMS[program]}); restore it.")
    if program not in found:
        raise ValueError(f"{workdir} holds a run of {found[0]}; give a workdir of {program}.")
    saved.pop("versions", None)
    return saved


def read_config(workdir: Path) -> Config:
    """Read the configuration of a run of `experiments.train`.

    Raises:
      ValueError: as `read_settings`.
    """
    saved = read_settings(workdir)
    try:
        return Config.from_json(saved | {"workdir": str(workdir)})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_config_file(workdir)} is damaged ({error}); restore it or remove it."
        ) from None


def has_results(workdir: Path) -> bool:
    """Tell whether a run has saved a checkpoint or come to its end."""
    checkpoints = workdir / "checkpoints"
    saved = checkpoints.is_dir() and any(each.name.isdigit() for each in checkpoints.iterdir())
    return saved or any((workdir / name).exists() for name in _RESULTS)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl.

    Raises:
      ValueError: the file is missing or damaged, or has no record yet.
    """
    file = workdir / "metrics.jsonl"
    records = read_records(file)
    if not records:
        state = "holds no record yet" if file.exists() else "does not exist"
        raise ValueError(f"{file} {state}; train for at least one step with a new --workdir.")
    return records


def _check_same(workdir: Path, saved: dict[str, Any], settings: Mapping[str, Any]) -> None:
    saved, current = dict(saved), dict(settings)
    # Folders may have been moved: their contents are compared when they have been read.
    if all(str(each.get("data")).startswith("folder:") for each in (saved, current)):
        saved["data"] = current["data"]
    if _name(saved.get("start_from")) == _name(current.get("start_from")):
        saved["start_from"] = current.get("start_from")
    changed = differences(saved, current)
    if not changed:
        return
    remedy = "give the same options to continue, or another --workdir"
    if "start_from" in current:
        remedy += f", with --start-from {workdir} to begin with its weights"
    if any(each.startswith("epochs: ") for each in changed):
        remedy += "; more epochs go on with it under --schedule constant alone"
    raise ValueError(
        f"{workdir} holds a run of another configuration ({'; '.join(changed)}); {remedy}."
    )


def _name(path: str | None) -> str | None:
    return path and Path(path).name


def _config_file(workdir: Path) -> Path:
    return workdir / "config.json"


class MetricsLog:
    """Appends to metrics.jsonl and to TensorBoard event files, closed at the end of a `with`.

    Args:
      workdir: of the run.
      step: of the checkpoint from which the run goes on; later records are dropped, since these
        steps are done again.
    """

    def __init__(self, workdir: Path, step: int):
        from tensorboardX import SummaryWriter

        file = workdir / "metrics.jsonl"
        write_records(file, [each for each in read_records(file) if each["step"] <= step])
        self._file = file.open("a")
        if step == 0:
            shutil.rmtree(workdir / "events", ignore_errors=True)
        self._events = SummaryWriter(str(workdir / "events"), purge_step=step + 1 if step else None)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; it is on the disk when this returns."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in _scalars(record):
            self._events.add_scalar(name, value, record["step"])

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()


class Clock:
    """Times of a run, from a step on."""

    def __init__(self, step: int):
        self._begun = self._since = time.perf_counter()
        self._first = self._last = step

    def at(self, step: int) -> dict[str, float]:
        """Seconds from the beginning, and steps per second from the last call on."""
        now = time.perf_counter()
        rate = (step - self._last) / (now - self._since)
        self._last = step
        return {"seconds": round(now - self._begun, 3), "steps_per_second": round(rate, 3)}

    def go_on(self) -> None:
        """Leave out of the next rate what was done since the last call of `at`."""
        self._since = time.perf_counter()

    def total(self, step: int, waited: float) -> dict[str, float]:
        """Of the whole run."""
        seconds = time.perf_counter() - self._begun
        return {
            "seconds": round(seconds, 3),
            "steps_per_second": round((step - self._first) / seconds, 3),
            "waiting_for_input": round(waited / seconds, 4),
        }


def _scalars(record: dict[str, Any]):
    """Names and numbers of a record: `losses/2` for the second output, `task_cosines/1_2`."""
    for name, value in record.items():
        if name == "step":
            continue
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", number) for key, number in value.items())
        elif not isinstance(value, list):
            yield name, value
        elif value and isinstance(value[0], list):
            for i, row in enumerate(value):
                yield from ((f"{name}/{i + 1}_{j + 1}", row[j]) for j in range(i))
        else:
            yield from ((f"{name}/{k + 1}", number) for k, number in enumerate(value))
