"""Transformers that are nested in depth."""

import functools
from typing import Any

import jax

from osgd_jax.nets.resnets.streams import Stream
from osgd_jax.nets.transformers.base import Transformer, TransformerSizes, TransformerStage
from osgd_jax.nets.transformers.layers import Embedding, LanguageHead


class _Stage(TransformerStage):
    """One stream, from the embedding to its head."""

    def __init__(self, embedding: Embedding | None, stream: Stream, head: LanguageHead):
        super().__init__(head)
        self.embedding = embedding
        self.stream = stream

    def body(self, state: Any) -> tuple[jax.Array, Any]:
        if self.embedding is not None:
            origin, inherited = self.embedding(state), None
        else:
            origin, inherited = state["origin"], state["increments"]
        x, increments = self.stream(origin, inherited)
        return x, {"origin": origin, "increments": increments}


class DepthNestedTransformer(Transformer):
    """A Transformer whose depth doubles from output to output by interlacing (Wan et al. 2020).

    Output 0 is a Transformer of the given depth. The stream of output k + 1 has a new layer after
    each layer of output k; the increments of the old layers are reused, not computed again. All
    streams start from the same embedding. Output k is the sum of the heads of the streams 0 … k, so
    that its loss trains all of them.

    Args:
      num_outputs: number of streams.
      depth: layers of output 0; output k has 2ᵏ times as many.
      **others: as for `Transformer`.

    Raises:
      ValueError: an argument is invalid.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.DepthNestedTransformer(
      ...     vocab_size=5, num_outputs=2, width=8, depth=1, num_heads=2,
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> [logits.shape for logits in net(jnp.array([[1, 2, 3]]))]
      [(1, 3, 5), (1, 3, 5)]
    """

    def make_stage(self, k: int, sizes: TransformerSizes) -> _Stage:
        """Make stream k."""
        count = sizes.depth * 2 ** max(k - 1, 0)
        layer = functools.partial(sizes.make_layer, doublings=sizes.num_outputs - 1)
        stream = Stream(None, [layer(*sizes.parts) for _ in range(count)])
        embedding = sizes.make_embedding(sizes.width) if k == 0 else None
        return _Stage(embedding, stream, sizes.make_head(sizes.width))
