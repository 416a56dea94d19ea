"""osgd_jax: Orthogonalized SGD, task-gradient balancing and nested anytime networks."""

import importlib
from typing import Any

from osgd_jax import nets, weightings
from osgd_jax._balancing.aggregate import AggregateState, aggregate
from osgd_jax._balancing.diagnose import Diagnosis, diagnose
from osgd_jax._balancing.gramians import combine, gramian, task_cosines
from osgd_jax._balancing.norms import clip_task_norms, normalize_task_norms, task_norms
from osgd_jax._balancing.orthogonalize import orthogonalize, osgd
from osgd_jax._balancing.stateful import (
    GradDropState,
    MemoryState,
    db_mtl,
    excess_mtl,
    graddrop,
    moco,
)
from osgd_jax._balancing.stateful.alternating import TaskMomentaState, m_config, task_momenta
from osgd_jax._gradients.api import reach, task_grads, value_and_task_grads
from osgd_jax._gradients.rows import TaskRows, densify, to_task_rows
from osgd_jax._serving.answers import AnytimeOutput, GeneratedToken, Generation, Prediction
from osgd_jax._serving.generator import AnytimeGenerator
from osgd_jax._serving.predictor import AnytimePredictor
from osgd_jax._serving.server import AnytimeServer, OverloadedError, ServedAnswer
from osgd_jax._tasks import task_names
from osgd_jax.nets.cost import OutputCost, cost

__all__ = [
    "AggregateState",
    "AnytimeGenerator",
    "AnytimeOutput",
    "AnytimePredictor",
    "AnytimeServer",
    "Diagnosis",
    "GeneratedToken",
    "Generation",
    "GradDropState",
    "MemoryState",
    "OutputCost",
    "OverloadedError",
    "Prediction",
    "ServedAnswer",
    "TaskMomentaState",
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
    "value_and_task_grads",
    "weightings",
]

__version__ = "0.1.0"


def __dir__() -> list[str]:
    return [*globals(), "plots"]


def __getattr__(name: str) -> Any:
    if name == "plots":  # imported when asked for
        return importlib.import_module("osgd_jax.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
