"""Methods that need more than the Gramian, or that remember the gradients."""

from osgd_jax._balancing.stateful.db_mtl import db_mtl
from osgd_jax._balancing.stateful.excess_mtl import excess_mtl
from osgd_jax._balancing.stateful.graddrop import GradDropState, graddrop
from osgd_jax._balancing.stateful.memory import MemoryState
from osgd_jax._balancing.stateful.moco import moco

__all__ = ["GradDropState", "MemoryState", "db_mtl", "excess_mtl", "graddrop", "moco"]
