"""States of requests between the stages of a net, in arrays on the device."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._serving.cache import KeyedCache
from osgd_jax._serving.placement import alone
from osgd_jax._serving.runner import ExampleKey, Runner
from osgd_jax._serving.stages import Arrays, Stage


class States:
    """Runs stages on any requests together, whichever batches they were in before.

    A request has a slot, a row of every array that stages hand on. A stage reads the rows of its
    batch and writes what it adds in place. Arrays that it only hands on are not touched.

    Args:
      runner: the stages, and how outputs are combined.
      example: shape and dtype of an example.
      capacity: number of slots.
    """

    def __init__(self, runner: Runner, example: ExampleKey, capacity: int):
        self._runner = runner
        self._stages = runner.stages(example)
        self._capacity = capacity
        self.example = np.zeros(*example)
        self._programs = KeyedCache()
        self.clear()

    def clear(self) -> None:
        """Forget all requests: allocate what the stages add, and note what each of them reads."""
        self._free = list(range(self._capacity))
        self._arrays: Arrays = []
        self._reads: list[list[int]] = [[]]
        self._writes: list[list[int]] = []
        self._combined: list[jax.Array] = []
        carry: Arrays = [jax.ShapeDtypeStruct((1, *self.example.shape), self.example.dtype)]
        combined = None
        with alone(self._runner.model.device):
            for k, stage in enumerate(self._stages):
                run = functools.partial(self._runner.run, k, stage)
                _, fresh, combined = jax.eval_shape(run, stage.weights, carry, combined)
                places = list(range(len(self._arrays), len(self._arrays) + len(fresh)))
                self._arrays += [self._allocate(array) for array in fresh]
                self._writes.append(places)
                self._reads.append(stage.next_carry(self._reads[-1], places))
                carry = stage.next_carry(carry, fresh)
            if combined is not None:
                self._combined = [self._allocate(combined)]

    def _allocate(self, row: Any) -> jax.Array:
        # One more row takes what fills up a batch.
        shape = (self._capacity + 1, *row.shape[1:])
        return jnp.zeros(shape, row.dtype, device=self._runner.model.device)

    def check(self, x: np.ndarray) -> None:
        """Raise a ValueError unless `x` has the shape and dtype of the examples."""
        if (x.shape, x.dtype) != (self.example.shape, self.example.dtype):
            raise ValueError(
                f"`x` must be {self.example.dtype} of shape {self.example.shape}, one example; got"
                f" {x.dtype} of shape {x.shape}."
            )

    def take(self, count: int) -> list[int]:
        """Return slots that nobody has."""
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)

    def advance(self, k: int, slots: Sequence[int], examples: Sequence[np.ndarray]) -> np.ndarray:
        """Run stage k for the requests in these slots and return their answers, `[batch, …]`.

        Args:
          k: index of the stage.
          slots: of the requests, each of which has passed the stages before.
          examples: of the requests; only stage 0 reads them.
        """
        size = 1 << (len(slots) - 1).bit_length()
        padded = np.full(size, self._capacity, np.int32)
        padded[: len(slots)] = slots
        x = []
        if k == 0:
            x = [np.stack([*examples, *[self.example] * (size - len(slots))])]
        arguments = (
            self._stages[k].weights,
            x,
            padded,
            [self._arrays[i] for i in self._reads[k]],
            [self._arrays[i] for i in self._writes[k]],
            self._combined,
        )
        program = self._programs.get((k, size), lambda: self._compile(k, arguments))
        logits, written, self._combined = program(*arguments)
        for i, array in zip(self._writes[k], written, strict=True):
            self._arrays[i] = array
        return np.asarray(logits)[: len(slots)]

    def _compile(self, k: int, arguments: Any) -> Any:
        run = functools.partial(self._run, k, self._stages[k])
        with alone(self._runner.model.device):
            return jax.jit(run, donate_argnums=(4, 5)).lower(*arguments).compile()

    def _run(
        self,
        k: int,
        stage: Stage,
        weights: Arrays,
        x: Arrays,
        slots: jax.Array,
        reads: Arrays,
        writes: Arrays,
        combined: Arrays,
    ) -> tuple[jax.Array, Arrays, Arrays]:
        """Read the rows of a batch, run the stage, and write what it adds; this is compiled."""
        take = functools.partial(jnp.take, indices=slots, axis=0, mode="clip")
        before = take(combined[0]) if combined and k > 0 else None
        carry = x if k == 0 else [take(array) for array in reads]
        logits, fresh, after = self._runner.run(k, stage, weights, carry, before)
        writes = [_put(array, slots, rows) for array, rows in zip(writes, fresh, strict=True)]
        return logits, writes, [_put(array, slots, after) for array in combined]


def _put(array: jax.Array, slots: jax.Array, rows: Any) -> jax.Array:
    return array.at[slots].set(rows, mode="promise_in_bounds")
