"""Running a trained anytime net: every output as it comes, or as many as time or need allow."""

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._anytime import file
from osgd_jax._anytime.combine import COMBINATIONS
from osgd_jax._anytime.exits import until_sure
from osgd_jax._anytime.inputs import check_example_shape, check_input
from osgd_jax._anytime.runner import KeyedCache, Runner
from osgd_jax._anytime.stages import Input, Model, NetModel

# A stage of which one run in twenty takes longer than assumed makes few answers late, as most
# deadlines leave some slack. A higher quantile of so few runs would be a matter of one hiccup.
_QUANTILE = 0.95
_REPEATS = 50
_WARM_UP = 3


@dataclasses.dataclass(frozen=True, eq=False)
class AnytimeOutput:
    """One output of a net.

    Attributes:
      index: which one, from 0.
      logits: `[batch, classes]`, ready.
      elapsed: seconds from the call of `stream` to this output.
    """

    index: int
    logits: jax.Array
    elapsed: float


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to `AnytimePredictor.predict`.

    Attributes:
      logits: `[batch, classes]`, ready.
      exits: `[batch]`, the index of the output that each example's logits are from.
      elapsed: seconds from the call of `predict` to the answer.
      lateness: seconds by which the answer came after the deadline; 0 where it was kept or none
        was given.
    """

    logits: jax.Array
    exits: np.ndarray
    elapsed: float
    lateness: float


class AnytimePredictor:
    """Runs a trained anytime net one stage at a time, each stage compiled.

    The predictor takes a copy of the weights as they are now and runs the net in evaluation mode:
    with the running averages of batch normalisation and without dropout. The net itself is not
    changed, and training it further does not change the predictor.

    A stage is compiled the first time it is run on inputs of one shape and kept. Call `calibrate`
    with an input of each shape to come, and no later call with a deadline waits for the compiler.
    All methods may be called from several threads at once.

    Args:
      net: an `AnytimeNet`, or another `nnx.Module` with its `num_outputs`, `in_channels`,
        `spatial_dims`, `start` and `advance` whose carries have the batch as first axis.
      combine: how the outputs so far make one answer. "latest" takes the logits of the last of
        them; "product" their product ensemble, with which the confidence in an answer tends to
        grow from output to output (Jazbec et al. 2023, arXiv 2306.02652): logits are then
        logarithms of products, −∞ for a class that is ruled out.

    Raises:
      ValueError: the net lacks an attribute, or `combine` is unknown.
    """

    def __init__(self, net: Any, *, combine: str = "latest"):
        if combine not in COMBINATIONS:
            known = " or ".join(repr(name) for name in COMBINATIONS)
            raise ValueError(f"combine={combine!r} must be {known}.")
        self._set_up(NetModel(net), combine)

    def _set_up(self, model: Model, combine: str) -> None:
        self._runner = Runner(model, combine)
        # Read once when a call begins and once after each stage, or once at the end.
        self._clock = time.perf_counter
        self._calibrating = threading.Lock()
        self._latencies = KeyedCache()
        self._costs = KeyedCache()

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return self._runner.model.num_outputs

    @property
    def latencies(self) -> dict[tuple[tuple[int, ...], str], tuple[float, ...]]:
        """Seconds that `calibrate` found for each stage, by input shape (with batch) and dtype."""
        return self._latencies.as_dict()

    def stream(self, x: Any) -> Iterator[AnytimeOutput]:
        """Yield every output as soon as it is ready; the next stage starts when the next is asked.

        Args:
          x: `[batch, *spatial, in_channels]`, floating.

        Raises:
          ValueError: `x` has another shape or dtype.
        """
        start = self._clock()
        outputs = self._outputs(check_input(self._runner.model, x))
        return (AnytimeOutput(k, logits, now - start) for k, logits, now in outputs)

    def predict(
        self,
        x: Any,
        *,
        deadline: float | None = None,
        confidence: float | None = None,
        budget: float | None = None,
    ) -> Prediction:
        """Answer with the last output, or with an earlier one that keeps a limit.

        Args:
          x: `[batch, *spatial, in_channels]`, floating.
          deadline: seconds from the call to the answer. Runs one stage after the other but never
            starts one that would end too late by the latencies of `calibrate`, and answers with
            the latest output. Output 0 is always computed; where that alone is late,
            `lateness` says by how much. Without a `calibrate` for this shape before, this call
            does it, and is late.
          confidence: in (0, 1]. Each example leaves with the first output that gives its
            likeliest class at least this probability, or with the last. Those that are left go
            on as a smaller batch, padded to a power of two, so that there are few shapes to
            compile.
          budget: multiply-adds for one example, as `osgd_jax.cost` counts them. Answers with the
            last output that costs no more.

        Returns:
          Logits, the output that each example's are from, and the time it took.

        Raises:
          ValueError: `x` has another shape or dtype, more than one limit is given, a deadline is
            negative, a confidence outside (0, 1], or a budget less than output 0 costs.
        """
        start = self._clock()
        limits = {"deadline": deadline, "confidence": confidence, "budget": budget}
        given = [f"{name}={limit!r}" for name, limit in limits.items() if limit is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} are too many: predict takes one limit at most."
            )
        x = check_input(self._runner.model, x)
        if deadline is not None:
            return self._until(x, start, deadline)
        if confidence is not None:
            return self._until_sure(x, start, confidence)
        last = self.num_outputs - 1 if budget is None else self._affordable(x, budget)
        return self._until_output(x, start, last)

    def calibrate(self, x: Any, *, repeats: int = _REPEATS) -> tuple[float, ...]:
        """Compile all stages and measure how long each takes, for this shape, dtype and device.

        Calibrate on the machine and under the load that predictions will meet. A second call
        replaces the figures of the first.

        Args:
          x: `[batch, *spatial, in_channels]`, floating; its values do not matter.
          repeats: runs of the net to measure.

        Returns:
          Seconds of each stage that 95 % of its runs keep to; they are what `predict` assumes.

        Raises:
          ValueError: `x` has another shape or dtype, or `repeats` is less than 1.
        """
        if repeats < 1:
            raise ValueError(f"repeats={repeats} must be at least 1.")
        x = check_input(self._runner.model, x)
        latencies = self._measure(x, repeats)
        self._latencies.put(_key(x), latencies)
        return latencies

    def export(
        self, path: str | os.PathLike[str], *, input_shape: tuple[int, ...] | None = None
    ) -> None:
        """Write all stages with their weights to one file, which `load` runs without the net.

        The stages are lowered by `jax.export` for CPU, CUDA and TPU, with a batch of any size;
        the machine that writes needs none of the latter two. A net of your own must therefore leave
        the batch open: `x.shape[0]` and not `len(x)`. JAX promises to run such files for six months
        of releases. An existing file is replaced whole or not at all.

        Args:
          path: of the file; its folder must exist.
          input_shape: of one example, without the batch axis. May be left out when the predictor
            has run on inputs of one shape only.

        Raises:
          ValueError: `input_shape` does not suit the net, or was left out and is not known.
        """
        model, examples = self._runner.model, self._runner.examples
        if input_shape is not None:
            check_example_shape(model, tuple(input_shape))
            examples = [
                (tuple(input_shape), jnp.dtype(model.input_dtype or jnp.result_type(float)).name)
            ]
        if len(examples) != 1:
            raise ValueError(
                "input_shape must be given, the shape of one example: the predictor has run on"
                f" examples of {len(examples)} kinds, not of one."
            )
        ((shape, dtype),) = examples
        file.write(
            path,
            stages=self._runner.stages((shape, dtype)),
            input_shape=shape,
            input_dtype=dtype,
            multiply_adds=self._multiply_adds(shape),
            combine=self._runner.combine,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Make a predictor from a file that `export` wrote; the net's Python class is not needed.

        Raises:
          ValueError: the file is not one of `export`, is damaged, of another version, or needs
            64-bit floats where JAX has them switched off.
        """
        model, combine = file.read(path)
        predictor = cls.__new__(cls)
        predictor._set_up(model, combine)
        return predictor

    def _outputs(self, x: Input) -> Iterator[tuple[int, jax.Array, float]]:
        """The index, the logits and the time of each output, when it is ready."""
        progress = self._runner.start(x)
        for k in range(self.num_outputs):
            logits, progress = self._runner.advance(k, progress)
            jax.block_until_ready(logits)
            yield k, logits, self._clock()

    def _measure(self, x: Input, repeats: int) -> tuple[float, ...]:
        # One at a time, or two calibrations would measure each other.
        with self._calibrating:
            runs = []
            for _ in range(_WARM_UP + repeats):
                start = self._clock()
                runs.append(np.diff([start, *(now for _, _, now in self._outputs(x))]))
        return tuple(np.quantile(runs[_WARM_UP:], _QUANTILE, axis=0).tolist())

    def _until(self, x: Input, start: float, deadline: float) -> Prediction:
        if not deadline >= 0:
            raise ValueError(f"deadline={deadline!r} must be 0 seconds or more.")
        latencies = self._latencies.get(_key(x), lambda: self._measure(x, _REPEATS))
        outputs = self._outputs(x)
        k, logits, now = next(outputs)
        while k + 1 < self.num_outputs and now - start + latencies[k + 1] <= deadline:
            k, logits, now = next(outputs)
        elapsed = now - start
        return Prediction(logits, np.full(len(x), k), elapsed, max(0.0, elapsed - deadline))

    def _until_sure(self, x: Input, start: float, confidence: float) -> Prediction:
        if not 0 < confidence <= 1:
            raise ValueError(f"confidence={confidence!r} must be in (0, 1].")
        logits, exits = until_sure(self._runner, x, confidence)
        return Prediction(jnp.asarray(logits), exits, self._clock() - start, 0.0)

    def _until_output(self, x: Input, start: float, last: int) -> Prediction:
        logits, progress = self._runner.advance(0, self._runner.start(x))
        # Nothing waits in between, so that the device gets the next stage before it is idle.
        for k in range(1, last + 1):
            logits, progress = self._runner.advance(k, progress)
        jax.block_until_ready(logits)
        return Prediction(logits, np.full(len(x), last), self._clock() - start, 0.0)

    def _affordable(self, x: Input, budget: float) -> int:
        """The last output that costs at most `budget`."""
        multiply_adds = self._multiply_adds(x.shape[1:])
        if not budget >= multiply_adds[0]:
            raise ValueError(
                f"budget={budget!r} must be at least {multiply_adds[0]}, what output"
                f" 0 costs for an example of shape {x.shape[1:]}."
            )
        return max(k for k, cost in enumerate(multiply_adds) if cost <= budget)

    def _multiply_adds(self, shape: tuple[int, ...]) -> list[int]:
        return self._costs.get(shape, lambda: self._runner.model.multiply_adds(shape))


def _key(x: Input) -> tuple[tuple[int, ...], str]:
    return x.shape, x.dtype.name
