"""The files of a run: config, data and summary.json, metrics.jsonl, TensorBoard events."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.config import Config, differences
from experiments.data import Dataset
from experiments.tables import versions

_PACKAGES = ("osgd-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def open_workdir(config: Config) -> dict[str, Any]:
    """Write config.json, or check that the run which is there has the same configuration.

    A run that has not saved anything yet takes the new configuration.

    Returns:
      The contents of config.json: all fields and the versions.

    Raises:
      ValueError: another run is in the workdir, and which fields differ.
      OSError: the workdir cannot be written.
    """
    current = config.as_json()
    about = current | {"versions": versions(*_PACKAGES)}
    config.workdir.mkdir(parents=True, exist_ok=True)
    if has_results(config.workdir) and _file(config.workdir, "config").exists():
        saved = _read(config.workdir, "config")
        del saved["versions"]
        # Folders may have been moved: what is in them is compared when it has been read.
        if all(str(each["data"]).startswith("folder:") for each in (saved, current)):
            saved["data"] = current["data"]
        if _name(saved.get("start_from")) == _name(current["start_from"]):
            saved["start_from"] = current["start_from"]
        changed = differences(saved, current)
        if changed:
            epochs = " More epochs go on with it under --schedule constant alone."
            raise ValueError(
                f"{config.workdir} holds a run of another configuration ({'; '.join(changed)});"
                f" give the same options to continue, or another --workdir, with --start-from"
                f" {config.workdir} to begin with its weights."
                + (epochs if "epochs" in saved and saved["epochs"] != current["epochs"] else "")
            )
    if jax.process_index() == 0:
        write_json(_file(config.workdir, "config"), about)
    return about


def has_results(workdir: Path) -> bool:
    """Whether a run has saved a checkpoint or come to its end."""
    checkpoints = workdir / "checkpoints"
    saved = checkpoints.is_dir() and any(each.name.isdigit() for each in checkpoints.iterdir())
    return saved or _file(workdir, "summary").exists()


def keep_data(workdir: Path, dataset: Dataset) -> None:
    """Write data.json, all that is needed of the data for inference, or compare with what is there.

    Raises:
      ValueError: the run was trained on other data.
    """
    found: dict[str, Any] = {
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "classes": list(dataset.classes),
        "input_shape": list(dataset.input_shape),
        **dataset.raw._asdict(),
        "examples": {part: getattr(dataset, part).size for part in ("train", "validation", "test")},
        "rule": dataset.rule,
    }
    if has_results(workdir) and _file(workdir, "data").exists():
        check_rule(workdir, dataset)
        saved = {"rule": dataset.rule} | _read(workdir, "data")
        measured = ("mean", "deviation")  # equal to rounding on another machine
        changed = [
            f"{name}: {saved[name]} → {found[name]}"
            for name in found.keys() - {"name", *measured}
            if saved[name] != found[name]
        ]
        changed += [
            name for name in measured if not np.allclose(saved[name], found[name], rtol=1e-4)
        ]
        if changed:
            raise ValueError(
                f"{dataset.name} is not what the run in {workdir} was trained on"
                f" ({'; '.join(sorted(changed))}); give that data, or another --workdir, or to"
                " experiments.evaluate --data."
            )
    if jax.process_index() == 0:
        write_json(_file(workdir, "data"), found)


def check_rule(workdir: Path, dataset: Dataset) -> None:
    """Refuse a data set whose held-out examples a run of an older version may have trained on.

    Raises:
      ValueError: the run knew no rule by which examples are held out, and the data set has one.
    """
    if dataset.rule and "rule" not in _read(workdir, "data"):
        raise ValueError(
            f"the run in {workdir} is of an earlier version, which held out other examples of"
            f" {dataset.name}, so it would be tested on examples that it was trained on; train"
            " again in another --workdir, or name the splits of the data."
        )


def read_config(workdir: Path) -> Config:
    """The configuration of a run.

    Raises:
      ValueError: there is no run in the folder.
    """
    file = _file(workdir, "config")
    if not file.exists():
        raise ValueError(f"{workdir} holds no run: {file} does not exist.")
    return Config.from_json(_read(workdir, "config") | {"workdir": str(workdir)})


def read_data(workdir: Path) -> Dataset:
    """What a run was trained on, without the examples.

    Raises:
      ValueError: the run has not loaded its data yet.
    """
    file = _file(workdir, "data")
    if not file.exists():
        raise ValueError(f"{file} does not exist; start the run's command again, which writes it.")
    saved = _read(workdir, "data")
    return Dataset(
        saved["name"],
        saved["num_classes"],
        *(None, None, None),
        input_shape=tuple(saved["input_shape"]),
        mean=tuple(saved["mean"]),
        deviation=tuple(saved["deviation"]),
        dtype=saved["dtype"],
        classes=tuple(saved["classes"]),
    )


def _name(path: str | None) -> str | None:
    return path and Path(path).name


def _file(workdir: Path, name: str) -> Path:
    return workdir / f"{name}.json"


def _read(workdir: Path, name: str) -> dict[str, Any]:
    return json.loads(_file(workdir, name).read_text())


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line that was cut off by a crash is left out."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_json(file: Path, value: Any) -> None:
    """Write a file so that it is there in full or not at all."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """As `write_json`, for text."""
    part = file.with_name(file.name + ".part")
    with part.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(file)


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
        kept = [record for record in read_metrics(workdir) if record["step"] <= step]
        write_text(file, "".join(json.dumps(record) + "\n" for record in kept))
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
