"""The sizes of a net, from which its family makes each stage: those of today and those to come."""

import dataclasses
from typing import ClassVar, Self

from flax import nnx

from osgd_jax.nets.layers import Layers
from osgd_jax.nets.stripes import stripe_sizes


@dataclasses.dataclass(frozen=True)
class NetSizes:
    """The sizes that a family makes its stages from, checked.

    A net keeps them, without the source of initial parameters, so that it can grow.

    Attributes:
      layers: makes the layers.
      num_outputs: number of stages.
    """

    layers: Layers
    num_outputs: int

    growable: ClassVar[tuple[str, ...]] = ()  # keywords of `grown`

    def with_rngs(self, rngs: nnx.Rngs | None) -> Self:
        """Return the same sizes with another source of initial parameters."""
        return dataclasses.replace(self, layers=dataclasses.replace(self.layers, rngs=rngs))

    def first(self, num_outputs: int) -> Self:
        """Return the sizes of the first outputs alone."""
        return dataclasses.replace(self, num_outputs=num_outputs)

    def grown(self, num_outputs: int) -> Self:
        """Return the sizes of a net with more outputs, whose first stages are the same.

        A family may take more arguments, those of `growable`: sizes of that net in place of its
        defaults. It raises a ValueError if the first stages would not be the same.
        """
        return dataclasses.replace(self, num_outputs=num_outputs)


def even_ends(start: int, total: int, count: int) -> tuple[int, ...]:
    """Return where `count` parts of a trunk end, as equal as they get, between start and total."""
    return tuple(start + round((total - start) * i / count) for i in range(1, count + 1))


def default_width(width: int, ratio: float, count: int) -> int:
    """Return a width that leaves room for `count` stripes more, `ratio` times as wide for each.

    The additional channels are a multiple of the largest power of two up to 8 that divides the
    width and leaves room for two such multiples a stripe.
    """
    new = width * (ratio**count - 1)
    for multiple in (8, 4, 2):
        if width % multiple == 0 and 2 * multiple * count <= new:
            return width + multiple * round(new / multiple)
    return width + max(count, round(new))


def more_stripes(width: int, wider: int, count: int) -> tuple[int, ...]:
    """Cut the channels from `width` to `wider` into stripes that each widen by one factor.

    Returns:
      The channels of each of the `count` stripes; they sum to `wider - width`.
    """
    factor = (wider / width) ** (1 / count)
    fractions = [width * (factor**i - 1) / (wider - width) for i in range(1, count)]
    return stripe_sizes(wider - width, (*fractions, 1))
