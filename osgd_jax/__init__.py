"""osgd_jax: Orthogonalized SGD, task-gradient balancing and nested anytime networks."""

import importlib
from typing import Any

from osgd_jax import nets, typing, weightings
from osgd_jax._balancing.aggregate import aggregate
from osgd_jax._balancing.diagnose import diagnose
from osgd_jax._balancing.gramians import combine, gramian, task_cosines
from osgd_jax._balancing.norms import clip_task_norms, normalize_task_norms, task_norms
from osgd_jax._balancing.orthogonalize import orthogonalize, osgd
from osgd_jax._balancing.stateful import db_mtl, excess_mtl, graddrop, moco
from osgd_jax._balancing.stateful.alternating import m_config, task_momenta
from osgd_jax._gradients.api import reach, task_grads, value_and_task_grads
from osgd_jax._gradients.rows import TaskRows, densify, to_task_rows
from osgd_jax._serving.generator import AnytimeGenerator
from osgd_jax._serving.predictor import AnytimePredictor
from osgd_jax._serving.server import AnytimeServer, OverloadedError
from osgd_jax._tasks import task_names
from osgd_jax.nets.cost import cost

# Results and states stay importable from here, but `typing` alone lists them.
from osgd_jax.typing import *  # noqa: F403

__all__ = [
    "AnytimeGenerator",
    "AnytimePredictor",
    "AnytimeServer",
    "OverloadedError",
    "TaskRows",
    "aggregate",
    "clip_task_norms",
    "combine",
    "cost",
    "db_mtl",
    "densify",
    "diagnose",
    "excess_mtl",
    "graddrop",
    "gramian",
    "m_config",
    "moco",
    "nets",
    "normalize_task_norms",
    "orthogonalize",
    "osgd",
    "reach",
    "task_cosines",
    "task_grads",
    "task_momenta",
    "task_names",
    "task_norms",
    "to_task_rows",
    "typing",
    "value_and_task_grads",
    "weightings",
]

__version__ = "0.1.0"


def __dir__() -> list[str]:
    return [*__all__, "__version__", "plots"]


def __getattr__(name: str) -> Any:
    if name == "plots":  # imported when asked for
        return importlib.import_module("osgd_jax.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
