"""Batches of a training run, a function of seed and step alone.

So the position in the data is the number of the next step, and a run that is resumed at a step sees
what an uninterrupted one sees, whatever the number of processes and workers.
"""

import dataclasses
import gc
import time
from collections.abc import Generator
from typing import Any

import numpy as np

from experiments.app.data.dataset import Examples, Split

# Batches read ahead, by threads in this process or in each worker process.
_AHEAD = 8


def epoch_batches(num_examples: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one epoch's batches, indices `[batches, batch_size]`, without a smaller last one."""
    count = num_examples // batch_size
    return rng.permutation(num_examples)[: count * batch_size].reshape(count, batch_size)


@dataclasses.dataclass
class _Order:
    """Indices of each step's batch, a random access source for grain."""

    num_examples: int
    batch_size: int
    seed: int
    num_steps: int
    _cached: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.num_examples // self.batch_size)
        cached = self._cached  # read once: threads share this object
        if cached is None or cached[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            cached = epoch, epoch_batches(self.num_examples, self.batch_size, rng)
            self._cached = cached
        return cached[1][index]


@dataclasses.dataclass
class Batches:
    """Batches from a step on, with the time spent waiting for them.

    Close what the methods return, or worker processes and the memory shared with them stay.

    Attributes:
      seed: of the order.
      batch_size: examples in a step, of all processes together.
      num_steps: of the whole run.
      process: index of this process and number of processes; each reads its part of every batch.
      workers: processes that read ahead; threads of this process do if 0.
      waited: seconds that the iterators have kept their caller waiting.
    """

    seed: int
    batch_size: int
    num_steps: int
    process: tuple[int, int] = (0, 1)
    workers: int = 0
    waited: float = 0.0

    def indices(self, num_examples: int, start: int = 0) -> Generator[np.ndarray]:
        """Yield this process's example indices for the steps from `start` on."""
        order = _Order(num_examples, self.batch_size, self.seed, self.num_steps)
        return self._timed(self._part(order[step]) for step in range(start, self.num_steps))

    def examples(self, source: Examples, start: int = 0) -> Generator[Split]:
        """Yield this process's examples for the steps from `start` on, read ahead."""
        import grain
        from absl import flags

        order = _Order(source.size, self.batch_size, self.seed, self.num_steps)
        steps = grain.MapDataset.source(order)[start:]  # pyright: ignore[reportArgumentType] - it asks for no more
        read = steps.map(lambda indices: source.read(self._part(indices)))
        ahead = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
        batches = read.to_iter_dataset(ahead)
        if self.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's workers read flags, and there are none here
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=self.workers))
        return self._timed(iter(batches))

    def _part(self, indices: np.ndarray) -> np.ndarray:
        index, count = self.process
        return np.split(indices, count)[index]

    def _timed(self, batches: Any) -> Generator[Any]:
        batch = None
        try:
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self.waited += time.perf_counter() - started
                if batch is None:
                    return
                yield batch
        finally:
            # Workers hand over batches in shared memory, which is given back when nothing refers to
            # them any more. The last ones are in cycles of cycles of grain's.
            if close := getattr(batches, "close", None):  # grain 0.2.12 has none
                close()
            del batch, batches
            if self.workers:
                gc.collect()
                gc.collect()
