"""The stages of a model, each compiled once for each shape, and run one after the other."""

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._serving.cache import KeyedCache
from osgd_jax._serving.combine import COMBINATIONS
from osgd_jax._serving.placement import alone
from osgd_jax._serving.stages import (
    Arrays,
    Input,
    Model,
    Stage,
)

ExampleKey = tuple[tuple[int, ...], str]


class Progress(NamedTuple):
    """How far a batch has come.

    Attributes:
      example: shape and dtype of one example.
      batch: rows of each array.
      carry: what the next stage takes.
      combined: what the next answer needs of the earlier ones.
    """

    example: ExampleKey
    batch: int
    carry: Arrays
    combined: jax.Array | None


class Runner:
    """Compiles and runs the stages of a model, and combines its outputs.

    Args:
      model: a net or a file.
      combine: a key of `COMBINATIONS`.

    Attributes:
      examples: shapes and dtypes of the examples seen so far.
    """

    def __init__(self, model: Model, combine: str):
        self.model = model
        self.combine = combine
        self.examples: list[ExampleKey] = []
        self._stages = KeyedCache()
        self._programs = KeyedCache()

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "combine": self.combine, "examples": self.examples}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"], state["combine"])
        self.examples += state["examples"]

    @property
    def programs(self) -> list[Hashable]:
        """One entry for each program compiled so far."""
        return list(self._programs.as_dict())

    def stages(self, example: ExampleKey) -> list[Stage]:
        """The stages for examples of a shape and dtype."""
        return self._stages.get(example, lambda: self._cut(example))

    def _cut(self, example: ExampleKey) -> list[Stage]:
        stages = self.model.stages(*example)
        if example not in self.examples:
            self.examples.append(example)
        return stages

    def start(self, x: Input) -> Progress:
        """Before stage 0."""
        return Progress((x.shape[1:], x.dtype.name), len(x), [x], None)

    def advance(self, k: int, progress: Progress) -> tuple[jax.Array, Progress]:
        """Start stage k: the answer of output k, not yet awaited, and the progress after it."""
        stage = self.stages(progress.example)[k]
        arguments = (stage.weights, progress.carry, progress.combined)
        program = self._programs.get(
            (k, progress.batch, progress.example), lambda: self._compile(k, stage, arguments)
        )
        logits, fresh, combined = program(*arguments)
        carry = stage.next_carry(progress.carry, fresh)
        return logits, progress._replace(carry=carry, combined=combined)

    def take(self, progress: Progress, rows: np.ndarray) -> Progress:
        """The progress of some rows of the batch."""
        with alone(self.model.device):
            carry, combined = _take((progress.carry, progress.combined), rows)
        return progress._replace(batch=len(rows), carry=carry, combined=combined)

    def run(
        self, k: int, stage: Stage, weights: Arrays, carry: Arrays, combined: jax.Array | None
    ) -> tuple[jax.Array, Arrays, jax.Array | None]:
        """What is compiled: the answer of output k, what is new in the carry, and `combined`."""
        logits, fresh = stage.call(weights, carry)
        combine = COMBINATIONS[self.combine]
        logits, combined = combine(k, self.model.num_outputs, logits, combined)
        return logits, fresh, combined

    def _compile(self, k: int, stage: Stage, arguments: Any) -> Any:
        run = functools.partial(self.run, k, stage)
        with alone(self.model.device):
            return jax.jit(run).lower(*arguments).compile()


@jax.jit
def _take(arrays: Any, rows: jax.Array) -> Any:
    return jax.tree.map(lambda array: jnp.take(array, rows, axis=0, mode="clip"), arrays)
