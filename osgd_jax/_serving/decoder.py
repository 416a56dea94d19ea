"""A Transformer of stages run over the next positions of a text, each stage as far as it is needed.

Each stage has a cache of keys and values, and a buffer of the states that the stage before has
left. A stage that was not needed for some tokens finds their states in its buffer, and runs over
all of them in one call. Calls are padded to a power of two of positions, so that few programs are
compiled. Padding writes beyond the end of the text, where nothing reads it before the true values
replace it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._serving.cache import KeyedCache
from osgd_jax._serving.placement import alone
from osgd_jax._serving.token_stages import Arrays, Stages, take
from osgd_jax.nets.transformers.attention import put


class Call(NamedTuple):
    """A program: which stages run, over how many positions of how many texts."""

    first: int
    last: int
    size: int
    batch: int


class Answer(NamedTuple):
    """The prediction of an output for the next token of each text.

    Attributes:
      logits: `[batch, vocab_size]`.
      likeliest: `[batch]`, the tokens with the largest; −1 where that is no finite number: the
        softmax of such logits is NaN.
    """

    logits: Any
    likeliest: Any


def answer_of(logits: Any, numpy: Any = jnp) -> Answer:
    """Return logits `[batch, vocab_size]` with the likeliest tokens, by `jax.numpy` or `numpy`."""
    finite = numpy.isfinite(logits.max(-1))  # no NaN, as a maximum keeps it
    return Answer(logits, numpy.where(finite, logits.argmax(-1), -1))


class Decoder:
    """The stages of a net, compiled when needed; safe to use from several threads.

    Args:
      stages: of the net.
      max_length: positions of a text.

    Attributes:
      programs: those compiled so far, by `Call`.
    """

    def __init__(self, stages: Stages, max_length: int):
        self.stages = stages
        self.max_length = max_length
        self.programs = KeyedCache()

    def __reduce__(self) -> Any:
        return Decoder, (self.stages, self.max_length)

    def size(self, count: int) -> int:
        """Return the number of positions of the smallest call that holds `count`."""
        return min(1 << (count - 1).bit_length(), self.max_length)

    def sizes(self) -> list[int]:
        """List the numbers of positions of all possible calls."""
        return sorted({self.size(count) for count in range(1, self.max_length + 1)})

    def buffers(self, batch: int) -> tuple[list[Arrays], list[Arrays]]:
        """Return empty caches of keys and values and empty buffers of states for each stage."""

        def empty(shapes: list[Any]) -> Arrays:
            return [jnp.zeros(each.shape, each.dtype) for each in shapes]

        size, kept = (batch, self.max_length), self.stages.kept
        with alone(self.stages.device):
            pasts = [empty(each.past_of(*size)) for each in kept]
            return pasts, [empty(each.state_of(*size)) for each in kept]

    def run(self, call: Call, *arguments: Any) -> tuple[Answer, list[Arrays], Arrays]:
        """Run stages; see `_run` for arguments and results."""
        weights = self.stages.weights[call.first : call.last + 1]
        program = self.programs.get(call, lambda: self._compile(call, weights, *arguments))
        return program(weights, *arguments)

    def _compile(self, call: Call, *arguments: Any) -> Any:
        def run(*arguments: Any) -> Any:
            return self._run(call, *arguments)

        # Caches and the next states are written in place.
        with alone(self.stages.device):
            return jax.jit(run, donate_argnums=(1, 3)).lower(*arguments).compile()

    def _run(
        self,
        call: Call,
        weights: list[Arrays],
        pasts: list[Arrays],
        states: Arrays,
        following: Arrays,
        starts: jax.Array,
        counts: jax.Array,
        logits: jax.Array | None,
    ) -> tuple[Answer, list[Arrays], Arrays]:
        """Run stages over the next positions.

        Args:
          call: which stages, and how many positions.
          weights: of these stages.
          pasts: keys and values of these stages.
          states: all states that the first of them finds; for stage 0 the next tokens alone.
          following: all states that the stage after the last will find.
          starts: `[batch]`, the positions that these stages have seen.
          counts: `[batch]`, how many of the next positions are no padding.
          logits: `[batch, vocab_size]`, of the output before at each last position.

        Returns:
          The answer of the last stage at each last position, and the pasts and the states that
          follow, with these positions.
        """
        state = states
        if call.first > 0:
            state = [take(buffer, starts, call.size) for buffer in states]
        kept = []
        for k, each, past in zip(range(call.first, call.last + 1), weights, pasts, strict=True):
            logits, past, state = self.stages.call(k, each, past, state, starts, counts, logits)
            kept.append(past)
        left = [put(old, starts, new) for old, new in zip(following, state, strict=True)]
        assert logits is not None
        return answer_of(logits), kept, left


class Text:
    """A batch of texts so far, and the progress of each stage in each text.

    Args:
      decoder: runs the stages.
      prompts: what the texts begin with.

    Attributes:
      lengths: of each text.
      answer: of the latest output that ran.
    """

    def __init__(self, decoder: Decoder, prompts: list[np.ndarray]):
        self._decoder = decoder
        self._pasts, self._states = decoder.buffers(len(prompts))
        self.lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        self._seen = [np.zeros_like(self.lengths) for _ in range(decoder.stages.num_outputs)]
        self._tokens = np.zeros((len(prompts), decoder.max_length), np.int32)
        for row, prompt in zip(self._tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        self.answer: Answer

    def __len__(self) -> int:
        return len(self.lengths)

    def append(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Add a token to each of some texts."""
        self._tokens[rows, self.lengths[rows]] = tokens
        self.lengths[rows] += 1

    def size(self, k: int) -> int:
        """Return the number of positions that bring stage k to the end of the texts."""
        return self._decoder.size(max(1, int((self.lengths - self._seen[k]).max())))

    def wait(self) -> None:
        """Wait for the likeliest tokens of the latest answer, on the host."""
        np.asarray(self.answer.likeliest)

    def keep(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows: all texts go on together, as their caches are one array."""
        return rows

    def advance(self, first: int, last: int) -> jax.Array:
        """Bring stages that have come equally far to the end of the texts.

        Args:
          first: the first stage; `answer` must be of the output before it.
          last: the last stage.

        Returns:
          The logits of output `last`, `[batch, vocab_size]`, not awaited.
        """
        stages = slice(first, last + 1)
        starts, size = self._seen[first], self.size(first)
        call = Call(first, last, size, len(starts))
        states = self._states[first] if first else [self._next_tokens(starts, size)]
        following = self._states[last + 1 : last + 2]
        self.answer, self._pasts[stages], left = self._decoder.run(
            call,
            self._pasts[stages],
            states,
            following[0] if following else [],
            starts,
            self.lengths - starts,
            self.answer.logits if first else None,
        )
        if following:
            self._states[last + 1] = left
        for k in range(first, last + 1):
            self._seen[k] = self.lengths.copy()
        return self.answer.logits

    def _next_tokens(self, starts: np.ndarray, count: int) -> np.ndarray:
        positions = np.minimum(starts[:, None] + np.arange(count), self._tokens.shape[1] - 1)
        return np.take_along_axis(self._tokens, positions, axis=1)
