"""Compare a nested Transformer with plain ones, in training and token by token.

A plain Transformer with the multiply-adds of each output (`plain_transformer.py`) stands for what
one would use without nesting. All calls are timed in turn, round after round. Of steps, and of each
token of a text that is continued in the same way each time, the least time counts, as other
programs on the machine only ever add to it. The mixed schedule draws the output of each token at
random: the first with one half, the second with one quarter and so on. Its counted work is that of
the positions that each stage has to run over.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import osgd_jax
from experiments.app.nets import TRANSFORMERS, TextFamily
from experiments.app.settings import require
from experiments.benchmark import plain_transformer, training_steps
from experiments.lab.report import Table
from experiments.lab.timing import time_in_turn

_VOCAB_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Config:
    """Choose the sizes.

    Attributes:
      net: family.
      outputs: number of outputs, K.
      width: channels of the state.
      depth: layers, at the first output where the net is nested in depth.
      heads: attention heads.
      length: tokens of a text, in training and of the cache.
      batch_size: texts in a training step.
      prompt: tokens that a text begins with; it is continued to its full length.
      rounds: how often each call is timed.
    """

    net: TextFamily = "width-nested-transformer"
    outputs: int = 3
    width: int = 384
    depth: int = 6
    heads: int = 6
    length: int = 256
    batch_size: int = 4
    prompt: int = 16
    rounds: int = 10

    def __post_init__(self):
        sizes = ("outputs", "width", "depth", "heads", "batch_size", "prompt", "rounds")
        require(self, fields=sizes, at_least=1)
        require(self, fields=("length",), above=self.prompt)


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of training and decoding.

    Raises:
      ValueError: sizes that do not fit each other.
    """
    net = TRANSFORMERS[config.net](
        vocab_size=_VOCAB_SIZE,
        num_outputs=config.outputs,
        width=config.width,
        depth=config.depth,
        num_heads=config.heads,
        rngs=nnx.Rngs(0),
    )
    length = config.length
    work = [each.multiply_adds / length for each in osgd_jax.cost(net, (length,))]
    shape = {"vocab_size": _VOCAB_SIZE, "head_dim": config.width // config.heads}
    depth = config.depth * (2 ** (config.outputs - 1) if "depth" in config.net else 1)
    plain = [
        plain_transformer.sizes_for(each, **shape, depth=depth, length=length) for each in work
    ]
    report("training")
    training = _training_rows(config, net, plain)
    report("decoding")
    decoding = _decode(config, net, plain, work)
    return {
        "multiply_adds": work,
        "plain": [
            {**sizes._asdict(), "multiply_adds": sizes.multiply_adds(length)} for sizes in plain
        ],
        "training": training,
        "decoding": decoding,
    }


def _training_rows(
    config: Config, net: Any, plain: list[plain_transformer.Sizes]
) -> list[dict[str, Any]]:
    """Time a training step of the net, and of a plain one with each output's multiply-adds."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, _VOCAB_SIZE, (config.batch_size, config.length + 1))
    batch = jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])
    problem = training_steps.problem_of(net, *batch)
    nested = training_steps.make_steps(problem, ("sgd", "osgd"), "all")
    made = {"sum": nested["sgd"], "task gradients": nested["osgd"]}
    for k, sizes in enumerate(plain):
        alone = training_steps.Problem(
            functools.partial(_plain_losses, sizes),
            plain_transformer.initial_params(sizes),
            None,
            batch,
        )
        made[f"plain {k}"] = training_steps.make_steps(alone, ("sgd",), "all")["sgd"]
    timed = time_in_turn({name: step.run for name, step in made.items()}, config.rounds)
    least = {name: float(each.min()) for name, each in timed.items()}
    separate = sum(least[f"plain {k}"] for k in range(config.outputs))
    work_over_sum = {"task gradients": training_steps.least_work(problem) / made["sum"].work}
    return [
        {
            "step": name,
            "ms": 1e3 * each,
            "over_widest_plain": each / least[f"plain {config.outputs - 1}"],
            "over_all_plain": each / separate,
            "over_sum": each / least["sum"],
            "least_work_over_sum": work_over_sum.get(name),
            "gflop": made[name].work / 1e9,
            "temporary_mb": made[name].temporary_bytes / 1e6,
            "compile_seconds": made[name].compile_seconds,
        }
        for name, each in least.items()
    ]


def _plain_losses(
    sizes: plain_transformer.Sizes, params: Any, rest: Any, inputs: jax.Array, labels: jax.Array
) -> tuple[tuple[jax.Array], Any]:
    logits, _ = plain_transformer.forward(sizes, params, inputs)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (entropy.mean(),), rest


def _decode(
    config: Config, net: Any, plain: list[plain_transformer.Sizes], work: list[float]
) -> dict[str, Any]:
    """Time texts continued by each output, by mixed outputs, and by plain Transformers."""
    prompt = np.random.default_rng(0).integers(0, _VOCAB_SIZE, config.prompt).astype(np.int32)
    count, last = config.length - config.prompt, config.outputs - 1
    generator = osgd_jax.AnytimeGenerator(net, max_length=config.length)
    ways: dict[str, Callable[[], Iterator[Any]]] = {}
    for k, sizes in enumerate(plain):
        decoder = plain_transformer.Decoder(sizes, config.length)
        ways[f"plain {k}"] = functools.partial(decoder.stream, prompt, count)
        ways[f"output {k}"] = functools.partial(generator.stream, prompt, count, output=k)

    def mixed() -> Iterator[osgd_jax.GeneratedToken]:
        rng = np.random.default_rng(0)
        rule = lambda logits: rng.random(len(logits))  # noqa: E731
        return generator.stream(prompt, count, confidence=0.5, rule=rule)

    ways["mixed"] = mixed
    exits = np.array([int(step.exits[0]) for step in mixed()])
    for way in ways.values():
        _seconds(way())
    compiled = _Compilations()
    rounds = [{name: _seconds(way()) for name, way in ways.items()} for _ in range(config.rounds)]
    number = compiled.stop()
    least = {name: float(np.min([each[name] for each in rounds], 0).sum()) for name in ways}
    buffers = generator._decoder.buffers(1)
    stages = np.diff(work, prepend=0)
    counted = {"mixed": float(_positions(exits, config) @ stages)}
    for k in range(config.outputs):
        alone = float(_positions(np.full(count, k), config) @ stages)
        counted |= {f"plain {k}": alone, f"output {k}": alone}
    rows = [
        {
            "way": name,
            "ms_per_token": 1e3 * each / count,
            "over_plain": each / least[f"plain {name[-1]}"] if name != "mixed" else None,
            "over_last": each / least[f"output {last}"],
            "counted_over_last": counted[name] / counted[f"output {last}"],
        }
        for name, each in least.items()
    ]
    return {
        "rows": rows,
        "mixed_exits": np.bincount(exits, minlength=config.outputs).tolist(),
        "compilations_after_the_first_texts": number,
        "bytes": [
            [training_steps.tree_bytes(part) for part in each]
            for each in zip(*buffers, strict=True)
        ],
    }


def _seconds(text: Iterator[Any]) -> np.ndarray:
    """Return the seconds of each token of a text."""
    times = [time.perf_counter()]
    times += [time.perf_counter() for _ in text]
    return np.diff(times)


def _positions(exits: np.ndarray, config: Config) -> np.ndarray:
    """Return how many positions each stage runs over: all up to the last that needed it."""
    needed = exits[:, None] >= np.arange(config.outputs)
    last = len(exits) - needed[::-1].argmax(0)
    return np.where(needed.any(0), config.prompt + last - 1, 0)


class _Compilations:
    """Counts the programs that JAX compiles from when it is made until `stop`."""

    def __init__(self):
        self._count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, *_: Any, **__: Any) -> None:
        self._count += "backend_compile" in event

    def stop(self) -> int:
        jax.monitoring.unregister_event_duration_listener(self._hear)
        return self._count


def tables(results: dict[str, Any]) -> list[Table]:
    """Return a table each of training, decoding and memory."""
    decoding = results["decoding"]
    return [
        _training_table(results["training"]),
        _decoding_table(decoding),
        _memory_table(decoding),
    ]


def _training_table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(
        "A training step, SGD's after it, against plain Transformers",
        [
            *("step", "ms", "GFLOP", "over the widest plain", "over all plain", "over the sum"),
            *("least work", "time over that", "MB", "compile s"),
        ],
    )
    for row in rows:
        work = row["least_work_over_sum"]
        shown.add(
            row["step"],
            f"{row['ms']:.0f}",
            f"{row['gflop']:.1f}",
            f"{row['over_widest_plain']:.2f}",
            f"{row['over_all_plain']:.2f}",
            f"{row['over_sum']:.2f}",
            f"{work:.2f}" if work else "",
            f"{row['over_sum'] / work:.2f}" if work else "",
            f"{row['temporary_mb']:.0f}",
            f"{row['compile_seconds']:.1f}",
        )
    return shown


def _decoding_table(found: dict[str, Any]) -> Table:
    again = found["compilations_after_the_first_texts"]
    shown = Table(
        f"Token by token; {again} compilations after the first texts",
        [
            *("way", "ms a token", "over the plain one", "over the last output"),
            *("counted work over its", "time over that"),
        ],
    )
    for row in found["rows"]:
        ratio, counted = row["over_last"], row["counted_over_last"]
        shown.add(
            row["way"],
            f"{row['ms_per_token']:.2f}",
            f"{row['over_plain']:.2f}" if row["over_plain"] else "",
            *[f"{each:.2f}" for each in (ratio, counted, ratio / counted)],
        )
    return shown


def _memory_table(found: dict[str, Any]) -> Table:
    shown = Table("What a text keeps, MB", ["stage", "keys and values", "states kept for it"])
    for k, stage in enumerate(found["bytes"]):
        shown.add(k, *[f"{each / 1e6:.2f}" for each in stage])
    return shown
