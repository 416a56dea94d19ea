"""Tables in Markdown, and what figures were measured on."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import jax


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
