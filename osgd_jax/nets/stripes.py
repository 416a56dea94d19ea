"""Stripes of channels: the layers of nets that are nested in width.

The channels of a layer are cut into stripes, one for each output. Stripe k of a layer reads the
stripes 0 … k of the layer before, so that a convolution as a whole is block lower triangular. Each
stripe is a separate module with a separate kernel, so that a loss reaches exactly the stripes that
it depends on.

A stripe takes the new channels of its input and a *memory*, the channels that earlier stripes of
the layer have read. It returns the memory for the next stripe. `None` is the memory of the first
stripe.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from osgd_jax._validation import as_number, check_positive
from osgd_jax.nets.layers import Layers


def geometric_fractions(num_outputs: int, ratio: float = 2.0) -> tuple[float, ...]:
    """Return cumulative fractions of the width that grow by `ratio`.

    Args:
      num_outputs: number of fractions.
      ratio: the factor from one fraction to the next, above 1.

    Returns:
      A tuple of `num_outputs` numbers; the last is 1.

    Raises:
      ValueError: `ratio` is not a number above 1, or `num_outputs` is not a positive integer.

    Example:
      >>> from osgd_jax import nets
      >>> nets.geometric_fractions(3)
      (0.25, 0.5, 1.0)
    """
    num_outputs = check_positive("num_outputs", num_outputs)
    if not 1 < as_number(ratio) < math.inf:
        raise ValueError(f"ratio={ratio!r} must be a number above 1.")
    return tuple(ratio ** (k + 1 - num_outputs) for k in range(num_outputs))


def check_fractions(fractions: Any, num_outputs: int | None = None) -> tuple[float, ...]:
    """Return `fractions`, growing numbers above 0 of which the last is 1, as a tuple.

    Args:
      fractions: the numbers.
      num_outputs: how many there must be; None for any number.

    Raises:
      ValueError: they are something else.
    """
    try:
        shares = tuple(map(as_number, fractions))
    except TypeError:
        shares = ()
    wanted = len(shares) if num_outputs is None else num_outputs
    growing = all(a < b for a, b in zip((0, *shares), shares, strict=False))
    if len(shares) != wanted or not growing or shares[-1:] != (1,):
        raise ValueError(
            f"fractions={fractions!r} must be {wanted or 'some'} cumulative fractions of the width,"
            " one for each output, that grow from above 0 to 1, such as (0.25, 0.5, 1)."
        )
    return shares


def stripe_sizes(width: int, fractions: Sequence[float]) -> tuple[int, ...]:
    """Cut `width` channels into stripes.

    The cumulative sizes are rounded to a multiple of the largest power of two up to 8 that divides
    the width, leaves room for two such multiples a stripe and leaves none empty, because odd
    numbers of channels are slow and have no groups to normalize. A stripe that would be empty gets
    one channel.

    Args:
      width: channels of the layer.
      fractions: cumulative fractions of the width, the last of them 1.

    Returns:
      The number of channels of each stripe; they sum to `width`.

    Raises:
      ValueError: there are more stripes than channels, or an argument is invalid.

    Example:
      >>> from osgd_jax import nets
      >>> nets.stripe_sizes(64, (0.25, 0.5, 1.0))
      (16, 16, 32)
    """
    width, fractions = check_positive("width", width), check_fractions(fractions)
    count = len(fractions)
    if count > width:
        raise ValueError(
            f"widths has a level of {width} channels, too narrow for {count} stripes;"
            " use a wider level or fewer outputs."
        )
    for multiple in (8, 4, 2, 1):
        ends = [multiple * round(width * fraction / multiple) for fraction in fractions]
        roomy = width % multiple == 0 and 2 * multiple * count <= width
        if roomy and all(a < b for a, b in itertools.pairwise((0, *ends))):
            return _differences(ends)
    for k, fraction in enumerate(fractions):
        before = ends[k - 1] if k else 0
        ends[k] = min(max(round(width * fraction), before + 1), width - (count - 1 - k))
    return _differences(ends)


def _differences(ends: Sequence[int]) -> tuple[int, ...]:
    return tuple(end - start for start, end in itertools.pairwise((0, *ends)))


def extend(memory: jax.Array | None, stripe: jax.Array) -> jax.Array:
    """Return the memory of the next stripe of the same layer."""
    return stripe if memory is None else jnp.concatenate([memory, stripe], axis=-1)


class StripeConv(nnx.Module):
    """One stripe of a convolution, which reads the channels of this and all earlier stripes.

    One convolution over the concatenated stripes is faster in forward and backward pass together
    than a sum of convolutions, one for each earlier stripe.

    Args:
      layers: makes the convolution.
      inherited: channels in the memory, 0 for the first stripe.
      features: channels that are new to the input.
      out_features: channels of this stripe of the output.
      size: taps along each spatial axis.
      stride: step along each spatial axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> layers = nets.Layers(nnx.Rngs(0))
      >>> first, second = nets.StripeConv(layers, 0, 4, 4), nets.StripeConv(layers, 4, 4, 4)
      >>> x = jnp.ones((1, 4, 4, 8))
      >>> y_0, memory = first(x[..., :4])
      >>> y_1, memory = second(x[..., 4:], memory)
      >>> y_1.shape, memory.shape
      ((1, 4, 4, 4), (1, 4, 4, 8))
    """

    def __init__(
        self,
        layers: Layers,
        inherited: int,
        features: int,
        out_features: int,
        *,
        size: int = 3,
        stride: int = 1,
    ):
        self.conv = layers.conv(inherited + features, out_features, size=size, stride=stride)

    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Compute one stripe.

        Args:
          x: `[batch, *spatial, features]`.
          memory: `[batch, *spatial, inherited]`, or None where nothing is inherited.

        Returns:
          `[batch, *spatial / stride, out_features]` and the memory,
          `[batch, *spatial, inherited + features]`.
        """
        memory = extend(memory, x)
        return self.conv(memory), memory
