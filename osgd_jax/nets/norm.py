"""Batch and group normalization with one multiply-add for each element.

Both reduce to scale and shift for each channel before they touch the large array again, so that the
compiler fuses the whole layer with its neighbors, and neither reshapes the large array into
groups.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from osgd_jax._math import at_least_float32
from osgd_jax._validation import check_positive
from osgd_jax.nets.sharding import read, write

_EPSILON = 1e-5
_MOMENTUM = 0.9
_MOST_GROUPS = 32
_LEAST_GROUP_SIZE = 4


def _scale_and_shift(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    # Of each example or, with one row, of all: `[rows, features]`.
    mean, var, scale, bias = (
        each.astype(mean.dtype).reshape(-1, each.shape[-1]) for each in (mean, var, scale, bias)
    )
    factor = scale * lax.rsqrt(var + _EPSILON)
    offset = bias - mean * factor
    spatial = tuple(range(1, x.ndim - 1))
    wide = x.astype(mean.dtype)
    y = wide * jnp.expand_dims(factor, spatial) + jnp.expand_dims(offset, spatial)
    return y.astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch normalization (Ioffe and Szegedy 2015, arXiv 1502.03167) over all axes but the last.

    `train()`, `eval()` and `nnx.view(..., use_running_average=...)` work as for `nnx.BatchNorm`,
    which would keep its statistics in float32 whatever the parameters' dtype. The running averages
    forget with factor 0.9 a step.

    Args:
      features: channels of the input.
      param_dtype: of scale and bias; the statistics are at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> norm = nets.BatchNorm(2)
      >>> y = norm(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
      >>> print(y.round(2))
      [[-1. -1.]
       [ 1.  1.]]
    """

    def __init__(self, features: int, *, param_dtype: DTypeLike = float):
        features = check_positive("features", features)
        zeros, ones = np.zeros(features), np.ones(features)
        self.scale = nnx.Param(jnp.asarray(ones, param_dtype))
        self.bias = nnx.Param(jnp.asarray(zeros, param_dtype))
        self.mean = nnx.BatchStat(jnp.asarray(zeros, at_least_float32(param_dtype)))
        self.var = nnx.BatchStat(jnp.asarray(ones, at_least_float32(param_dtype)))
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize `[batch, *spatial, features]`; return the same shape and dtype."""
        mean, var = read(self.mean), read(self.var)
        if not self.use_running_average:
            axes = tuple(range(x.ndim - 1))
            wide = x.astype(mean.dtype)
            batch_mean = wide.mean(axes)
            batch_var = jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(batch_mean), 0)
            for running, old, new in ((self.mean, mean, batch_mean), (self.var, var, batch_var)):
                write(running, _MOMENTUM * old + (1 - _MOMENTUM) * lax.stop_gradient(new))
            mean, var = batch_mean, batch_var
        return _scale_and_shift(x, mean, var, read(self.scale), read(self.bias))

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set the mode for `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average


class GroupNorm(nnx.Module):
    """Group normalization (Wu and He 2018, arXiv 1803.08494).

    The number of groups is the largest divisor of `features` that makes at most 32 groups of at
    least 4 channels.

    Args:
      features: channels of the input.
      param_dtype: of scale and bias.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> norm = nets.GroupNorm(4)
      >>> print(norm(jnp.array([[1.0, 3.0, 1.0, 3.0]])).round(2))
      [[-1.  1. -1.  1.]]
    """

    def __init__(self, features: int, *, param_dtype: DTypeLike = float):
        features = check_positive("features", features)
        self.scale = nnx.Param(jnp.asarray(np.ones(features), param_dtype))
        self.bias = nnx.Param(jnp.asarray(np.zeros(features), param_dtype))
        most = min(_MOST_GROUPS, max(1, features // _LEAST_GROUP_SIZE))
        groups = max(n for n in range(1, most + 1) if features % n == 0)
        # Channels and groups of each part; more than one where stripes were put together.
        self.parts = ((features, groups),)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize `[batch, *spatial, features]`; return the same shape and dtype."""
        scale, bias = read(self.scale), read(self.bias)
        wide = x.astype(at_least_float32(x.dtype, scale.dtype))
        spatial = tuple(range(1, x.ndim - 1))
        mean = self._over_groups(wide.mean(spatial))
        square = self._over_groups(jnp.square(wide).mean(spatial))
        var = jnp.maximum(square - jnp.square(mean), 0)
        return _scale_and_shift(x, mean, var, scale, bias)

    def _over_groups(self, moment: jax.Array) -> jax.Array:
        """Replace the members of each group in `[batch, features]` by their mean."""
        means, start = [], 0
        for features, groups in self.parts:
            part = moment[:, start : start + features].reshape(-1, groups, features // groups)
            means.append(jnp.repeat(part.mean(-1), features // groups, axis=1))
            start += features
        return jnp.concatenate(means, axis=1)
