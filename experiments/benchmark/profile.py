"""Where the time of a training step goes: SGD and OSGD by the operations of JAX that they run.

The compiled steps are run under JAX's profiler. What an instruction of the compiler takes is added
to the operation of JAX that it was made of; those that the compiler made by itself, to change a
layout for example, go by their own name. What runs side by side counts in full.
"""

import collections
import dataclasses
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from experiments.app.nets import ResNetFamily
from experiments.app.settings import require
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import command
from experiments.benchmark.steps import Step, make_steps
from experiments.benchmark.steps import problem as problem_of

TITLE = "Profile of training steps"
_METHODS = ("sgd", "osgd")
_FORMS = (("ms", ".2f"), ("runs", ".0f"))


@dataclasses.dataclass(frozen=True)
class Config:
    """What to profile.

    Attributes:
      nets: families, each at its default size.
      batch_sizes: examples in a step.
      image_size: height and width of the images, which have 3 channels.
      rounds: steps of which the mean is taken.
      output: file for the results.
    """

    nets: tuple[ResNetFamily, ...] = ("width-nested",)
    batch_sizes: tuple[int, ...] = (16, 128)
    image_size: int = 32
    rounds: int = 10
    output: Path = Path("runs/profile.json")

    def __post_init__(self):
        require(self, fields=("image_size", "rounds", "batch_sizes"), at_least=1)


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds of a step by operation, and how many of the compiler's operations they are."""
    rows = []
    for family in config.nets:
        for batch_size in config.batch_sizes:
            report(f"{family}, batch {batch_size}")
            net = benchmark.make_net(benchmark.Config(), family, num_outputs=3)
            shape = (batch_size, config.image_size, config.image_size, 3)
            problem = problem_of(net, shape)
            steps = make_steps(problem, _METHODS, "shared")
            profiles = {name: profile(step, config.rounds) for name, step in steps.items()}
            rows.append({"net": family, "batch_size": batch_size} | profiles)
    return {"rows": rows}


def profile(step: Step, rounds: int) -> dict[str, dict[str, float]]:
    """Mean milliseconds and number of runs of each operation in a step of one program."""
    ((program, _),) = step.programs
    made_of = sources(program.as_text())
    jax.block_until_ready(step.run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(rounds):
                jax.block_until_ready(step.run())
        (path,) = Path(folder).glob("**/*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found = collections.defaultdict(lambda: {"ms": 0.0, "runs": 0.0})
    for event in events:
        if instruction := event.get("args", {}).get("hlo_op"):
            name = made_of.get(instruction) or re.sub(r"[.\d]+$", "", instruction)
            found[name]["ms"] += event["dur"] / 1e3 / rounds
            found[name]["runs"] += 1 / rounds
    return dict(sorted(found.items(), key=lambda item: -item[1]["ms"]))


def sources(program: str) -> dict[str, str]:
    """The operation of JAX that each instruction of a compiled program was made of."""
    found = re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', program, re.MULTILINE)
    return {instruction: path.split("/")[-1] for instruction, path in found}


def tables(results: dict[str, Any]) -> list[Table]:
    """One for each net and batch size: the operations that take a hundredth of the time or more."""
    return [_table(row) for row in results["rows"]]


def _table(row: dict[str, Any]) -> Table:
    shown = Table(title=f"{row['net']}, batch {row['batch_size']}")
    shown.add_column("operation", no_wrap=True)
    for column in ("SGD ms", "runs", "OSGD ms", "runs", "OSGD − SGD ms"):
        shown.add_column(column, justify="right", no_wrap=True)
    sums = [_summed(row[method], list(row[method])) for method in _METHODS]
    large = [name for name, each in row["osgd"].items() if each["ms"] >= sums[1]["ms"] / 100]
    lines = {name: [_summed(row[method], [name]) for method in _METHODS] for name in large}
    lines["others"] = [
        _summed(row[method], [name for name in row[method] if name not in large])
        for method in _METHODS
    ]
    for name, (sgd, osgd) in (lines | {"all": sums}).items():
        figures = [f"{each[key]:{form}}" for each in (sgd, osgd) for key, form in _FORMS]
        shown.add_row(name, *figures, f"{osgd['ms'] - sgd['ms']:+.2f}")
    return shown


def _summed(operations: dict[str, dict[str, float]], names: list[str]) -> dict[str, float]:
    found = [operations[name] for name in names if name in operations]
    return {key: sum(each[key] for each in found) for key, _ in _FORMS}


if __name__ == "__main__":
    command.run("experiments.benchmark.profile", __doc__, Config, measure, tables, TITLE)
