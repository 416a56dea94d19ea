"""Ways to turn the Gramian of the task gradients into weights, one method a file.

A weighting is a pair of pure functions (see `Weighting`); `osgd_jax.aggregate` makes an optax
transformation of one.
"""

from osgd_jax.weightings._base import Weighting
from osgd_jax.weightings._linear import mean, sum
from osgd_jax.weightings._orthogonal import orthogonal

__all__ = ["Weighting", "mean", "orthogonal", "sum"]
