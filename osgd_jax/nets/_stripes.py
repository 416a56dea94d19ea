"""Stripes of channels: the layers of nets that are nested in width.

The channels of a layer are cut into stripes, one for each output. Stripe k of a layer reads the
stripes 0 … k of the layer before, so that a convolution as a whole is block lower triangular. Each
stripe is a module of its own with a kernel of its own: a loss then reaches exactly the stripes that
it depends on.

A stripe gets the new channels of its input and a *memory*: what the earlier stripes of the same
layer have read. It gives back the memory for the next stripe. `None` is the memory of the first
stripe.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from osgd_jax.nets._layers import Layers


def geometric_fractions(num_outputs: int, ratio: float = 2.0) -> tuple[float, ...]:
    """Cumulative fractions of the width that grow by `ratio`: (1/4, 1/2, 1) for three outputs."""
    return tuple(ratio ** (k + 1 - num_outputs) for k in range(num_outputs))


def check_fractions(fractions: Sequence[float], num_outputs: int) -> None:
    """Raise a ValueError unless these are `num_outputs` growing fractions that end in one."""
    growing = all(a < b for a, b in zip((0, *fractions), fractions, strict=False))
    if len(fractions) != num_outputs or not growing or fractions[-1] != 1:
        raise ValueError(
            f"fractions={tuple(fractions)} must be {num_outputs} cumulative fractions of the width"
            f" (num_outputs={num_outputs}) that grow from above 0 to 1."
        )


def stripe_sizes(width: int, fractions: Sequence[float]) -> tuple[int, ...]:
    """Cut `width` channels into stripes.

    The cumulative sizes are rounded to a multiple of the largest power of two up to 8 that divides
    the width and leaves room for two such multiples a stripe: odd numbers of channels are slow and
    have no groups to normalise.

    Args:
      width: channels of the layer.
      fractions: cumulative fractions of the width, the last of them 1.

    Returns:
      The number of channels of each stripe; they sum to `width`.

    Raises:
      ValueError: a stripe would have no channels.
    """
    fits = [m for m in (1, 2, 4, 8) if width % m == 0 and 2 * m * len(fractions) <= width]
    multiple = max(fits, default=1)
    ends = [multiple * round(width * fraction / multiple) for fraction in fractions]
    sizes = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    if min(sizes) < 1:
        raise ValueError(
            f"widths has a level of {width} channels, too narrow for {len(fractions)} stripes at"
            f" the fractions {tuple(fractions)}: they would have {sizes} channels."
            " Use a wider level or fewer outputs."
        )
    return sizes


def extend(memory: jax.Array | None, stripe: jax.Array) -> jax.Array:
    """The channels that the next stripe of the same layer finds in its memory."""
    return stripe if memory is None else jnp.concatenate([memory, stripe], axis=-1)


class StripeConv(nnx.Module):
    """One stripe of a convolution: reads this stripe's channels and those of all earlier ones.

    One convolution over the concatenated stripes is faster in forward and backward pass together
    than a sum of convolutions, one for each earlier stripe.

    Args:
      layers: makes the convolution.
      inherited: channels in the memory, 0 for the first stripe.
      features: channels that are new to the input.
      out_features: channels of this stripe of the output.
      size: taps along each spatial axis.
      stride: step along each spatial axis.
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
