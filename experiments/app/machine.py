"""Hardware and versions, which are stored with every measurement."""

import datetime
import importlib.metadata
import os
import platform
from typing import Any

import jax


def versions(*packages: str) -> dict[str, str]:
    """Return versions of the packages; of JAX, Optax and Flax if none are given."""
    return {name: importlib.metadata.version(name) for name in packages or ("jax", "optax", "flax")}


def machine() -> dict[str, Any]:
    """Return date, hardware and versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "versions": versions(),
    }
