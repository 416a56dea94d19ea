"""The base class of Transformers: arguments, checks, stages."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from osgd_jax._host_arrays import as_operand
from osgd_jax._validation import as_number, check_positive
from osgd_jax.nets._sizes import NetSizes, keywords_of, more_stripes
from osgd_jax.nets.base import AnytimeNet, Carry
from osgd_jax.nets.stripes import check_fractions, geometric_fractions, stripe_sizes
from osgd_jax.nets.transformers.layers import (
    NOTHING,
    Embedding,
    LanguageHead,
    Part,
    TransformerLayer,
)

_UNITS_MULTIPLE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerSizes(NetSizes):
    """The keywords of `Transformer`.

    Attributes:
      parts: how channels, heads and units are cut into stripes; one, where they are not.
      head_dim: channels of a head.
    """

    vocab_size: int
    width: int = 128
    depth: int = 3
    num_heads: int = 4
    mlp_ratio: float = 8 / 3
    parts: tuple[Part, ...] = dataclasses.field(init=False)
    head_dim: int = dataclasses.field(init=False)

    def __post_init__(self):
        super().__post_init__()
        for name in ("vocab_size", "width", "depth", "num_heads"):
            self._set(**{name: check_positive(name, getattr(self, name))})
        head_dim, rest = divmod(self.width, self.num_heads)
        if rest or head_dim % 2:
            raise ValueError(
                f"width={self.width} must be an even number of channels for each of the"
                f" num_heads={self.num_heads}, such as {2 * self.num_heads}."
            )
        if not 0 < as_number(self.mlp_ratio) < math.inf:
            raise ValueError(f"mlp_ratio={self.mlp_ratio!r} must be a number above 0.")
        self._set(mlp_ratio=float(self.mlp_ratio), head_dim=head_dim)
        self._set(parts=(Part(self.width, self.num_heads, self.units(self.width)),))

    def interface(self) -> dict[str, Any]:
        """Return the arguments of `AnytimeNet` that describe input and output."""
        return {"num_classes": self.vocab_size}

    def units(self, width: int) -> int:
        """Return the number of units of the MLP for a number of channels."""
        return _UNITS_MULTIPLE * max(1, round(width * self.mlp_ratio / _UNITS_MULTIPLE))

    def old(self, k: int) -> Part:
        """Return the stripes before k, together."""
        return sum(self.parts[:k], NOTHING)

    def make_layer(
        self, new: Part, old: Part = NOTHING, *, whole_state: bool = True, doublings: int = 0
    ) -> TransformerLayer:
        """Make a layer, or a stripe of one, of a net whose depth doubles `doublings` times."""
        depth = self.depth * 2**doublings
        return TransformerLayer(
            self.layers, self.head_dim, new, old, whole_state=whole_state, depth=depth
        )

    def make_embedding(self, features: int) -> Embedding:
        """Make the vectors of tokens, or a stripe of them."""
        return Embedding(self.layers, self.vocab_size, features)

    def make_head(self, features: int) -> LanguageHead:
        """Make the logits of a state, or of a stripe of it."""
        return LanguageHead(self.layers, features, self.vocab_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StripedTransformerSizes(TransformerSizes):
    """The keywords of a `Transformer` whose channels, heads and units are cut into stripes.

    Attributes:
      ratio: how many times as wide the next output is, unless its width is given.
    """

    fractions: dataclasses.InitVar[Sequence[float] | None] = None

    ratio: ClassVar[float] = 2.0

    def __post_init__(self, fractions: Sequence[float] | None):
        super().__post_init__()
        (whole,) = self.parts
        for name, size in (("num_heads", whole.heads), ("the MLP's units", whole.units)):
            if size < self.num_outputs:
                raise ValueError(
                    f"{name}={size} must be at least num_outputs={self.num_outputs}: each output"
                    " needs at least one."
                )
        if fractions is None:
            fractions = geometric_fractions(self.num_outputs, self.ratio)
        fractions = check_fractions(fractions, self.num_outputs)
        stripes = (stripe_sizes(size, fractions) for size in whole)
        self._set(parts=tuple(itertools.starmap(Part, zip(*stripes, strict=True))))

    def _with_stripes(self, *stripes: tuple[int, ...]) -> Self:
        """Return the sizes with these stripes of channels, heads and units."""
        parts = tuple(itertools.starmap(Part, zip(*stripes, strict=True)))
        width, num_heads, _ = map(sum, stripes)
        return self.changed(num_outputs=len(parts), width=width, num_heads=num_heads, parts=parts)

    def first(self, num_outputs: int) -> Self:
        """Return the sizes of the first outputs alone."""
        return self._with_stripes(*zip(*self.parts[:num_outputs], strict=True))

    def grown(self, num_outputs: int, width: Any = None) -> Self:
        """Return the sizes of a wider Transformer with the same first stripes; see `NetSizes`.

        Heads keep their size.
        """
        count = num_outputs - self.num_outputs
        whole = self.old(self.num_outputs)
        fewest = max(whole.heads, whole.channels // self.head_dim) + count
        if width is None:
            grown = round(whole.channels * self.ratio**count / self.head_dim)
            width = self.head_dim * max(fewest, grown)
        num_heads, rest = divmod(check_positive("width", width), self.head_dim)
        if rest or num_heads < fewest:
            raise ValueError(
                f"width={width} must be a multiple of the {self.head_dim} channels of a head and at"
                f" least {self.head_dim * fewest}, so that each new output has a head."
            )
        units = max(count * _UNITS_MULTIPLE, self.units(width - whole.channels))
        wider = Part(width, num_heads, whole.units + units)
        more = (more_stripes(*ends, count) for ends in zip(whole, wider, strict=True))
        old = zip(*self.parts, strict=True)
        return self._with_stripes(*itertools.starmap(operator.add, zip(old, more, strict=True)))


class TransformerStage(nnx.Module):
    """The new layers of output k: a body and a head.

    The body maps a state to the input of the head and the next state. It is separate from the head
    because a decoder needs the logits of few positions.

    Args:
      head: the head of this output.
      adds_up: whether output k is the sum of the heads 0 … k; otherwise it is its head alone.
    """

    def __init__(self, head: LanguageHead, *, adds_up: bool = True):
        self.head = head
        self.adds_up = adds_up

    def __call__(self, carry: Any) -> tuple[jax.Array, Any]:
        """Run the stage: the logits of its output, and the carry for the next stage."""
        state, logits = carry
        x, state = self.body(state)
        logits = self.logits(x, logits)
        return logits, (state, logits if self.adds_up else None)

    def body(self, state: Any) -> tuple[jax.Array, Any]:
        """Return the input of the head and the next state; each family defines this."""
        raise NotImplementedError(f"{type(self).__name__} must define body, as a family does.")

    def logits(self, x: jax.Array, before: jax.Array | None) -> jax.Array:
        """Map `[batch, length, features]` to `[batch, length, vocab_size]`."""
        return self.head(x, before if self.adds_up else None)


class Transformer(AnytimeNet):
    """A decoder-only Transformer with several outputs, the base class of the families.

    `net(tokens)` takes integers `[batch, length]` and gives, for each output, the logits of the
    token that follows each position, `[batch, length, vocab_size]`. No position reads a later one.
    A layer is attention with rotary positions and a gated MLP, each after an RMSNorm. A token
    outside of the vocabulary, which a compiled program cannot reject, makes the logits of its text
    NaN.

    Args:
      vocab_size: number of tokens, and logits of each output.
      num_outputs: number of outputs.
      rngs: source of the initial parameters.
      width: channels of the state.
      depth: layers, each of attention and MLP.
      num_heads: of the attention; each has `width / num_heads` channels.
      mlp_ratio: units of the MLP for each channel; they are rounded to a multiple of 8.
      dtype: of the computation, such as `jnp.bfloat16`; None takes that of the parameters. Logits
        are float32 at least.
      param_dtype: of the parameters; `float` is float32, or float64 under `jax.enable_x64`.
      remat: compute the inside of each layer again in the backward pass instead of keeping it.

    Raises:
      ValueError: an argument is invalid.
    """

    @keywords_of(TransformerSizes)
    def __init__(self, sizes: TransformerSizes):
        self._assemble(sizes)

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens."""
        return self.num_classes

    def start(self, x: jax.Array) -> Carry:
        """Return the carry for `advance(0, carry)`, without any work.

        Args:
          x: tokens, integers `[batch, length]`.

        Raises:
          ValueError: `x` is something else.
        """
        return Carry((self.first_state(check_tokens(x)), None), 0)

    def first_state(self, tokens: jax.Array) -> Any:
        """Return the state of the first stage; by default the tokens."""
        return tokens


def check_tokens(x: Any) -> Any:
    """Give `x`, integers `[batch, length]`, as an array that JAX takes.

    Raises:
      ValueError: it is something else.
    """
    if not hasattr(x, "shape"):
        raise ValueError(f"x={x!r:.60} must be an array of tokens, integers [batch, length].")
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"x has the dtype {x.dtype} and must be tokens, integers [batch, length].")
    if len(x.shape) != 2 or x.shape[1] == 0:
        raise ValueError(f"x of shape {x.shape} must be tokens, integers [batch, length].")
    return as_operand("x", x)
