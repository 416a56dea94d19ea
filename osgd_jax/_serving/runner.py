"""The stages of a model, each compiled once for each shape, and run one after the other."""

import functools
from collections.abc import Hashable
from typing import Any

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
        """Return one entry for each compiled program."""
        return list(self._programs.as_dict())

    def stages(self, example: ExampleKey) -> list[Stage]:
        """Return the stages for examples of a shape and dtype."""
        return self._stages.get(example, lambda: self._cut(example))

    def _cut(self, example: ExampleKey) -> list[Stage]:
        stages = self.model.stages(*example)
        if example not in self.examples:
            self.examples.append(example)
        return stages

    def program(self, k: int, stage: Stage, batch: int, example: ExampleKey, arguments: Any) -> Any:
        """Return stage k, compiled for a number of rows."""
        return self._programs.get((k, batch, example), lambda: self._compile(k, stage, arguments))

    def run(
        self, k: int, stage: Stage, weights: Arrays, carry: Arrays, combined: jax.Array | None
    ) -> tuple[jax.Array, Arrays, jax.Array | None]:
        """Return the answer of output k, what is new in the carry, and `combined`, compiled."""
        logits, fresh = stage.call(weights, carry)
        combine = COMBINATIONS[self.combine]
        logits, combined = combine(k, self.model.num_outputs, logits, combined)
        return logits, fresh, combined

    def _compile(self, k: int, stage: Stage, arguments: Any) -> Any:
        run = functools.partial(self.run, k, stage)
        with alone(self.model.device):
            return jax.jit(run).lower(*arguments).compile()


class RunnerBatch:
    """A batch on its way through the stages of a runner.

    Args:
      runner: runs the stages.
      x: the examples.
    """

    def __init__(self, runner: Runner, x: Input):
        self._runner = runner
        self._example = x.shape[1:], x.dtype.name
        self._stages = runner.stages(self._example)
        self._size = self._rows = len(x)
        self._carry: Arrays = [x]
        self._combined: jax.Array | None = None
        self._logits: jax.Array

    def __len__(self) -> int:
        return self._size

    def advance(self, first: int, last: int) -> jax.Array:
        """Start the stages from `first` to `last`; return the answer of the latter, not awaited.

        Nothing waits in between, so that the device gets the next stage before it is idle.
        """
        for k in range(first, last + 1):
            stage = self._stages[k]
            arguments = (stage.weights, self._carry, self._combined)
            run = self._runner.program(k, stage, self._rows, self._example, arguments)
            self._logits, fresh, self._combined = run(*arguments)
            self._carry = stage.next_carry(self._carry, fresh)
        return self._logits

    def wait(self) -> None:
        """Wait for the latest answer."""
        jax.block_until_ready(self._logits)

    def keep(self, rows: np.ndarray) -> np.ndarray:
        """Go on with these rows alone where they fit the next smaller power of two.

        The smaller batch is filled up with copies of one of them. Return where they are now.
        """
        size = 1 << (len(rows) - 1).bit_length()
        if size >= self._rows:
            return rows
        padding = np.full(size - len(rows), rows[0])
        places = np.concatenate([rows, padding]).astype(np.int32)
        with alone(self._runner.model.device):
            self._carry, self._combined = _take((self._carry, self._combined), places)
        self._rows = size
        return np.arange(len(rows))


@jax.jit
def _take(arrays: Any, rows: jax.Array) -> Any:
    return jax.tree.map(lambda array: jnp.take(array, rows, axis=0, mode="clip"), arrays)
