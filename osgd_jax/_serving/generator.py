"""Text generation, each token by as many stages as time or confidence requires."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from osgd_jax._serving import files
from osgd_jax._serving.answers import GeneratedToken, Generation
from osgd_jax._serving.decoder import Answer, Decoder, Text, answer_of
from osgd_jax._serving.engine import Engine
from osgd_jax._serving.latencies import measure
from osgd_jax._serving.limits import Limits, Threshold, check_limits
from osgd_jax._serving.paths import check_target
from osgd_jax._serving.prompts import check_prompts, check_room, check_stop
from osgd_jax._serving.sampling import Sampling, check_sampling, choose
from osgd_jax._serving.token_stages import NetStages, Stages
from osgd_jax._validation import check_positive
from osgd_jax.nets.transformers.base import Transformer

_REPEATS = 20


class AnytimeGenerator(Engine):
    """Generate text with a Transformer of several outputs; any output can give a token.

    The logits of output k are those of `net(tokens)[k]`, up to rounding, whichever outputs gave the
    earlier tokens. Each stage has a separate cache of keys and values and runs only when an output
    needs it. It then runs over all positions that it has missed, in one call, from the stored
    states of the stage before.

    The generator copies the weights. It compiles a program for each stage, batch size and power of
    two of positions up to `max_length` on first use; `calibrate` compiles them all. Each call
    allocates the keys and values of all layers and the states between stages, for `max_length`
    positions. All methods are thread-safe. A generator runs on one device and can be pickled and
    copied, like an `AnytimePredictor`.

    Args:
      net: a Transformer of `osgd_jax.nets`.
      max_length: the largest number of tokens of a text, prompt included.

    Raises:
      ValueError: an argument is invalid.

    Example:
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedTransformer(
      ...     vocab_size=5, num_outputs=2, width=8, depth=2, num_heads=2,
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> generator = osgd_jax.AnytimeGenerator(net, max_length=8)
      >>> generation = generator.generate([1, 2], max_new_tokens=3)
      >>> len(generation.tokens[0]), generation.exits
      (3, [array([1, 1, 1])])
    """

    def __init__(self, net: Transformer, *, max_length: int):
        if not isinstance(net, Transformer):
            raise ValueError(
                f"net is a {type(net).__name__} and must be a Transformer of osgd_jax.nets, such as"
                " nets.WidthNestedTransformer."
            )
        self._set_up(NetStages(net), check_positive("max_length", max_length))

    _read = staticmethod(files.read_generator)

    def _set_up(self, stages: Stages, max_length: int, /) -> None:
        self._prepare(stages)
        self._decoder = Decoder(stages, max_length)

    def _settings(self) -> dict[str, Any]:
        return {"max_length": self.max_length}

    @property
    def max_length(self) -> int:
        """Return the largest number of tokens of a text."""
        return self._decoder.max_length

    @property
    def latencies(self) -> dict[int, dict[int, tuple[float, ...]]]:
        """Return the seconds of each stage from `calibrate`, by batch size and positions."""
        return self._latencies.as_dict()

    def generate(
        self,
        prompt: Any,
        max_new_tokens: int,
        *,
        output: int | None = None,
        confidence: Threshold = None,
        rule: str | Callable[[np.ndarray], Any] = "confidence",
        deadline: float | None = None,
        budget: float | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        stop: Any = None,
        key: Any = None,
    ) -> Generation:
        """Continue one text or several.

        Without `output`, `confidence`, `deadline` or `budget` the last output gives every token.

        Args:
          prompt: tokens, integers `[length]`; or several prompts, which may differ in length. A
            prompt may be `bytes`, of which each is a token; prompts may be any iterable.
          max_new_tokens: the largest number of tokens to add.
          output: the output that gives every token.
          confidence: in (0, 1]: one threshold or one for each output. A token is given by the
            first output whose score by `rule` is at least this, or by the last. Later stages run
            for the whole batch where one text needs them.
          rule: as in `AnytimePredictor.predict`, of logits `[texts, vocab_size]` of the texts
            for which no output has been sure so far.
          deadline: seconds for each token, from the token before. The generator never starts a
            stage that would end too late by the latencies of `calibrate`; output 0 is always
            computed. The first call for a number of prompts calibrates if `calibrate` has not.
          budget: multiply-adds for each token: those of a text of `max_length` tokens, as
            `osgd_jax.cost` counts them, divided by its length. The last output that costs no more
            gives every token.
          temperature: 0 takes the likeliest token, and so does a number below the smallest normal
            one of float32; else tokens are drawn from the softmax of the logits divided by it.
          top_k: draw only from this number of the likeliest tokens.
          stop: one or more tokens that end a text; one byte, such as `b"."`, is a token.
          key: for draws: a seed or a key of `jax.random`, or one of these for each prompt,
            `[batch]`. With one key for each prompt, a text is the same alone and in any batch. One
            key for several prompts is split by their positions.

        Returns:
          Tokens, the output that gave each, and the time it took.

        Raises:
          ValueError: an argument is invalid, or there is no room for so many tokens;
            or the largest logit of a text is not finite, for example because one is NaN. `stream`
            has then given the earlier tokens.
        """
        steps = self.stream(
            prompt,
            max_new_tokens,
            output=output,
            confidence=confidence,
            rule=rule,
            deadline=deadline,
            budget=budget,
            temperature=temperature,
            top_k=top_k,
            stop=stop,
            key=key,
        )
        taken = [(step.tokens, step.exits, step.elapsed) for step in steps]
        tokens, exits = (np.stack(part, axis=1) for part in list(zip(*taken, strict=True))[:2])
        here = tokens >= 0
        return Generation(
            [row[there] for row, there in zip(tokens, here, strict=True)],
            [row[there] for row, there in zip(exits, here, strict=True)],
            elapsed=taken[-1][2],
        )

    def stream(
        self,
        prompt: Any,
        max_new_tokens: int,
        *,
        output: int | None = None,
        confidence: Threshold = None,
        rule: str | Callable[[np.ndarray], Any] = "confidence",
        deadline: float | None = None,
        budget: float | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        stop: Any = None,
        key: Any = None,
    ) -> Iterator[GeneratedToken]:
        """Yield each token when it is ready; the next starts when it is requested.

        Arguments, errors and tokens are those of `generate`.
        """
        start, vocab_size = self._clock(), self._decoder.stages.vocab_size
        limits = check_limits(
            self.num_outputs,
            self._multiply_adds,
            rule,
            output=output,
            confidence=confidence,
            deadline=deadline,
            budget=budget,
        )
        stops = check_stop(stop, vocab_size)
        prompts = check_prompts(prompt, vocab_size)
        sampling = check_sampling(
            temperature,
            top_k,
            key,
            vocab_size=vocab_size,
            num_texts=len(prompts),
            device=self._decoder.stages.device,
        )
        count = check_room(prompts, max_new_tokens, self.max_length)
        return self._tokens(start, prompts, count, limits, sampling, stops)

    def calibrate(
        self, batch_size: int = 1, *, repeats: int = _REPEATS
    ) -> dict[int, tuple[float, ...]]:
        """Compile all stages and measure the time of each for a number of texts.

        Calibrate on the machine and under the load that texts will meet. A second call
        replaces the figures of the first.

        Args:
          batch_size: number of texts.
          repeats: runs of each stage to measure.

        Returns:
          Seconds of each stage that 95 % of its runs keep to, by number of positions.

        Raises:
          ValueError: an argument is not a positive integer.
        """
        batch_size = check_positive("batch_size", batch_size)
        run = lambda repeats: self._measure(batch_size, repeats)  # noqa: E731
        return self._calibrate(batch_size, run, repeats)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write all stages with their weights to one file, which `load` runs without the net.

        As `AnytimePredictor.export`: for CPU, CUDA and TPU, any number of texts, and positions up
        to `max_length`. An existing file is replaced whole or not at all.

        Args:
          path: of the file; its folder must exist.

        Raises:
          ValueError: there is no folder for `path`.
        """
        files.write_generator(check_target(path), self._decoder.stages, self.max_length)

    def _measure(self, batch: int, repeats: int = _REPEATS) -> dict[int, tuple[float, ...]]:
        """Return the usual seconds of each stage, by number of positions."""

        def seconds(size: int) -> tuple[float, ...]:
            start = lambda: Text(self._decoder, [np.zeros(size, np.int32)] * batch)  # noqa: E731
            return measure(start, self.num_outputs, repeats, self._clock)

        return {size: seconds(size) for size in self._decoder.sizes()}

    def _multiply_adds(self) -> list[float]:
        """Return the cumulative multiply-adds of each output for a token."""
        length = self.max_length
        costs = self._costs.get(length, lambda: self._decoder.stages.multiply_adds(length))
        return [each / length for each in costs]

    def _tokens(
        self,
        start: float,
        prompts: list[np.ndarray],
        count: int,
        limits: Limits,
        sampling: Sampling,
        stops: frozenset[int],
    ) -> Iterator[GeneratedToken]:
        text = Text(self._decoder, prompts)
        going = np.ones(len(prompts), bool)
        for index in range(count):
            began = start if index == 0 else self._clock()
            answer, exits = self._next(text, going, limits, began)
            answer = answer._replace(likeliest=np.asarray(answer.likeliest))
            _check_finite(answer, going, index)
            tokens = choose(answer, sampling, index)
            tokens, exits = np.where(going, tokens, -1), np.where(going, exits, -1)
            yield GeneratedToken(index, tokens, answer.logits, exits, self._clock() - start)
            going = going & ~np.isin(tokens, list(stops))
            if not going.any():
                return
            rows = np.flatnonzero(going)
            text.append(rows, tokens[rows])

    def _next(
        self, text: Text, going: np.ndarray, limits: Limits, began: float
    ) -> tuple[Answer, np.ndarray]:
        """Return the answer for the next token of each text, and the output that gave it."""
        seconds = None
        if limits.deadline is not None:
            batch = len(text)
            latencies = self._latencies.get(batch, lambda: self._measure(batch))
            seconds = lambda k: latencies[text.size(k)][k]  # noqa: E731
        rows = np.flatnonzero(going)
        logits, exits, _ = self._answer(text, limits, rows=rows, began=began, seconds=seconds)
        return answer_of(logits, np) if limits.leave is not None else text.answer, exits


def _check_finite(answer: Answer, going: np.ndarray, index: int) -> None:
    """Raise a ValueError where the logits of a text that goes on give no probabilities."""
    lost = going & (answer.likeliest < 0)
    if lost.any():
        texts = ", ".join(map(str, np.flatnonzero(lost)))
        raise ValueError(
            f"net gives text {texts} logits whose largest is no finite number,"
            f" after {index} new tokens. Look for NaN among its parameters; or its dtype overflows."
        )
