"""Nets for the load test, and the ways to serve them that it compares."""

import dataclasses
import functools
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

import osgd_jax
from experiments.app import data, methods
from experiments.app.data import Dataset
from experiments.app.nets import ResNetFamily, Sizes, make_net
from experiments.app.settings import require
from experiments.lab.vectorized import Run, Trainer
from experiments.serve.policies import (
    Dispatcher,
    FirstComeFirstServed,
    Model,
    RefusesLate,
    Zoo,
)

_CONFIDENCES = np.linspace(0.5, 0.99, 50)
_POINTS_TO_LOSE = 0.005  # of validation accuracy, by answers of confident outputs
_TIMED = 20
# Settings that the trained nets depend on.
_TRAINING = (
    "data",
    "train_size",
    "net",
    "widths",
    "blocks",
    "epochs",
    "learning_rate",
    "batch_size",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The load test.

    Attributes:
      data: as for `experiments.train`, images or sequences.
      train_size: training examples to use; all if not given.
      net: family of anytime nets.
      widths: channels of each level, at the last output for a width-nested net.
      blocks: residual blocks of each level.
      epochs: passes over the training examples.
      learning_rate: of all nets.
      batch_size: examples in a training step.
      max_batch: requests that run together, at most.
      deadline: seconds of each request.
      loads: arrivals over the capacity of the last output.
      seconds: of one run.
      repetitions: runs of each way at each load.
      output: file for the results; a figure and the trained nets are written beside it.
    """

    data: str = "digits"
    train_size: int | None = None
    net: ResNetFamily = "width-nested"
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: tuple[int, ...] = (1, 1, 1)
    epochs: int = 10
    learning_rate: float = 0.1
    batch_size: int = 100
    max_batch: int = 32
    deadline: float = 0.2
    loads: tuple[float, ...] = (0.4, 0.7, 1.0, 1.3, 1.5)
    seconds: float = 4.0
    repetitions: int = 5
    output: Path = Path("runs/load/load.jsonl")

    def __post_init__(self):
        require(self, fields=("epochs", "batch_size", "max_batch", "repetitions"), at_least=1)
        require(self, fields=("learning_rate", "deadline", "loads", "seconds"), above=0)


class Way(NamedTuple):
    """A way to serve.

    Attributes:
      name: as shown.
      start: returns a context manager whose value takes an example and a deadline in seconds and
        returns a future, whose result has an `output` and a `label`.
    """

    name: str
    start: Callable[[], Any]


def load(config: Config) -> Dataset:
    """Return the data in memory, standardized."""
    dataset = data.load(data.Source(config.data, config.train_size))
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    read = {name: split.read(np.arange(split.size)) for name, split in splits.items()}
    ready = {name: s._replace(inputs=dataset.standardise(s.inputs)) for name, s in read.items()}
    return dataclasses.replace(dataset, **ready)


def trained_nets(config: Config, dataset: Dataset) -> list[Any]:
    """Return the anytime net and the zoo, trained now or read from the folder of the output.

    Raises:
      ValueError: the folder has nets of other settings.
    """
    stored = config.output.with_name("nets.pickle")
    settings = {name: getattr(config, name) for name in _TRAINING}
    make = functools.partial(make_net, Sizes(config.net, 3, config.widths, config.blocks), dataset)
    if stored.exists():
        found, states = pickle.loads(stored.read_bytes())
        if found != settings:
            raise ValueError(
                f"{stored} holds nets of other settings, {found}; name another --output or"
                " remove it."
            )
    else:
        states = [_trained(config, dataset, make, output) for output in (None, 0, 1, 2)]
        stored.write_bytes(pickle.dumps((settings, states)))
    nets = []
    for output, state in zip((None, 0, 1, 2), states, strict=True):
        net = make(nnx.Rngs(0))
        net = net if output is None else net.subnetwork(output)
        nnx.update(net, state)
        nets.append(net)
    return nets


def _trained(config: Config, dataset: Dataset, make: Any, output: int | None) -> Any:
    method = methods.method(methods.Settings("sgd"), num_tasks=3)
    trainer = Trainer(
        make,
        dataset,
        dataclasses.replace(method, output=output),
        epochs=config.epochs,
        batch_size=config.batch_size,
    )
    state = trainer.alone(trainer.train([Run(0, config.learning_rate)]).state)
    return nnx.to_pure_dict(nnx.merge_state(state.params, state.rest))


class _Last(nnx.Module):
    """The last output of an anytime net as its only one."""

    num_outputs = 1

    def __init__(self, net: Any):
        self.net = net

    def start(self, x: Any) -> Any:
        return x

    def advance(self, k: int, x: Any) -> tuple[Any, Any]:
        return self.net(x)[-1], x


class Served(NamedTuple):
    """A net that answers whole batches.

    Attributes:
      model: the net.
      seconds: that 95 % of its runs keep to, for batches of 1, 2, 4, …
      capacity: examples per second in the largest batches, by the median time.
      accuracy: on the test examples.
    """

    model: Model
    seconds: tuple[float, ...]
    capacity: float
    accuracy: float


def _served(net: Any, output: int, dataset: Dataset, max_batch: int) -> Served:
    predictor = osgd_jax.AnytimePredictor(_Last(net))

    def model(xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _classes(predictor, xs), np.full(len(xs), output)

    times = [_times(model, dataset, 1 << power) for power in range(max_batch.bit_length())]
    usual = tuple(float(np.quantile(each, 0.95)) for each in times)
    capacity = max_batch / float(np.median(times[-1]))
    return Served(model, usual, capacity, _accuracy(model, dataset, max_batch))


def _classes(predictor: osgd_jax.AnytimePredictor, xs: np.ndarray, **limits: Any) -> np.ndarray:
    return np.asarray(predictor.predict(_padded(xs), **limits).logits)[: len(xs)].argmax(-1)


def _padded(xs: np.ndarray) -> np.ndarray:
    """Fill a batch up to a power of two, so that few programs are compiled."""
    size = 1 << (len(xs) - 1).bit_length()
    return np.concatenate([xs, np.repeat(xs[:1], size - len(xs), axis=0)])


def _times(model: Model, dataset: Dataset, size: int) -> list[float]:
    xs, times = dataset.test.inputs[:size], []
    for _ in range(3 + _TIMED):
        start = time.perf_counter()
        model(xs)
        times.append(time.perf_counter() - start)
    return times[3:]


def _accuracy(model: Model, dataset: Dataset, max_batch: int) -> float:
    test = dataset.test
    starts = range(0, test.size - max_batch + 1, max_batch)
    right = [
        model(test.inputs[start : start + max_batch])[0] == test.labels[start : start + max_batch]
        for start in starts
    ]
    return float(np.mean(right))


def _confidence(predictor: osgd_jax.AnytimePredictor, dataset: Dataset) -> float:
    """Return the least confidence at which early exits cost half a point of accuracy."""
    split = dataset.validation.read(np.arange(min(2000, dataset.validation.size)))
    outputs = [np.asarray(output.logits) for output in predictor.stream(split.inputs)]
    probabilities = [np.asarray(nnx.softmax(jnp.asarray(logits))) for logits in outputs]
    for confidence in _CONFIDENCES:
        answers = probabilities[-1].argmax(-1)
        for each in reversed(probabilities[:-1]):
            answers = np.where(each.max(-1) >= confidence, each.argmax(-1), answers)
        lost = np.mean(probabilities[-1].argmax(-1) == split.labels) - np.mean(
            answers == split.labels
        )
        if lost <= _POINTS_TO_LOSE:
            return float(confidence)
    return float(_CONFIDENCES[-1])


class _Anytime:
    """An `AnytimeServer` that replies as the other ways do."""

    def __init__(self, server: osgd_jax.AnytimeServer):
        self._server = server

    def __enter__(self) -> "_Anytime":
        return self

    def __exit__(self, *_: Any) -> None:
        """Leave the server open for the next run."""

    def submit(self, x: np.ndarray, deadline: float) -> Any:
        return self._server.submit(x, deadline=deadline)


def ways_to_serve(
    config: Config, dataset: Dataset, nets: Sequence[Any]
) -> tuple[list[Way], dict[str, Any]]:
    """Return the ways to compare, and what is known of the nets before the test."""
    anytime, *zoo = nets
    predictor = osgd_jax.AnytimePredictor(anytime)
    server = osgd_jax.AnytimeServer(
        predictor, input_shape=dataset.input_shape, max_batch=config.max_batch
    )
    last = _served(anytime, 2, dataset, config.max_batch)
    first = _served(anytime.subnetwork(0), 0, dataset, config.max_batch)
    alone = [_served(net, k, dataset, config.max_batch) for k, net in enumerate(zoo)]
    confidence = _confidence(predictor, dataset)

    def until_sure(xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        prediction = predictor.predict(_padded(xs), confidence=confidence)
        return np.asarray(prediction.logits)[: len(xs)].argmax(-1), prediction.exits[: len(xs)]

    for power in range(config.max_batch.bit_length()):  # compile
        until_sure(dataset.test.inputs[: 1 << power])

    def dispatch(policy: Callable[..., Any], argument: Any, *models: Model) -> Callable[[], Any]:
        return lambda: Dispatcher(policy(argument), models)

    ways = [
        Way("anytime", lambda: _Anytime(server)),
        Way("zoo", dispatch(Zoo, [each.seconds for each in alone], *[s.model for s in alone])),
        Way("last output, refuses", dispatch(RefusesLate, last.seconds, last.model)),
        Way("last output", dispatch(FirstComeFirstServed, config.max_batch, last.model)),
        Way("output 0", dispatch(RefusesLate, first.seconds, first.model)),
        Way("confidence", dispatch(FirstComeFirstServed, config.max_batch, until_sure)),
    ]
    about = {
        "capacity": last.capacity,
        "stage_seconds": [list(stage) for stage in server.latencies],
        "confidence": confidence,
        "accuracy": {
            "anytime": _accuracies(predictor, dataset, config.max_batch),
            "zoo": [each.accuracy for each in alone],
        },
        "zoo_seconds": [each.seconds[-1] for each in alone],
    }
    return ways, about


def _accuracies(
    predictor: osgd_jax.AnytimePredictor, dataset: Dataset, max_batch: int
) -> list[float]:
    test, right = dataset.test, []
    for start in range(0, test.size - max_batch + 1, max_batch):
        outputs = predictor.stream(test.inputs[start : start + max_batch])
        labels = test.labels[start : start + max_batch]
        right.append(
            [np.mean(np.asarray(output.logits).argmax(-1) == labels) for output in outputs]
        )
    return np.mean(right, axis=0).tolist()
