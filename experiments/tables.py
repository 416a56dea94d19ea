"""Tables in Markdown, means with their intervals, and what figures were measured on."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; each line of it ends with a newline."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def versions(*packages: str) -> dict[str, str]:
    """Versions of the packages, or of those that every figure depends on."""
    return {name: importlib.metadata.version(name) for name in packages or ("jax", "optax", "flax")}


def machine() -> dict[str, Any]:
    """What figures are measured on and with."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "versions": versions(),
    }


class Interval(NamedTuple):
    """A mean with its 95 % interval, of Student's t."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.half_width:.2f}"


def interval(values: np.ndarray) -> Interval:
    """The mean of some values with its interval; of infinite width for a single one."""
    if len(values) < 2:
        return Interval(float(np.mean(values)), float("inf"))
    width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return Interval(float(np.mean(values)), float(width))
