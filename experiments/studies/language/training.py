"""Trains the ways of the language study, and measures bits, conflict and time."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import osgd_jax
from experiments.app import data, methods
from experiments.lab.store import Row
from experiments.lab.sweep import Run
from experiments.lab.vectorized import Trained, Trainer
from experiments.studies.language.ways import NETS, OUTPUTS, WAYS, MatFormer, Way


class LanguageTraining:
    """Trains runs of the study, for `Sweep.answer`.

    Args:
      load: loads the text, called when something has to be trained.
      batch_size: examples in a step.
      looks: how often the conflict between gradients is measured in a test run.
    """

    def __init__(self, load: Callable[[], data.Dataset], batch_size: int, looks: int):
        self._load, self._batch_size, self._looks = load, batch_size, looks
        self._compiled = functools.lru_cache(1)(self._compile)

    def __call__(self, _: str, name: str, stage: str, runs: list[Run]) -> Iterator[list[Row]]:
        """Train the runs; all tests come at once, with one row of their conflict and costs."""
        rows, measured = [], []
        for run in runs:
            row, looks = self._train(name, run, tests=stage == "test")
            key = {"stage": stage, "learning_rate": run.learning_rate, "seed": run.seed}
            rows.append(key | row)
            measured.append(looks)
            if stage == "tune":
                yield [rows.pop()]
        if stage == "test":
            first = {**rows[0], "stage": "look"}
            key = {name: first[name] for name in ("stage", "learning_rate", "seed")}
            trainer, _ = self._compiled(name)
            shared = {"step_ms": 1e3 * float(np.median([each.pop("seconds") for each in measured]))}
            shared |= {"gflop": trainer.flops() / 1e9} | self._costs(WAYS[name])
            yield [*rows, key | conflict([each["cosines"] for each in measured]) | shared]

    def _compile(self, name: str) -> tuple[Trainer, Any]:
        way = WAYS[name]
        settings = methods.Settings(
            way.optimizer, way.scope, way.order, update=way.update, clip_norm=1.0
        )
        method = methods.method(settings, num_tasks=OUTPUTS)
        method = dataclasses.replace(method, output=way.output)
        make = functools.partial(self._make, way)
        trainer = Trainer(make, self._load(), method, epochs=1, batch_size=self._batch_size)

        def cosines(state: Any, examples: Any) -> jax.Array:
            batch = trainer.batch(*examples)
            rows = osgd_jax.task_grads(trainer.losses)(state.params, state.rest, batch)
            return osgd_jax.task_cosines(osgd_jax.gramian(rows))

        return trainer, jax.jit(cosines)

    def _make(self, way: Way, rngs: nnx.Rngs) -> Any:
        sizes = {} if way.net in ("branched", "matformer") else {"num_outputs": OUTPUTS}
        return NETS[way.net](vocab_size=self._load().num_classes, rngs=rngs, **sizes)

    def _costs(self, way: Way) -> dict[str, Any]:
        net, shape = self._make(way, nnx.Rngs(0)), self._load().input_shape
        if isinstance(net, MatFormer):
            costs = [osgd_jax.cost(net.cut(each), shape)[0] for each in net.fractions]
        else:
            costs = osgd_jax.cost(net, shape)
        outputs = range(len(costs)) if way.output is None else [way.output]
        return {
            "multiply_adds": [costs[k].multiply_adds / shape[0] for k in outputs],
            "parameters": [costs[k].parameters for k in outputs],
        }

    def _train(self, name: str, run: Run, *, tests: bool) -> tuple[Row, dict[str, Any]]:
        """Return bits per byte of one run, and its cosines and seconds of a step."""
        (trainer, look), dataset = self._compiled(name), self._load()
        state, rates = trainer.start([run])
        batches = data.epoch_batches(
            dataset.train.size, self._batch_size, np.random.default_rng(run.seed)
        )
        every, cosines, seconds = -(-len(batches) // self._looks), [], []
        looking = tests and WAYS[name].output is None
        losses = jnp.zeros((1, 1))
        for step, batch in enumerate(batches):
            examples = trainer.gather(batch[None, None])
            if looking and step % every == 0:
                one = trainer.alone(state), [each[0, 0] for each in examples]
                cosines.append(look(*one).tolist())
            begun = time.perf_counter()
            state, losses = trainer.steps(state, examples, rates)
            jax.block_until_ready(losses)
            seconds.append(time.perf_counter() - begun)
        trained = Trained(state, losses)

        def bits(split: data.Split) -> list[float]:
            return (trainer.scores(trained, split)[1][0] / np.log(2)).tolist()

        row = {"test": bits(dataset.test)} if tests else {"validation": bits(dataset.validation)}
        return row, {"cosines": cosines, "seconds": float(np.median(seconds))}


def conflict(cosines: list[Any]) -> dict[str, Any]:
    """Return the mean cosines of the test runs at each look, and their diagnosis."""
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
