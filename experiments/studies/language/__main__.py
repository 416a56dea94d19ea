"""Nested Transformers on text: `python -m experiments.studies.language`.

Every way to train has the same budget: each of a few learning rates is tried on the tuning seeds,
that with the least mean validation loss is taken, and other seeds are tested at it. All take the
same number of steps on the same batches, the gradient clipped to norm 1 before the optimizer. Two
questions: which net, on the sum of the losses before AdamW; and which balance, on the width-nested
net before AdamW and before SGD. Runs that the output holds already are not trained again.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from experiments.app import data
from experiments.app.settings import require
from experiments.lab import report
from experiments.lab.store import Store
from experiments.lab.sweep import Question
from experiments.studies.language import ngrams
from experiments.studies.language.tables import draw, sweep, tables
from experiments.studies.language.training import LanguageTraining
from experiments.studies.language.ways import WAYS

_ORDER = 5


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      ways: names of rows of the table.
      data: text, as for `python -m experiments.train`.
      length: tokens of an example.
      batch_size: examples in a step.
      train_size: training examples; each is seen once.
      tuning_seeds: seeds that choose the rate.
      test_seeds: other seeds, that test at it.
      looks: how often the conflict between the outputs' gradients is measured in a test run.
      output: file of the rows; pictures are drawn beside it.
    """

    ways: tuple[str, ...] = tuple(WAYS)
    data: str = "pydoc"
    length: int = 64
    batch_size: int = 4
    train_size: int = 4800
    tuning_seeds: int = 2
    test_seeds: int = 5
    looks: int = 10
    output: Path = Path("runs/language/rows.jsonl.gz")

    def __post_init__(self):
        counts = ("length", "batch_size", "train_size", "tuning_seeds", "test_seeds", "looks")
        require(self, fields=counts, at_least=1)
        unknown = set(self.ways) - set(WAYS)
        if unknown:
            raise ValueError(f"ways={unknown} are unknown; use some of {'; '.join(WAYS)}.")


def work(config: Config, advance: Callable[[str], None]) -> list[report.Table]:
    """Train what the output lacks; draw the pictures and return the tables.

    Raises:
      ValueError: no such text, or too little of it.
    """
    names = ("data", "length", "batch_size", "train_size")
    settings = {name: getattr(config, name) for name in names}
    store = Store(config.output, settings, report.about("experiments.studies.language"))
    load = functools.cache(
        lambda: data.load(data.Source(config.data, config.train_size, text_length=config.length))
    )
    question = Question(
        "Which net and which balance give the fewest bits per byte?",
        (config.data,),
        config.ways,
        tuned=range(config.tuning_seeds),
        seeds=range(100, 100 + config.test_seeds),
    )
    sweep(store).answer(question, LanguageTraining(load, config.batch_size, config.looks), advance)
    if not store.of(config.data, "n-grams"):
        text = load()
        bits = ngrams.bits(text.train, text.test, text.num_classes, _ORDER)
        key = {"problem": config.data, "method": "n-grams", "stage": "count"}
        counted = {"learning_rate": 0.0, "seed": 0, "bits": bits, "about": text.about}
        store.add([key | counted])
    draw(store, config.output.parent)
    return tables(store)


if __name__ == "__main__":
    report.program("experiments.studies.language", __doc__, Config, work)
