"""Convolution and linear layers, initialized without a compilation for each shape."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike

from osgd_jax._math import result_type
from osgd_jax._validation import (
    check_bool,
    check_channels,
    check_choice,
    check_float_dtype,
    check_positive,
    check_rngs,
    check_spatial_dims,
)
from osgd_jax.nets.norm import BatchNorm, GroupNorm
from osgd_jax.nets.sharding import read

_CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def draw_normal(
    rngs: nnx.Rngs, shape: tuple[int, ...], scale: float, dtype: DTypeLike
) -> jax.Array:
    """Draw normal numbers of standard deviation `scale`.

    NumPy draws them, seeded by the next key of `rngs`, since `jax.random` compiles once for each
    new shape: a depth-nested net is made in 0.3 s instead of 8 s on 2 CPU cores. Under a
    transformation (`nnx.eval_shape`, `nnx.jit`) the key has no value and `jax.random` draws: other
    numbers of the same distribution.
    """
    check_rngs(rngs)
    key = rngs.params()
    if isinstance(key, Tracer):
        return scale * jax.random.normal(key, shape, dtype)
    seed = np.asarray(jax.random.key_data(key))
    draws = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jnp.asarray(np.float32(scale) * draws, dtype)


class Conv(nnx.Module):
    """Convolution without bias, "SAME" padding, channels last.

    Initialized as by He et al. 2015 (arXiv 1502.01852).

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      size: taps along each spatial axis.
      stride: step along each spatial axis.
      spatial_dims: 1 or 2.
      dtype: of the computation; None takes that of input and kernel together.
      param_dtype: of the kernel.
      rngs: source of the initial kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> conv = nets.Conv(3, 8, stride=2, rngs=nnx.Rngs(0))
      >>> conv(jnp.ones((1, 4, 4, 3))).shape
      (1, 2, 2, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        size: int = 3,
        stride: int = 1,
        spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = float,
        rngs: nnx.Rngs,
    ):
        size, stride = check_positive("size", size), check_positive("stride", stride)
        spatial_dims = check_spatial_dims(spatial_dims)
        features = (
            check_positive("in_features", in_features),
            check_positive("out_features", out_features),
        )
        shape = (size,) * spatial_dims + features
        scale = math.sqrt(2 / math.prod(shape[:-1]))
        self.kernel = nnx.Param(draw_normal(rngs, shape, scale, param_dtype))
        self.strides = (stride,) * spatial_dims
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[batch, *spatial, in_features]` to `[batch, *spatial / stride, out_features]`."""
        kernel = read(self.kernel)
        check_channels(x.shape, kernel.shape[-2])
        dtype = self.dtype or result_type(x, kernel)
        if len(self.strides) == 1:
            return _sequence_conv(x.astype(dtype), kernel.astype(dtype), *self.strides)
        return lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            self.strides,
            "SAME",
            dimension_numbers=_CHANNELS_LAST,
        )


def _sequence_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Compute a 1-D convolution as the product of the windows with the kernel.

    Alone it is as fast as `lax.conv_general_dilated`. Under `vmap` over nets it stays a (batched)
    product, where that becomes a grouped convolution, and in `lax.scan` it keeps its speed on CPU.
    Forward and backward pass over 32 sequences of 64 positions and 32 channels, on 2 CPU cores:
    0.27 ms instead of 0.28 ms alone, 1.1 ms instead of 1.6 ms for four nets under `vmap`, 1.0 ms
    instead of 37 ms for four steps in `lax.scan`.
    """
    taps, in_features, out_features = kernel.shape
    length = -(-x.shape[1] // stride)
    span = (length - 1) * stride + 1
    padding = max(span + taps - 1 - x.shape[1], 0)
    x = jnp.pad(x, ((0, 0), (padding // 2, padding - padding // 2), (0, 0)))
    windows = [x[:, tap : tap + span : stride] for tap in range(taps)]
    return jnp.concatenate(windows, axis=-1) @ kernel.reshape(taps * in_features, out_features)


class Linear(nnx.Module):
    """Affine map, computed in the dtype of its parameters so that logits keep their precision.

    Args:
      in_features: size of the last axis of the input.
      out_features: size of the last axis of the output.
      param_dtype: of kernel and bias.
      rngs: source of the initial kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> linear = nets.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> linear(jnp.ones((2, 4))).shape
      (2, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        param_dtype: DTypeLike = float,
        rngs: nnx.Rngs,
    ):
        in_features = check_positive("in_features", in_features)
        out_features = check_positive("out_features", out_features)
        scale = 1 / math.sqrt(in_features)
        self.kernel = nnx.Param(draw_normal(rngs, (in_features, out_features), scale, param_dtype))
        self.bias = nnx.Param(jnp.asarray(np.zeros(out_features), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[batch, in_features]` to `[batch, out_features]`."""
        kernel = read(self.kernel)
        check_channels(x.shape, kernel.shape[0])
        computed = result_type(x, kernel)
        bias = read(self.bias).astype(computed)[None]
        return x.astype(computed) @ kernel.astype(computed) + bias


@dataclasses.dataclass(frozen=True)
class Layers:
    """Make the layers of one net, which share these settings.

    Attributes:
      rngs: source of the initial parameters.
      spatial_dims: 1 or 2.
      norm: "batch" or "group".
      dtype: of the computation; None takes that of input and parameters together.
      param_dtype: of the parameters; `float` is float32, or float64 under `jax.enable_x64`.
      remat: compute the inside of each residual block again in the backward pass instead of
        keeping it.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> layers = nets.Layers(nnx.Rngs(0), norm="group", dtype=jnp.bfloat16)
      >>> layers.conv(3, 8, stride=2)(jnp.ones((1, 4, 4, 3))).dtype
      dtype(bfloat16)
    """

    rngs: nnx.Rngs
    spatial_dims: int = 2
    norm: str = "batch"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = float
    remat: bool = False

    def __post_init__(self):
        check_rngs(self.rngs)
        check_choice("norm", self.norm, ("batch", "group"))
        object.__setattr__(self, "spatial_dims", check_spatial_dims(self.spatial_dims))
        check_bool("remat", self.remat)
        check_float_dtype("param_dtype", self.param_dtype)
        if self.dtype is not None:
            check_float_dtype("dtype", self.dtype)

    def conv(self, in_features: int, out_features: int, *, size: int = 3, stride: int = 1) -> Conv:
        """Make a `Conv` of these dimensions and dtypes."""
        return Conv(
            in_features,
            out_features,
            size=size,
            stride=stride,
            spatial_dims=self.spatial_dims,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def normalization(self, features: int) -> BatchNorm | GroupNorm:
        """Make a normalization of the chosen kind."""
        kind = BatchNorm if self.norm == "batch" else GroupNorm
        return kind(features, param_dtype=self.param_dtype)

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Make a `Linear` of these dtypes."""
        return Linear(in_features, out_features, param_dtype=self.param_dtype, rngs=self.rngs)
