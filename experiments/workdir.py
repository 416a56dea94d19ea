"""The files of a run: config.json, metrics.jsonl, summary.json, TensorBoard events."""

import json
import os
from pathlib import Path
from typing import Any

import jax

from experiments.config import Config, differences
from experiments.tables import versions

_PACKAGES = ("osgd-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def open_workdir(config: Config) -> dict[str, Any]:
    """Write config.json, or check that the run which is there has the same configuration.

    Returns:
      The contents of config.json: all fields and the versions.

    Raises:
      ValueError: another run is in the workdir, and which fields differ.
      OSError: the workdir cannot be written.
    """
    about = config.as_json() | {"versions": versions(*_PACKAGES)}
    file = config.workdir / "config.json"
    config.workdir.mkdir(parents=True, exist_ok=True)
    if file.exists():
        saved = json.loads(file.read_text())
        saved.pop("versions", None)
        changed = differences(saved, config.as_json())
        if changed:
            raise ValueError(
                f"{config.workdir} holds a run of another configuration ({'; '.join(changed)});"
                " give another --workdir, or the same options to continue."
            )
    if jax.process_index() == 0:
        write_json(file, about)
    return about


def read_config(workdir: Path) -> Config:
    """The configuration of a run.

    Raises:
      ValueError: there is no run in the folder.
    """
    file = workdir / "config.json"
    if not file.exists():
        raise ValueError(f"{workdir} holds no run: {file} does not exist.")
    return Config.from_json(json.loads(file.read_text()) | {"workdir": str(workdir)})


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
