"""Nested Transformers on text: `python -m experiments.study.language`.

Every way to train has the same budget: each of a few learning rates is tried on the tuning seeds,
that with the least mean validation loss is taken, and other seeds are tested at it. All take the
same number of steps on the same batches, the gradient clipped to norm 1 before the optimizer. Two
questions: which net, on the sum of the losses before AdamW; and which balance, on the width-nested
net before AdamW and before SGD. What is done already is read from the .jsonl file beside the
output, so that the command goes on where it was stopped.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import osgd_jax
from experiments import data, methods
from experiments.benchmark import command
from experiments.settings import require
from experiments.study.language import ngrams
from experiments.study.language.tables import draw, tables
from experiments.study.language.ways import NETS, OUTPUTS, UPDATES, WAYS, MatFormer
from experiments.trainer import Run, Trained, Trainer

TITLE = "Nested Transformers on text"
_ORDER = 5


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare.

    Attributes:
      ways: names of rows of the table.
      data: text, as for `python -m experiments.train`.
      length: tokens of an example.
      batch_size: examples in a step.
      train_size: training examples; each is seen once.
      tuning_seeds: seeds that choose the rate.
      test_seeds: other seeds, that test at it.
      looks: how often the conflict between the outputs' gradients is measured in a test run.
      output: file for the results; pictures are drawn beside it.
    """

    ways: tuple[str, ...] = tuple(WAYS)
    data: str = "pydoc"
    length: int = 64
    batch_size: int = 4
    train_size: int = 4800
    tuning_seeds: int = 2
    test_seeds: int = 5
    looks: int = 10
    output: Path = Path("runs/study/language.json")

    def __post_init__(self):
        counts = ("length", "batch_size", "train_size", "tuning_seeds", "test_seeds", "looks")
        require(self, fields=counts, at_least=1)
        unknown = set(self.ways) - set(WAYS)
        if unknown:
            raise ValueError(f"ways={unknown} are unknown; use some of {'; '.join(WAYS)}.")


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """A row of figures for each way; runs that are there already are read.

    Raises:
      ValueError: no such text, or too little of it.
    """
    dataset = data.load(data.Source(config.data, config.train_size, text_length=config.length))
    key = {name: getattr(config, name) for name in ("data", "length", "batch_size", "train_size")}
    kept = command.Kept(config.output.with_suffix(".jsonl"), key)
    rows = []
    for name in config.ways:
        report(name)
        rows.append({"way": name} | _Compared(config, name, dataset, kept).row())
    counted = ngrams.bits(dataset.train, dataset.test, dataset.num_classes, _ORDER)
    drawn = {"about": dataset.about, "ngrams": counted, "rows": rows}
    draw(drawn, config.output.parent)
    return drawn


class _Compared:
    """Tunes and tests one way; compiles when something has to be trained."""

    def __init__(self, config: Config, name: str, dataset: data.Dataset, kept: command.Kept):
        self._config, self._name, self._way = config, name, WAYS[name]
        self._dataset, self._kept = dataset, kept

    def row(self) -> dict[str, Any]:
        """Rate, bits per token of each output and seed, costs."""
        config, rates = self._config, UPDATES[self._way.update]
        tuning = {
            rate: [self._run(rate, seed)["validation"] for seed in range(config.tuning_seeds)]
            for rate in rates
        }
        best = min(rates, key=lambda rate: np.mean(tuning[rate]))
        tests = [self._run(best, 100 + seed) for seed in range(config.test_seeds)]
        return {
            "learning_rate": best,
            "tuning": {str(rate): found for rate, found in tuning.items()},
            "bits": [run["test"] for run in tests],
            **_conflict([run["cosines"] for run in tests]),
            "step_ms": 1e3 * float(np.median([run["step_seconds"] for run in tests])),
            "gflop": tests[0]["gflop"],
            **self._costs(),
        }

    def _costs(self) -> dict[str, Any]:
        net, shape = self._make(nnx.Rngs(0)), self._dataset.input_shape
        if isinstance(net, MatFormer):
            costs = [osgd_jax.cost(net.cut(each), shape)[0] for each in net.fractions]
        else:
            costs = osgd_jax.cost(net, shape)
        outputs = range(len(costs)) if self._way.output is None else [self._way.output]
        return {
            "multiply_adds": [costs[k].multiply_adds / shape[0] for k in outputs],
            "parameters": [costs[k].parameters for k in outputs],
        }

    def _run(self, rate: float, seed: int) -> dict[str, Any]:
        key = {"way": self._name, "learning_rate": rate, "seed": seed}
        return self._kept.get(key, lambda: self._train(Run(seed, rate)))

    def _make(self, rngs: nnx.Rngs) -> Any:
        sizes = {} if self._way.net in ("branched", "matformer") else {"num_outputs": OUTPUTS}
        return NETS[self._way.net](vocab_size=self._dataset.num_classes, rngs=rngs, **sizes)

    @functools.cached_property
    def _trainer(self) -> Trainer:
        way, sizes = self._way, {"epochs": 1, "batch_size": self._config.batch_size}
        settings = methods.Settings(
            way.optimizer, way.scope, way.order, update=way.update, clip_norm=1.0
        )
        method = methods.method(settings, num_tasks=OUTPUTS)
        method = dataclasses.replace(method, output=way.output)
        return Trainer(self._make, self._dataset, method, **sizes)

    @functools.cached_property
    def _look(self) -> Any:
        def cosines(state: Any, examples: Any) -> jax.Array:
            batch = self._trainer.batch(*examples)
            rows = osgd_jax.task_grads(self._trainer.losses)(state.params, state.rest, batch)
            return osgd_jax.task_cosines(osgd_jax.gramian(rows))

        return jax.jit(cosines)

    def _train(self, run: Run) -> dict[str, Any]:
        trainer, config, tests = self._trainer, self._config, run.seed >= 100
        state, rates = trainer.start([run])
        batches = data.epoch_batches(
            self._dataset.train.size, config.batch_size, np.random.default_rng(run.seed)
        )
        every, cosines, seconds = -(-len(batches) // config.looks), [], []
        looking = tests and self._way.output is None
        losses = jnp.zeros((1, 1))
        for step, batch in enumerate(batches):
            examples = trainer.gather(batch[None, None])
            if looking and step % every == 0:
                one = trainer.alone(state), [each[0, 0] for each in examples]
                cosines.append(self._look(*one).tolist())
            begun = time.perf_counter()
            state, losses = trainer.steps(state, examples, rates)
            jax.block_until_ready(losses)
            seconds.append(time.perf_counter() - begun)
        trained = Trained(state, losses)
        bits = lambda split: (trainer.scores(trained, split)[1][0] / np.log(2)).tolist()  # noqa: E731
        return {
            "validation": bits(self._dataset.validation),
            "test": bits(self._dataset.test) if tests else None,
            "cosines": cosines,
            "step_seconds": float(np.median(seconds)),
            "gflop": trainer.flops() / 1e9,
        }


def _conflict(cosines: list[Any]) -> dict[str, Any]:
    """Cosines of all test runs and looks: means at each look, and what diagnoses tell."""
    if not cosines[0]:
        return {}
    seen = osgd_jax.diagnose(np.concatenate(cosines))
    pairs = np.triu_indices(OUTPUTS, 1)
    return {
        "cosines": np.mean(cosines, axis=0).tolist(),
        "alignment": seen.alignment,
        "least_cosine": float(seen.cosines[pairs].min()),
        "opposed": float(seen.opposed[pairs].max()),
    }


if __name__ == "__main__":
    command.run("experiments.study.language", __doc__, Config, measure, tables, TITLE)
