"""Time serving: an anytime net stage by stage, and a language model token by token.

`predictor.py` trains small nets and runs them by stages and by deadlines. `generator.py` compares a
nested Transformer with plain ones, in training and in decoding.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.benchmark import generator as generator_part
from experiments.benchmark import predictor as predictor_part
from experiments.lab.report import Table

TITLE = "Benchmark of serving"
_Part = Literal["predictor", "generator"]
_PARTS = {"predictor": predictor_part, "generator": generator_part}


@dataclasses.dataclass(frozen=True)
class Config:
    """Choose what to measure.

    Attributes:
      parts: what to measure.
      predictor: sizes of the anytime nets.
      generator: sizes of the language model.
      output: file for the results.
    """

    parts: tuple[_Part, ...] = get_args(_Part)
    predictor: predictor_part.Config = dataclasses.field(default_factory=predictor_part.Config)
    generator: generator_part.Config = dataclasses.field(default_factory=generator_part.Config)
    output: Path = Path("runs/benchmark_serving.jsonl")


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of each part.

    Raises:
      ValueError: sizes that do not fit each other or the data.
    """
    return {part: _PARTS[part].measure(getattr(config, part), report) for part in config.parts}


def tables(results: dict[str, Any]) -> list[Table]:
    """Return the tables of all parts in the results."""
    return [
        table
        for part, module in _PARTS.items()
        if part in results
        for table in module.tables(results[part])
    ]
