"""Predictions of a trained anytime net, by as many stages as time or confidence requires."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._serving import files, onnx_files
from osgd_jax._serving.answers import AnytimeOutput, Prediction
from osgd_jax._serving.combine import COMBINATIONS
from osgd_jax._serving.engine import Engine
from osgd_jax._serving.inputs import check_example_shape, check_input
from osgd_jax._serving.latencies import measure
from osgd_jax._serving.limits import Threshold, check_at_most_one, check_limits
from osgd_jax._serving.paths import as_folder, check_target
from osgd_jax._serving.placement import alone, move
from osgd_jax._serving.policies import stop_when_all_are_sure
from osgd_jax._serving.rules import make_exit
from osgd_jax._serving.runner import ExampleKey, Runner, RunnerBatch
from osgd_jax._serving.stages import Input, Model, NetModel
from osgd_jax._validation import check_choice

_REPEATS = 50


class AnytimePredictor(Engine):
    """Run a trained anytime net one compiled stage at a time.

    The predictor copies the weights and runs the net in evaluation mode: with the running averages
    of batch normalization and without dropout. It does not change the net, and further training of
    the net does not change the predictor.

    Each stage is compiled once for each input shape, on first use. Call `calibrate` with an input
    of each shape, so that no later call with a deadline waits for the compiler. All methods are
    thread-safe; calibrations, of generators too, wait for each other. A predictor can be pickled
    and copied for worker processes: the latencies are copied, and each process compiles again.

    A predictor runs on one device: the first device that has the net's weights, or JAX's default
    device after `load` or in another process. Inputs may be on the host, on another device or over
    a mesh. To use several devices, put the net on each in turn and make a predictor of it.

    Args:
      net: an `AnytimeNet`, or another `nnx.Module` with its `num_outputs`, `start` and `advance`
        whose carries have the batch as first axis. Inputs are checked against its `spatial_dims`
        and `in_channels`, if it has them. Outputs may be dense, `[batch, …, classes]`.
      combine: how the outputs so far become one answer. "latest" takes the logits of the last one;
        "product" takes their product ensemble, with which the confidence in an answer tends to grow
        from output to output (Jazbec et al. 2023, arXiv 2306.02652): logits are then logarithms of
        products, −∞ for a class that is ruled out.

    Raises:
      ValueError: the net lacks an attribute, or `combine` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> predictor = osgd_jax.AnytimePredictor(net)
      >>> x = jnp.ones((2, 4, 4, 1))
      >>> for output in predictor.stream(x):
      ...     print(output.index, output.logits.shape)
      0 (2, 3)
      1 (2, 3)
      >>> times = predictor.calibrate(x)
      >>> predictor.predict(x, deadline=60.0).exits
      array([1, 1])
    """

    def __init__(self, net: Any, *, combine: str = "latest"):
        check_choice("combine", combine, tuple(COMBINATIONS))
        self._set_up(NetModel(net), combine)

    _read = staticmethod(files.read_predictor)

    def _set_up(self, model: Model, combine: str, /) -> None:
        self._prepare(model)
        self._runner = Runner(model, combine)

    def _settings(self) -> dict[str, Any]:
        return {"combine": self._runner.combine}

    @property
    def latencies(self) -> dict[tuple[tuple[int, ...], str], tuple[float, ...]]:
        """Return the seconds of each stage from `calibrate`, by batched input shape and dtype."""
        return self._latencies.as_dict()

    def stream(
        self, x: Any, *, confidence: Threshold = None, rule: str | Callable = "confidence"
    ) -> Iterator[AnytimeOutput]:
        """Yield each output when it is ready; the next stage starts when it is requested.

        Args:
          x: `[batch, *spatial, in_channels]`, floating; integers for a net that takes no floats.
          confidence: as in `predict`. The stream ends with the output by which each example of the
            batch would have left.
          rule: as in `predict`.

        Raises:
          ValueError: an argument is invalid.
        """
        start = self._clock()
        x = check_input(self._runner.model, x)
        leave = make_exit(confidence, rule, self.num_outputs)
        outputs = self._outputs(x)
        if leave is not None:
            outputs = stop_when_all_are_sure(outputs, leave)
        return (AnytimeOutput(k, logits, now - start) for k, logits, now in outputs)

    def predict(
        self,
        x: Any,
        *,
        deadline: float | None = None,
        confidence: Threshold = None,
        budget: float | None = None,
        rule: str | Callable[[np.ndarray], Any] = "confidence",
    ) -> Prediction:
        """Answer with the last output, or with an earlier one that keeps a limit.

        Args:
          x: `[batch, *spatial, in_channels]`, floating; integers for a net that takes no floats.
            Host arrays may have any byte order and layout, but no masked entries.
          deadline: seconds from the call to the answer. The predictor never starts a stage that
            would end too late by the latencies of `calibrate`, and answers with the latest output.
            Output 0 is always computed; `lateness` tells by how much an answer is late. The first
            call for a shape calibrates if `calibrate` has not, and is late.
          confidence: in (0, 1]: one threshold, or one for each output, None where no example may
            leave (the last is not read). Each example leaves with the first output whose score by
            `rule` is at least this, or with the last. The other examples continue as a smaller
            batch, padded to a power of two, so that there are few shapes to compile.
          budget: multiply-adds for one example, as `osgd_jax.cost` counts them. Answers with the
            last output that costs no more.
          rule: the score of an example, 1 where an output is sure of it, by name:

            - "confidence": the probability of the likeliest class;
            - "entropy": 1 − H / log C, with the entropy H of the C probabilities;
            - "margin": the probabilities' difference between the two likeliest classes;
            - "agreement": 1 where this output and the one before it have the same likeliest class,
              else 0; nobody leaves at output 0.

            One logit z is a choice of two, with the probabilities σ(z) and 1 − σ(z). Where outputs
            are dense, the score is the mean over all positions. Or a function that takes logits
            `[batch, …, classes]` as a NumPy array and gives `[batch]` scores, for thresholds of
            any size. An example whose score is not a number goes on.

        Returns:
          Logits, the output that each example's are from, and the time it took.

        Raises:
          ValueError: an argument is invalid, `x` is traced, more than one limit is
            given, or a budget is less than output 0 costs.
        """
        start = self._clock()
        check_at_most_one(deadline=deadline, confidence=confidence, budget=budget)
        x = check_input(self._runner.model, x)
        limits = check_limits(
            self.num_outputs,
            lambda: self._multiply_adds((x.shape[1:], x.dtype.name)),
            rule,
            deadline=deadline,
            confidence=confidence,
            budget=budget,
        )
        seconds = None
        if limits.deadline is not None:
            seconds = self._latencies.get(_key(x), lambda: self._measure(x)).__getitem__
        batch = RunnerBatch(self._runner, x)
        rows = np.arange(len(x))
        logits, exits, ready = self._answer(batch, limits, rows=rows, began=start, seconds=seconds)
        if limits.leave is not None:
            logits = move("logits", logits, self._runner.model.device)
        elif ready is None:
            jax.block_until_ready(logits)
        elapsed = (self._clock() if ready is None else ready) - start
        late = 0.0 if limits.deadline is None else max(0.0, elapsed - limits.deadline)
        return Prediction(logits, exits, elapsed, late)

    def calibrate(self, x: Any, *, repeats: int = _REPEATS) -> tuple[float, ...]:
        """Compile all stages and measure how long each takes, for this shape, dtype and device.

        Calibrate on the machine and under the load that predictions will meet. A second call
        replaces the figures of the first.

        Args:
          x: what `predict` will take; its values do not matter.
          repeats: runs of the net to measure.

        Returns:
          Seconds of each stage that 95 % of its runs keep to, which `predict` assumes.

        Raises:
          ValueError: `x` has another shape or dtype, or `repeats` is less than 1.
        """
        x = check_input(self._runner.model, x)
        return self._calibrate(_key(x), lambda repeats: self._measure(x, repeats), repeats)

    def export(
        self, path: str | os.PathLike[str], *, input_shape: Sequence[int] | None = None
    ) -> None:
        """Write all stages with their weights to one file, which `load` runs without the net.

        The stages are lowered by `jax.export` for CPU, CUDA and TPU, with a batch of any size; the
        machine that writes needs none of the latter two. A custom net must therefore leave the
        batch open: use `x.shape[0]`, not `len(x)`. JAX guarantees to run such files for six months
        of releases. An existing file is replaced whole or not at all.

        Args:
          path: of the file; its folder must exist.
          input_shape: of one example, without the batch axis. May be left out when the predictor
            has run on inputs of one shape only.

        Raises:
          ValueError: `input_shape` does not suit the net, or was left out and is not known; or
            there is no folder for `path`.
        """
        target = check_target(path)
        example = self._example(input_shape)
        files.write_predictor(
            target,
            stages=self._runner.stages(example),
            example=example,
            multiply_adds=self._multiply_adds(example),
            combine=self._runner.combine,
        )

    def export_onnx(
        self, folder: str | os.PathLike[str], *, input_shape: Sequence[int] | None = None
    ) -> None:
        """Write the net as ONNX files, for runtimes other than JAX; the batch may have any size.

        `all.onnx` takes `x` and gives `logits_0`, `logits_1`, … . `stage-0.onnx`, `stage-1.onnx`, …
        give one output each, so that a runtime can stop between them: keep what each stage gives by
        name, and feed the next what its inputs name. Logits are combined as in this predictor.

        Args:
          folder: for the files; made where it does not exist.
          input_shape: as in `export`.

        Raises:
          ImportError: without jax2onnx, which comes with `pip install 'osgd-jax[onnx]'`.
          ValueError: as in `export`; or this predictor was loaded from a file, which holds compiled
            stages and no net.
        """
        target = as_folder(folder)
        if not isinstance(self._runner.model, NetModel):
            raise ValueError(
                "this predictor was loaded from a file, which holds no net; export_onnx needs"
                " AnytimePredictor(net)."
            )
        example = self._example(input_shape)
        with alone(self._runner.model.device):
            onnx_files.write(target, self._runner, example)

    def _example(self, input_shape: Any) -> ExampleKey:
        """Return the shape and dtype of the examples to export for."""
        model, seen = self._runner.model, self._runner.examples
        if input_shape is not None:
            shape = check_example_shape(model, input_shape)
            kind = int if model.takes_integers(shape) else float
            return shape, jnp.dtype(model.input_dtype or jnp.result_type(kind)).name
        if len(seen) != 1:
            raise ValueError(
                "input_shape must be given, the shape of one example: the predictor has run on"
                f" examples of {len(seen)} kinds, not of one."
            )
        return seen[0]

    def _outputs(self, x: Input) -> Iterator[tuple[int, jax.Array, float]]:
        """Yield the index, the logits and the time of each output, when it is ready."""
        batch = RunnerBatch(self._runner, x)
        for k in range(self.num_outputs):
            logits = jax.block_until_ready(batch.advance(k, k))
            yield k, logits, self._clock()

    def _measure(self, x: Input, repeats: int = _REPEATS) -> tuple[float, ...]:
        """Return the usual seconds of each stage."""
        start = lambda: RunnerBatch(self._runner, x)  # noqa: E731
        return measure(start, self.num_outputs, repeats, self._clock)

    def _multiply_adds(self, example: ExampleKey) -> list[int]:
        return self._costs.get(example, lambda: self._runner.model.multiply_adds(*example))


def _key(x: Input) -> tuple[tuple[int, ...], str]:
    return x.shape, x.dtype.name
