"""The traditional anytime Transformer: one trunk with a head after each part."""

import dataclasses
from typing import Any, Self

import jax
from flax import nnx

from osgd_jax._validation import check_positive
from osgd_jax.nets._sizes import even_ends, keywords_of
from osgd_jax.nets.transformers.base import Transformer, TransformerSizes, TransformerStage
from osgd_jax.nets.transformers.layers import Embedding, LanguageHead, TransformerLayer


class _Stage(TransformerStage):
    """A part of the trunk and the head at its end."""

    def __init__(
        self, embedding: Embedding | None, layers: list[TransformerLayer], head: LanguageHead
    ):
        super().__init__(head, adds_up=False)
        self.embedding = embedding
        self.layers = nnx.List(layers)

    def body(self, state: Any) -> tuple[jax.Array, Any]:
        x = state if self.embedding is None else self.embedding(state)
        for layer in self.layers:
            increment, _ = layer(x)
            x = x + increment
        return x, x


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrunkSizes(TransformerSizes):
    """The keywords of `BranchedTransformer`.

    Attributes:
      ends: layers of the trunk before each head; heads are at even distances by default.
    """

    ends: tuple[int, ...] = dataclasses.field(init=False)

    def __post_init__(self):
        super().__post_init__()
        if self.num_outputs > self.depth:
            raise ValueError(
                f"num_outputs={self.num_outputs} must be at most depth={self.depth}; add layers"
                " or ask for fewer outputs."
            )
        self._set(ends=even_ends(0, self.depth, self.num_outputs))

    def first(self, num_outputs: int) -> Self:
        """Return the sizes of the trunk up to a head."""
        ends = self.ends[:num_outputs]
        return self.changed(num_outputs=num_outputs, depth=ends[-1], ends=ends)

    def grown(self, num_outputs: int, depth: Any = None) -> Self:
        """Return the sizes of a longer trunk; see `NetSizes`.

        By default each new output gets as many layers as the last stage has.
        """
        count = num_outputs - self.num_outputs
        if depth is None:
            depth = self.depth + count * (self.depth - (0, *self.ends)[-2])
        if check_positive("depth", depth) < self.depth + count:
            raise ValueError(
                f"depth={depth} must be at least {self.depth + count}: the {self.depth} layers of"
                " the net, and one more for each new output."
            )
        ends = self.ends + even_ends(self.depth, depth, count)
        return self.changed(num_outputs=num_outputs, depth=depth, ends=ends)


class BranchedTransformer(Transformer):
    """A Transformer with heads at even distances along its trunk, counted in layers: early exits.

    The last output is a plain Transformer. Each output has a separate head.

    Args:
      num_outputs: number of heads, at most the number of layers.
      **others: as for `Transformer`.

    Raises:
      ValueError: an argument is invalid.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.BranchedTransformer(
      ...     vocab_size=5, num_outputs=2, width=8, depth=2, num_heads=2,
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> [logits.shape for logits in net(jnp.array([[1, 2, 3]]))]
      [(1, 3, 5), (1, 3, 5)]
    """

    @keywords_of(TrunkSizes)
    def __init__(self, sizes: TrunkSizes):
        self._assemble(sizes)

    def make_stage(self, k: int, sizes: TrunkSizes) -> _Stage:
        """Make the layers up to head k."""
        start, end = (0, *sizes.ends)[k : k + 2]
        embedding = sizes.make_embedding(sizes.width) if k == 0 else None
        layers = [sizes.make_layer(*sizes.parts) for _ in range(start, end)]
        return _Stage(embedding, layers, sizes.make_head(sizes.width))
