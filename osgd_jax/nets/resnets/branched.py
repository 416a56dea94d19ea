"""The traditional anytime net: one trunk with a head after each part."""

import collections
import dataclasses
from typing import Any, Self

import jax
from flax import nnx

from osgd_jax.nets._sizes import even_ends, keywords_of
from osgd_jax.nets.resnets.base import ResNet, Sizes, check_levels
from osgd_jax.nets.resnets.blocks import Head, SkipBlock, Stem


class _Stage(nnx.Module):
    """A part of the trunk and the head at its end."""

    def __init__(self, stem: Stem | None, blocks: list[SkipBlock], head: Head):
        self.stem = stem
        self.blocks = nnx.List(blocks)
        self.head = head

    def __call__(self, x: jax.Array) -> tuple[jax.Array, Any]:
        if self.stem is not None:
            x = self.stem(x)
        for block in self.blocks:
            x, _ = block(x)
        logits, _ = self.head(x)
        return logits, x


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrunkSizes(Sizes):
    """The keywords of `BranchedResNet`.

    Attributes:
      ends: blocks of the trunk before each head; heads are at even distances by default.
    """

    ends: tuple[int, ...] = dataclasses.field(init=False)

    def __post_init__(self):
        super().__post_init__()
        total = sum(self.blocks)
        if self.num_outputs > total:
            raise ValueError(
                f"num_outputs={self.num_outputs} must be at most the number of residual blocks,"
                f" sum(blocks) = {total}; add blocks or ask for fewer outputs."
            )
        self._set(ends=even_ends(0, total, self.num_outputs))

    @property
    def plan(self) -> list[tuple[int, int]]:
        """Return the level of each block, and its position in the level."""
        return [(level, i) for level, count in enumerate(self.blocks) for i in range(count)]

    def first(self, num_outputs: int) -> Self:
        """Return the sizes of the trunk up to a head."""
        ends = self.ends[:num_outputs]
        levels = collections.Counter(level for level, _ in self.plan[: ends[-1]])
        return self.changed(
            num_outputs=num_outputs,
            widths=self.widths[: len(levels)],
            blocks=tuple(levels.values()),
            ends=ends,
        )

    def grown(self, num_outputs: int, widths: Any = None, blocks: Any = None) -> Self:
        """Return the sizes of a longer trunk; see `NetSizes`.

        By default the last level gets, for each new output, as many blocks as the last stage has.
        """
        count = num_outputs - self.num_outputs
        widths = self.widths if widths is None else widths
        if blocks is None:
            last = self.ends[-1] - (0, *self.ends)[-2]
            blocks = (*self.blocks[:-1], self.blocks[-1] + count * last)
        widths, blocks = check_levels(widths, blocks)
        levels, start = len(self.widths), self.ends[-1]
        if (
            widths[:levels] != self.widths
            or blocks[: levels - 1] != self.blocks[:-1]
            or blocks[levels - 1 :][:1] < self.blocks[-1:]
            or sum(blocks) < start + count
        ):
            raise ValueError(
                f"widths={widths} and blocks={blocks} must begin with those of the net,"
                f" {self.widths} and {self.blocks}, and have at least {count} more blocks, in its"
                " last level or in new ones."
            )
        ends = self.ends + even_ends(start, sum(blocks), count)
        return self.changed(num_outputs=num_outputs, widths=widths, blocks=blocks, ends=ends)


class BranchedResNet(ResNet):
    """A residual net with heads at even distances along its trunk, counted in blocks.

    The last output is a plain residual net (He et al. 2016, arXiv 1603.05027).

    Args:
      num_outputs: number of heads, at most the number of blocks.
      **others: as for `ResNet`.

    Raises:
      ValueError: an argument is invalid.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> [logits.shape for logits in net(jnp.ones((2, 4, 4, 1)))]
      [(2, 3), (2, 3)]
    """

    @keywords_of(TrunkSizes)
    def __init__(self, sizes: TrunkSizes):
        self._assemble(sizes)

    def make_stage(self, k: int, sizes: TrunkSizes) -> _Stage:
        """Make the blocks up to head k."""
        start, end = (0, *sizes.ends)[k : k + 2]
        made = []
        for level, position in sizes.plan[start:end]:
            stride = 2 if level > 0 and position == 0 else 1
            before = level if position > 0 else level - 1
            features = sizes.leaving(sizes.widths[before]) if before >= 0 else sizes.widths[0]
            width = sizes.widths[level]
            made.append(SkipBlock(sizes.layers, sizes.block, features, width, stride=stride))
        stem = sizes.make_stem(sizes.widths[0]) if k == 0 else None
        last_level, _ = sizes.plan[end - 1]
        return _Stage(stem, made, sizes.make_head(sizes.leaving(sizes.widths[last_level])))
