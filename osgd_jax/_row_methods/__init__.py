"""Methods that are no function of the Gramian alone, or remember something for each gradient."""

from osgd_jax._row_methods._db_mtl import db_mtl
from osgd_jax._row_methods._excess_mtl import excess_mtl
from osgd_jax._row_methods._graddrop import GradDropState, graddrop
from osgd_jax._row_methods._memory import MemoryState
from osgd_jax._row_methods._moco import moco

__all__ = ["GradDropState", "MemoryState", "db_mtl", "excess_mtl", "graddrop", "moco"]
