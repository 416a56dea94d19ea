"""Classes of the results and states that `osgd_jax` returns, for annotations and `isinstance`.

`osgd_jax` exports them under the same names.
"""

from osgd_jax._balancing.aggregate import AggregateState
from osgd_jax._balancing.diagnose import Diagnosis
from osgd_jax._balancing.stateful import GradDropState, MemoryState
from osgd_jax._balancing.stateful.alternating import TaskMomentaState
from osgd_jax._serving.answers import AnytimeOutput, GeneratedToken, Generation, Prediction
from osgd_jax._serving.server import ServedAnswer
from osgd_jax.nets.cost import OutputCost

__all__ = [
    "AggregateState",
    "AnytimeOutput",
    "Diagnosis",
    "GeneratedToken",
    "Generation",
    "GradDropState",
    "MemoryState",
    "OutputCost",
    "Prediction",
    "ServedAnswer",
    "TaskMomentaState",
]
