"""Logs of a run: metrics.jsonl, TensorBoard events, and the clock; of `train` and of `pinn`."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from experiments.app.files import read_records, write_records


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
    """Clock of a run, from a step on."""

    def __init__(self, step: int):
        self._begun = self._since = time.perf_counter()
        self._first = self._last = step

    def at(self, step: int) -> dict[str, float]:
        """Return seconds since the start, and steps per second since the last call."""
        now = time.perf_counter()
        rate = (step - self._last) / (now - self._since)
        self._last = step
        return {"seconds": round(now - self._begun, 3), "steps_per_second": round(rate, 3)}

    def go_on(self) -> None:
        """Exclude the time since the last call of `at` from the next rate."""
        self._since = time.perf_counter()

    def total(self, step: int, waited: float) -> dict[str, float]:
        """Return seconds, steps per second and the share of waiting of the whole run."""
        seconds = time.perf_counter() - self._begun
        return {
            "seconds": round(seconds, 3),
            "steps_per_second": round((step - self._first) / seconds, 3),
            "waiting_for_input": round(waited / seconds, 4),
        }


def _scalars(record: dict[str, Any]):
    """Yield names and numbers of a record, such as `losses/2` and `task_cosines/2_1`.

    A net whose first outputs are frozen has no gradients of these.
    """
    outputs = len(record.get("losses", ()))
    for name, value in record.items():
        if name == "step":
            continue
        first = 1 + (max(0, outputs - len(value)) if isinstance(value, list) else 0)
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", number) for key, number in value.items())
        elif not isinstance(value, list):
            yield name, value
        elif value and isinstance(value[0], list):
            for i, row in enumerate(value):
                yield from ((f"{name}/{i + first}_{j + first}", row[j]) for j in range(i))
        else:
            yield from ((f"{name}/{k}", number) for k, number in enumerate(value, first))
