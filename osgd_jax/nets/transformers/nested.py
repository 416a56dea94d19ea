"""Transformers that are nested in width and in depth at once."""

import functools
import math
from typing import Any, ClassVar

import jax

from osgd_jax.nets._sizes import keywords_of
from osgd_jax.nets.resnets.streams import WideningStream
from osgd_jax.nets.stripes import extend
from osgd_jax.nets.transformers.base import (
    StripedTransformerSizes,
    Transformer,
    TransformerStage,
)
from osgd_jax.nets.transformers.layers import Embedding, LanguageHead


class _Stage(TransformerStage):
    """One stream, with its stripe of the embedding and its head."""

    def __init__(self, embedding: Embedding, stream: WideningStream, head: LanguageHead, new: int):
        super().__init__(head)
        self.embedding = embedding
        self.stream = stream
        self.new_channels = new

    def body(self, state: Any) -> tuple[jax.Array, Any]:
        tokens = state["tokens"]
        origin = extend(state["origin"], self.embedding(tokens))
        x, kept = self.stream(origin, state["layers"])
        state = {"tokens": tokens, "origin": origin, "layers": kept}
        return x[..., -self.new_channels :], state


class NestedTransformerSizes(StripedTransformerSizes):
    """The keywords of `NestedTransformer`."""

    ratio: ClassVar[float] = math.sqrt(2)


class NestedTransformer(Transformer):
    """A Transformer that grows in width and in depth from output to output (Wan et al. 2020).

    The stream of output k + 1 has a new layer after each layer of output k, as in
    `DepthNestedTransformer`, and more channels: each old layer gets another stripe, as in
    `WidthNestedTransformer`. The depth doubles; with the default fractions the width grows by √2,
    so that the multiply-adds of the layers grow by about 4 from output to output. Output k is the
    sum of the heads 0 … k; head k reads the new channels of stream k.

    Args:
      num_outputs: number of streams, at most the number of heads.
      depth: layers of output 0; output k has 2ᵏ times as many.
      fractions: cumulative fraction of the width for each output, the last of them 1; by default
        (…, 1/2, 1/√2, 1). Heads are not split, so their share is approximate.
      **others: as for `Transformer`; the width is that of the last output.

    Raises:
      ValueError: an argument is invalid, or there are too few channels, heads or
        units for the stripes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.NestedTransformer(
      ...     vocab_size=5, num_outputs=2, width=8, depth=1, num_heads=2,
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> [logits.shape for logits in net(jnp.array([[1, 2, 3]]))]
      [(1, 3, 5), (1, 3, 5)]
    """

    @keywords_of(NestedTransformerSizes)
    def __init__(self, sizes: NestedTransformerSizes):
        self._assemble(sizes)

    def make_stage(self, k: int, sizes: StripedTransformerSizes) -> _Stage:
        """Make stream k."""
        new, old = sizes.parts[k], sizes.old(k)
        count = sizes.depth * 2 ** max(k - 1, 0)
        layer = functools.partial(sizes.make_layer, doublings=sizes.num_outputs - 1)
        widening = [layer(new, old) for _ in range(count if k > 0 else 0)]
        full = [layer(old + new) for _ in range(count)]
        stream = WideningStream(None, widening, full)
        embedding = sizes.make_embedding(new.channels)
        return _Stage(embedding, stream, sizes.make_head(new.channels), new.channels)

    def first_state(self, tokens: jax.Array) -> Any:
        """Return the tokens, without any results."""
        return {"tokens": tokens, "origin": None, "layers": []}
