"""A Transformer of stages run over the next positions of a text, each stage as far as it is needed.

Each stage has a cache of keys and values, and a buffer of the states that the stage before has
left. A stage that was not needed for some tokens finds their states in its buffer, and runs over
all of them in one call. Calls are padded to a power of two of positions, so that few programs are
compiled. What padding writes is beyond the end of the text: nothing reads it before the true
values replace it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from osgd_jax._anytime.runner import KeyedCache
from osgd_jax.nets._attention import Past, put
from osgd_jax.nets._transformer import Transformer
from osgd_jax.nets._transformer_layers import Attention, TransformerLayer


class Call(NamedTuple):
    """A program: which stages run, over how many positions of how many texts."""

    first: int
    last: int
    size: int
    batch: int


class Decoder:
    """The stages of a net, compiled when needed; safe to use from several threads.

    Args:
      net: its weights are copied.
      max_length: positions of a text.
    """

    def __init__(self, net: Transformer, max_length: int):
        self.num_outputs = net.num_outputs
        self.vocab_size = net.vocab_size
        self.max_length = max_length
        copied = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), nnx.split(net))
        self._net = nnx.merge(*copied)
        for _, module in nnx.iter_modules(self._net):
            if isinstance(module, TransformerLayer):
                module.remat = False
        parts = [nnx.split(stage) for stage in self._net.stages]
        self._graphdefs = [graphdef for graphdef, _ in parts]
        self._weights = [state for _, state in parts]
        self.programs = KeyedCache()
        self._buffers = KeyedCache()

    def size(self, count: int) -> int:
        """The positions of the smallest call that holds `count`."""
        return min(1 << (count - 1).bit_length(), self.max_length)

    def sizes(self) -> list[int]:
        """Those of all calls that there are."""
        return sorted({self.size(count) for count in range(1, self.max_length + 1)})

    def buffers(self, batch: int) -> tuple[list[Any], list[Any]]:
        """The empty caches of each stage's attentions, and the states that each will find.

        The first stage finds tokens, which are kept elsewhere.
        """
        tokens = jax.ShapeDtypeStruct((batch, self.max_length), jnp.int32)
        trace = functools.partial(jax.eval_shape, self._shapes, self._weights, tokens)
        states, caches = self._buffers.get(batch, trace)
        empty = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)  # noqa: E731
        return jax.tree.map(empty, caches), [None, *jax.tree.map(empty, states)]

    def _shapes(self, weights: list[Any], tokens: jax.Array) -> tuple[list[Any], list[Any]]:
        """What each stage but the last leaves, and keys and values of all."""
        state, states, caches = self._net.first_state(tokens), [], []
        for graphdef, each in zip(self._graphdefs, weights, strict=True):
            stage = nnx.merge(graphdef, each, copy=True)
            nothing = jnp.zeros(len(tokens), jnp.int32)
            for attention in _attentions(stage):
                keys = jnp.zeros((*tokens.shape, attention.num_heads, attention.head_dim))
                attention.past = nnx.data(Past(keys, keys, nothing))
            _, state = stage.body(state)
            states.append(state)
            caches.append(_pasts(_attentions(stage)))
        return states[:-1], caches

    def run(self, call: Call, *arguments: Any) -> tuple[jax.Array, Any, Any]:
        """Run stages; see `_run` for what it takes and gives."""
        weights = self._weights[call.first : call.last + 1]
        program = self.programs.get(call, lambda: self._compile(call, weights, *arguments))
        return program(weights, *arguments)

    def _compile(self, call: Call, *arguments: Any) -> Any:
        def run(*arguments: Any) -> Any:
            return self._run(call, *arguments)

        # Caches and the next states are written in place.
        return jax.jit(run, donate_argnums=(1, 3)).lower(*arguments).compile()

    def _run(
        self,
        call: Call,
        weights: list[Any],
        caches: list[Any],
        states: Any,
        following: Any,
        starts: jax.Array,
        counts: jax.Array,
        logits: jax.Array | None,
    ) -> tuple[jax.Array, Any, Any]:
        """Run stages over the next positions.

        Args:
          call: which stages, and how many positions.
          weights: of these stages.
          caches: of these stages.
          states: all states that the first of them finds; for stage 0 the next tokens alone.
          following: all states that the stage after the last will find, None where there is none.
          starts: `[batch]`, the positions that these stages have seen.
          counts: `[batch]`, how many of the next positions are no padding.
          logits: `[batch, vocab_size]`, of the output before at each last position.

        Returns:
          The logits of the last stage at each last position, and the caches and the states that
          follow, with these positions.
        """
        if call.first == 0:
            state = self._net.first_state(states)
        else:
            state = jax.tree.map(lambda buffer: _take(buffer, starts, call.size), states)
        kept = []
        answers = None if logits is None else logits[:, None]
        for graphdef, each, cache in zip(
            self._graphdefs[call.first : call.last + 1], weights, caches, strict=True
        ):
            stage = nnx.merge(graphdef, each, copy=True)
            attentions = _attentions(stage)
            for attention, (keys, values) in zip(attentions, cache, strict=True):
                attention.past = nnx.data(Past(keys, values, starts))
            x, state = stage.body(state)
            answers = stage.logits(_take(x, counts - 1, 1), answers)
            kept.append(_pasts(attentions))
        if following is not None:
            following = jax.tree.map(lambda old, new: put(old, starts, new), following, state)
        assert answers is not None
        return answers[:, 0], kept, following


class Text:
    """A batch of texts as far as they are known, and how far each stage has come in each.

    Args:
      decoder: runs the stages.
      prompts: what the texts begin with.
    """

    def __init__(self, decoder: Decoder, prompts: list[np.ndarray]):
        self._decoder = decoder
        self._caches, self._states = decoder.buffers(len(prompts))
        self.lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        self._seen = [np.zeros_like(self.lengths) for _ in range(decoder.num_outputs)]
        self._tokens = np.zeros((len(prompts), decoder.max_length), np.int32)
        for row, prompt in zip(self._tokens, prompts, strict=True):
            row[: len(prompt)] = prompt

    def append(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Add a token to each of some texts."""
        self._tokens[rows, self.lengths[rows]] = tokens
        self.lengths[rows] += 1

    def size(self, k: int) -> int:
        """The positions of the call that brings stage k to the end of the texts."""
        return self._decoder.size(max(1, int((self.lengths - self._seen[k]).max())))

    def advance(self, first: int, last: int, logits: jax.Array | None = None) -> jax.Array:
        """Bring stages that have come equally far to the end of the texts.

        Args:
          first: the first stage.
          last: the last stage.
          logits: of the output before `first` at the end of each text, `[batch, vocab_size]`.

        Returns:
          Those of output `last`.
        """
        stages = slice(first, last + 1)
        starts, size = self._seen[first], self.size(first)
        call = Call(first, last, size, len(starts))
        states = self._states[first] if first else self._next_tokens(starts, size)
        following = self._states[last + 1] if last + 1 < len(self._states) else None
        logits, self._caches[stages], following = self._decoder.run(
            call, self._caches[stages], states, following, starts, self.lengths - starts, logits
        )
        if following is not None:
            self._states[last + 1] = following
        for k in range(first, last + 1):
            self._seen[k] = self.lengths.copy()
        return logits

    def _next_tokens(self, starts: np.ndarray, count: int) -> np.ndarray:
        positions = np.minimum(starts[:, None] + np.arange(count), self._tokens.shape[1] - 1)
        return np.take_along_axis(self._tokens, positions, axis=1)


def _attentions(stage: nnx.Module) -> list[Attention]:
    return [module for _, module in nnx.iter_modules(stage) if isinstance(module, Attention)]


def _pasts(attentions: list[Attention]) -> list[tuple[jax.Array, jax.Array]]:
    pasts = [attention.past for attention in attentions]
    return [(past.keys, past.values) for past in pasts if past is not None]


def _take(buffer: jax.Array, starts: jax.Array, count: int) -> jax.Array:
    """`count` positions of each text from `starts`; beyond the end, and before it, any."""
    rows = jnp.arange(len(starts))[:, None]
    positions = starts[:, None] + jnp.arange(count)
    return buffer.at[rows, positions].get(mode="clip")
