"""Time an anytime net stage by stage, and its answers under deadlines.

A net of each family is trained for a moment and run by `AnytimePredictor`. All ways to run a net
are timed in turn, round after round, so that a machine that slows down or is busy for a while does
so for all of them; ratios are medians of the ratios within a round.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from flax import nnx

import osgd_jax
from experiments.app import data, methods
from experiments.app.nets import Family, ResNetFamily, Sizes, make_net
from experiments.app.settings import require
from experiments.lab.report import Table
from experiments.lab.sweep import Run
from experiments.lab.timing import forward, time_in_turn
from experiments.lab.vectorized import Trainer
from osgd_jax import AnytimePredictor

_LATE = 1.1  # an answer counts as late after this many times its deadline
_WARM_UP = 2  # rounds, after the one that compiles


@dataclasses.dataclass(frozen=True)
class Config:
    """Choose the nets and what they run.

    Attributes:
      data: built-in data set, whose test examples are run.
      nets: families.
      outputs: number of outputs, K.
      widths: channels of each level of resolution.
      blocks: residual blocks of each level.
      epochs: of training, by OSGD.
      learning_rate: at the start of training.
      batch_size: examples that are run at a time.
      rounds: how often each way to run a net is timed.
      deadlines: random deadlines to answer by.
      bins: ranges of deadlines for which accuracy is shown.
    """

    data: Literal["digits", "mnist1d"] = "digits"
    nets: tuple[ResNetFamily, ...] = get_args(ResNetFamily)
    outputs: int = 3
    widths: tuple[int, ...] = (16, 32)
    blocks: tuple[int, ...] = (2, 2)
    epochs: int = 3
    learning_rate: float = 0.4
    batch_size: int = 128
    rounds: int = 100
    deadlines: int = 1000
    bins: int = 6

    def __post_init__(self):
        require(self, fields=("outputs", "widths", "blocks", "epochs", "batch_size"), at_least=1)
        require(self, fields=("rounds", "deadlines", "bins"), at_least=1)
        require(self, fields=("learning_rate",), above=0)


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """Return a row of figures for each net.

    Raises:
      ValueError: sizes that do not fit each other or the data.
    """
    dataset = data.load(data.Source(config.data))
    test = dataset.test
    if not config.batch_size <= len(test.labels):
        raise ValueError(f"batch_size={config.batch_size} exceeds {len(test.labels)} examples.")
    rows = []
    for family in config.nets:
        report(family)
        net = _trained_net(config, family, dataset)
        predictor = AnytimePredictor(net)
        x = test.inputs[: config.batch_size]
        latencies = predictor.calibrate(x)
        costs = osgd_jax.cost(net, dataset.input_shape)
        row = {
            "net": family,
            "outputs": config.outputs,
            "batch_size": config.batch_size,
            "multiply_adds": [cost.multiply_adds for cost in costs],
            "calibrated_ms": [1e3 * latency for latency in latencies],
            **_compare_ways(net, predictor, x, config.rounds),
            **_meet_deadlines(config, predictor, test),
        }
        rows.append(row)
    return {"rows": rows}


def _trained_net(config: Config, family: Family, dataset: data.Dataset) -> Any:
    sizes = Sizes(family, config.outputs, config.widths, config.blocks)
    make = functools.partial(make_net, sizes, dataset)
    osgd = methods.method(methods.Settings("osgd"))
    trainer = Trainer(make, dataset, osgd, epochs=config.epochs, batch_size=100)
    trained = trainer.alone(trainer.train([Run(0, config.learning_rate)]).state)
    net = make(nnx.Rngs(0))
    nnx.update(net, trained.params, trained.rest)
    return net


def _compare_ways(
    net: Any, predictor: AnytimePredictor, x: np.ndarray, rounds: int
) -> dict[str, Any]:
    """Compare all stages with one forward pass, and each output with its subnetwork."""
    outputs = range(predictor.num_outputs)
    ways = {
        "forward": forward(net),
        "predict": lambda x: predictor.predict(x).logits,
        **{f"subnetwork {k}": forward(net.subnetwork(k), slice(k, None)) for k in outputs},
    }
    streamed = []

    def stream() -> Any:
        streamed.append([output.elapsed for output in predictor.stream(x)])

    calls = {name: functools.partial(way, x) for name, way in ways.items()} | {"stream": stream}
    times = time_in_turn(calls, _WARM_UP + rounds)
    times = {name: seconds[_WARM_UP:] for name, seconds in times.items()}
    whole, stream_times = times["forward"], np.array(streamed)[-rounds:]
    alone = np.stack([times[f"subnetwork {k}"] for k in outputs], axis=1)
    return {
        "forward_ms": 1e3 * float(np.median(whole)),
        "predict_over_forward": float(np.median(times["predict"] / whole)),
        "stream_over_forward": float(np.median(stream_times[:, -1] / whole)),
        "output_ms": (1e3 * np.median(stream_times, axis=0)).tolist(),
        "subnetwork_ms": (1e3 * np.median(alone, axis=0)).tolist(),
        "output_over_subnetwork": np.median(stream_times / alone, axis=0).tolist(),
    }


def _meet_deadlines(
    config: Config, predictor: AnytimePredictor, test: data.Split
) -> dict[str, Any]:
    """Answer by random deadlines, from the time of output 0 to a quarter more than that of all."""
    rng = np.random.default_rng(0)
    latencies = next(iter(predictor.latencies.values()))
    low, high = latencies[0], 1.25 * sum(latencies)
    deadlines = rng.uniform(low, high, config.deadlines)
    elapsed, exits, accuracy = (np.zeros(config.deadlines) for _ in range(3))
    for i, deadline in enumerate(deadlines):
        rows = rng.choice(len(test.labels), config.batch_size, replace=False)
        answer = predictor.predict(test.inputs[rows], deadline=deadline)
        elapsed[i], exits[i] = answer.elapsed, answer.exits[0]
        accuracy[i] = np.mean(np.argmax(answer.logits, -1) == test.labels[rows])
    edges = np.linspace(low, high, config.bins + 1)
    bins = np.clip(np.digitize(deadlines, edges) - 1, 0, config.bins - 1)
    return {
        "late_share": float(np.mean(elapsed > deadlines)),
        "more_than_10_percent_late_share": float(np.mean(elapsed > _LATE * deadlines)),
        "by_deadline": [
            {
                "up_to_ms": 1e3 * float(edges[i + 1]),
                "answers": int(np.sum(bins == i)),
                "mean_output": float(np.mean(exits[bins == i])),
                "accuracy": float(np.mean(accuracy[bins == i])),
            }
            for i in range(config.bins)
            if np.any(bins == i)
        ],
    }


def _speed_table(rows: list[dict[str, Any]]) -> Table:
    """Return times of stages over those of a forward pass and of standalone subnetworks."""
    shown = Table(
        "Stages over one forward pass, outputs over their own subnetworks",
        ["net", "forward ms", "predict", "stream", "outputs ms", "over subnetworks"],
    )
    for row in rows:
        shown.add(
            row["net"],
            f"{row['forward_ms']:.2f}",
            f"{row['predict_over_forward']:.3f}",
            f"{row['stream_over_forward']:.3f}",
            " ".join(f"{ms:.2f}" for ms in row["output_ms"]),
            " ".join(f"{ratio:.2f}" for ratio in row["output_over_subnetwork"]),
        )
    return shown


def _deadline_table(rows: list[dict[str, Any]]) -> Table:
    """Return shares of late answers, and accuracy in % over ranges of deadlines."""
    columns = ["net", "late %", ">10 % late %", "accuracy % by deadline"]
    shown = Table("Random deadlines", columns)
    for row in rows:
        shown.add(
            row["net"],
            f"{100 * row['late_share']:.1f}",
            f"{100 * row['more_than_10_percent_late_share']:.1f}",
            " ".join(f"{100 * each['accuracy']:.1f}" for each in row["by_deadline"]),
        )
    return shown


def tables(results: dict[str, Any]) -> list[Table]:
    """Return a table of speed and one of deadlines."""
    return [_speed_table(results["rows"]), _deadline_table(results["rows"])]
