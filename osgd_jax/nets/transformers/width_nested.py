"""Transformers that are nested in width."""

from typing import Any

import jax
from flax import nnx

from osgd_jax.nets._sizes import keywords_of
from osgd_jax.nets.transformers.base import (
    StripedTransformerSizes,
    Transformer,
    TransformerStage,
)
from osgd_jax.nets.transformers.layers import Embedding, LanguageHead, TransformerLayer


class _Stage(TransformerStage):
    """One stripe of the whole net."""

    def __init__(self, embedding: Embedding, layers: list[TransformerLayer], head: LanguageHead):
        super().__init__(head)
        self.embedding = embedding
        self.layers = nnx.List(layers)

    def body(self, state: Any) -> tuple[jax.Array, Any]:
        x, kept = self.embedding(state["tokens"]), []
        for layer, memories in zip(self.layers, state["memories"], strict=True):
            increment, (*memories, _) = layer(x, memories and (*memories, None))
            x = x + increment
            kept.append(memories)
        return x, {"tokens": state["tokens"], "memories": kept}


class WidthNestedTransformer(Transformer):
    """A Transformer whose channels, heads and MLP units are cut into stripes, one for each output.

    Output k uses the stripes 0 … k of everything; stripe k reads no later stripe. The widest output
    is a Transformer of the given width with block lower triangular matrices and a separate RMSNorm
    for each stripe. Output k sums the products of the stripes 0 … k with the vocabulary, so that
    its loss trains all of them.

    Args:
      num_outputs: number of stripes, at most the number of heads.
      fractions: cumulative fraction of the width for each output, the last of them 1; by default
        (…, 1/4, 1/2, 1). Heads are not split, so their share is approximate.
      **others: as for `Transformer`; the width is that of the last output.

    Raises:
      ValueError: an argument is invalid, or there are too few channels, heads or
        units for the stripes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.WidthNestedTransformer(
      ...     vocab_size=5, num_outputs=2, width=8, depth=1, num_heads=2,
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> [logits.shape for logits in net(jnp.array([[1, 2, 3]]))]
      [(1, 3, 5), (1, 3, 5)]
    """

    @keywords_of(StripedTransformerSizes)
    def __init__(self, sizes: StripedTransformerSizes):
        self._assemble(sizes)

    def make_stage(self, k: int, sizes: StripedTransformerSizes) -> _Stage:
        """Make stripe k of all layers."""
        new, old = sizes.parts[k], sizes.old(k)
        layers = [sizes.make_layer(new, old, whole_state=False) for _ in range(sizes.depth)]
        return _Stage(sizes.make_embedding(new.channels), layers, sizes.make_head(new.channels))

    def first_state(self, tokens: jax.Array) -> Any:
        """Return the tokens, with empty memories."""
        return {"tokens": tokens, "memories": [None] * len(self.stages[0].layers)}
