"""The traditional anytime Transformer: one trunk with a head after each part."""

from typing import Any

import jax
from flax import nnx

from osgd_jax.nets._transformer import Transformer, TransformerSizes, TransformerStage
from osgd_jax.nets._transformer_layers import Embedding, LanguageHead, TransformerLayer


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


class BranchedTransformer(Transformer):
    """A Transformer with heads at even distances along its trunk, counted in layers: early exits.

    The last output is a plain Transformer. Each output is what its own head says.

    Args:
      num_outputs: number of heads, at most the number of layers.
      **others: as for `Transformer`.

    Raises:
      ValueError: an argument is not one of those above.
    """

    def make_stage(self, k: int, sizes: TransformerSizes) -> _Stage:
        """As in `Transformer`: the layers up to head k."""
        if sizes.num_outputs > sizes.depth:
            raise ValueError(
                f"num_outputs={sizes.num_outputs} must be at most depth={sizes.depth}; add layers"
                " or ask for fewer outputs."
            )
        start, end = (round(sizes.depth * i / sizes.num_outputs) for i in (k, k + 1))
        embedding = sizes.make_embedding(sizes.width) if k == 0 else None
        layers = [sizes.make_layer(*sizes.parts) for _ in range(start, end)]
        return _Stage(embedding, layers, sizes.make_head(sizes.width))
