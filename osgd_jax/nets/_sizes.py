"""The sizes of a net: the keywords of its constructor, checked, and what follows from them.

A family describes its sizes once, as a dataclass. The dataclass gives the constructor its keywords
(`keywords_of`) and makes the stages; the net keeps it, and `grow` makes the sizes of the larger net
from it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from flax import nnx
from jax.typing import DTypeLike

from osgd_jax._validation import check_choice, check_positive, check_rngs
from osgd_jax.nets.layers import Layers
from osgd_jax.nets.resnets.blocks import STEMS
from osgd_jax.nets.stripes import stripe_sizes

P = ParamSpec("P")
SizesT = TypeVar("SizesT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetSizes:
    """The keywords that all families share; each family adds those of its nets.

    Fields without `init` follow from the keywords. A net keeps its sizes, without the source of
    initial parameters, so that it can grow.
    """

    num_outputs: int = 3
    rngs: nnx.Rngs
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = float
    remat: bool = False

    def __post_init__(self):
        check_rngs(self.rngs)
        self._set(num_outputs=check_positive("num_outputs", self.num_outputs))
        _ = self.layers  # which checks its arguments

    def _set(self, **values: Any) -> None:
        """Set fields while the sizes are made."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def changed(self, **values: Any) -> Self:
        """Return the sizes with other fields, which are not checked and from which none follows."""
        changed = object.__new__(type(self))
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed._set(**{**fields, **values})
        return changed

    @functools.cached_property
    def layers(self) -> Layers:
        """Return the maker of the layers."""
        return Layers(self.rngs, dtype=self.dtype, param_dtype=self.param_dtype, remat=self.remat)

    def interface(self) -> dict[str, Any]:
        """Return the arguments of `AnytimeNet` that describe input and output."""
        raise NotImplementedError

    def first(self, num_outputs: int) -> Self:
        """Return the sizes of the first outputs alone."""
        return self.changed(num_outputs=num_outputs)

    def grown(self, num_outputs: int) -> Self:
        """Return the sizes of a net with more outputs, whose first stages are the same.

        A family may take more arguments, which replace default sizes of the larger net. It raises a
        ValueError if the first stages would not be the same.
        """
        return self.changed(num_outputs=num_outputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSizes(NetSizes):
    """The keywords of nets for images and signals."""

    num_classes: int
    in_channels: int = 3
    spatial_dims: int = 2
    norm: str = "batch"
    stem: str = "cifar"

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_classes", "in_channels"):
            self._set(**{name: check_positive(name, getattr(self, name))})
        check_choice("stem", self.stem, STEMS)

    @functools.cached_property
    def layers(self) -> Layers:
        """Return the maker of the layers."""
        return Layers(
            self.rngs, self.spatial_dims, self.norm, self.dtype, self.param_dtype, self.remat
        )

    def interface(self) -> dict[str, Any]:
        """Return the arguments of `AnytimeNet` that describe input and output."""
        return {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "spatial_dims": self.layers.spatial_dims,
        }


def keywords_of(
    sizes: Callable[P, SizesT],
) -> Callable[[Callable[[Any, SizesT], None]], Callable[Concatenate[Any, P], None]]:
    """Make a constructor of sizes take their keywords instead."""
    # Keywords without a default come first, as in the documents.
    keywords = sorted(
        (
            each.replace(annotation=getattr(each.annotation, "type", each.annotation))
            for each in inspect.signature(sizes).parameters.values()
        ),
        key=lambda each: each.default is not each.empty,
    )

    def decorate(init: Callable[[Any, SizesT], None]) -> Callable[Concatenate[Any, P], None]:
        this, _ = inspect.signature(init).parameters.values()
        signature = inspect.Signature([this, *keywords], return_annotation=None)

        @functools.wraps(init)
        def init_by_keywords(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
            # Here, so that a TypeError does not name the private class of the sizes.
            signature.bind(self, *args, **kwargs)
            init(self, sizes(*args, **kwargs))

        init_by_keywords.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        return init_by_keywords

    return decorate


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
