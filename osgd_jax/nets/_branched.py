"""The traditional anytime net: one trunk with a head after each part."""

from typing import Any

import jax
from flax import nnx

from osgd_jax.nets._blocks import Head, SkipBlock, Stem
from osgd_jax.nets._resnet import ResNet, Sizes


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


class BranchedResNet(ResNet):
    """A residual net with heads at even distances along its trunk, counted in blocks.

    The last output is a plain residual net (He et al. 2016, arXiv 1603.05027).

    Args:
      num_outputs: number of heads, at most the number of blocks.
      **others: as for `ResNet`.

    Raises:
      ValueError: an argument is not one of those above.
    """

    def make_stage(self, k: int, sizes: Sizes) -> _Stage:
        """As in `ResNet`: the blocks up to head k."""
        plan = [(level, i) for level, count in enumerate(sizes.blocks) for i in range(count)]
        if sizes.num_outputs > len(plan):
            raise ValueError(
                f"num_outputs={sizes.num_outputs} must be at most the number of residual blocks,"
                f" sum(blocks) = {len(plan)}; add blocks or ask for fewer outputs."
            )
        start, end = (round(len(plan) * i / sizes.num_outputs) for i in (k, k + 1))
        made = []
        for level, position in plan[start:end]:
            stride = 2 if level > 0 and position == 0 else 1
            before = level if position > 0 else level - 1
            features = sizes.leaving(sizes.widths[before]) if before >= 0 else sizes.widths[0]
            width = sizes.widths[level]
            made.append(SkipBlock(sizes.layers, sizes.block, features, width, stride=stride))
        stem = sizes.make_stem(sizes.widths[0]) if k == 0 else None
        last_level, _ = plan[end - 1]
        return _Stage(stem, made, sizes.make_head(sizes.leaving(sizes.widths[last_level])))
