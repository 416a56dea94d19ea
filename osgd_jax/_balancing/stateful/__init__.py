"""Methods that are no function of the Gramian alone, or remember something for each gradient."""

from osgd_jax._balancing.stateful.db_mtl import db_mtl
from osgd_jax._balancing.stateful.excess_mtl import excess_mtl
from osgd_jax._balancing.stateful.graddrop import GradDropState, graddrop
from osgd_jax._balancing.stateful.memory import MemoryState
from osgd_jax._balancing.stateful.moco import moco

__all__ = ["GradDropState", "MemoryState", "db_mtl", "excess_mtl", "graddrop", "moco"]
