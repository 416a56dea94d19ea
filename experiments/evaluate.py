"""Evaluate a trained anytime net: `python -m experiments.evaluate WORKDIR`.

Writes evaluation.json and evaluation.png into the workdir of a finished or stopped run: accuracy,
calibration error and multiply-adds of each output (the anytime curve and the area under it),
budgeted batch classification, agreement of the outputs and what each gains and loses; accuracy and
precision of each class, confusion matrices (-confusion.png, -confusion.npz) and the wrong examples
(-wrong.csv, -wrong.png). Of a run on text: bits per token and multiply-adds of each output, and
texts continued at random deadlines.

Files of other data (`--data`) are called evaluation-DATA instead. No example that the run was
trained on is evaluated.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import tyro
from flax import nnx
from rich.console import Console

from experiments.app import command_line, devices, programs
from experiments.app.data_record import class_names, class_order
from experiments.app.evaluation import figures
from experiments.app.evaluation.examples import Tested, choose
from experiments.app.evaluation.mistakes import Mistakes
from experiments.app.evaluation.pictures import draw_confusion, draw_curve, draw_wrong
from experiments.app.evaluation.tables import tables
from experiments.app.files import open_folder, write_json
from experiments.app.settings import require
from experiments.app.workdir import read_config


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluate a trained anytime net.

    Attributes:
      workdir: of a run of `python -m experiments.train`.
      checkpoint: the last one, or the one with the best mean validation accuracy.
      data: where the data is now, or other data of the same classes: its test part, or all of it
        where it has no test data apart; the data of the run if not given.
      data_dir: where tensorflow_datasets keeps what it has prepared; as in the run if not given.
      rule: by what examples leave early in budgeted classification: the probability of the
        likeliest class, its distance to that of the next, or one less the entropy.
      texts: how many texts are continued at random deadlines.
    """

    workdir: tyro.conf.Positional[Path]
    checkpoint: Literal["last", "best"] = "last"
    data: str | None = None
    data_dir: Path | None = None
    rule: Literal["confidence", "margin", "entropy"] = "confidence"
    texts: int = 60

    def __post_init__(self):
        require(self, fields=("texts",), at_least=1)


class Details(NamedTuple):
    """An evaluation beside its figures.

    Attributes:
      name: of its files, without an ending.
      mistakes: of all outputs; None for text.
      tested: the examples and their predictions; None for text.
    """

    name: str
    mistakes: Mistakes | None = None
    tested: Tested | None = None


def evaluate(config: EvaluationConfig) -> tuple[dict[str, Any], Details]:
    """Return the content of evaluation.json, and what the other files and pictures show.

    Raises:
      ValueError: no run or no checkpoint in the workdir, or its data is missing or other data.
    """
    source = read_config(config.workdir).dataset
    if config.data_dir is not None:
        source = dataclasses.replace(source, data_dir=config.data_dir)
    chosen = choose(config.workdir, source, config.data)
    dataset = chosen.dataset
    trained = programs.read_trained(config.workdir, config.checkpoint)
    count = jax.device_count()
    batch_size = -(-trained.config.run.batch_size // count) * count
    placed = devices.placement(batch_size, shard_state=False)
    state = placed.put_state(trained.state)
    logits_of, totals = programs.evaluation(nnx.graphdef(trained.net), dataset)
    found = {
        "data": " ".join(chosen.about),
        "checkpoint": config.checkpoint,
        "step": int(state.step),
    }
    if dataset.is_text:
        measured = programs.accuracies_and_losses(
            jax.jit(totals), batch_size, placed, state, dataset.test
        )
        found |= figures.of_text(dataset, trained.net, *measured, config.texts)
        return found, Details(chosen.name)
    logits = functools.partial(jax.jit(logits_of), state)
    predict = functools.partial(figures.predicted, logits, placed, batch_size)
    tested = Tested(chosen, class_order(trained.dataset, dataset), predict)
    found |= figures.of_outputs(tested, trained.net, dataset)
    if chosen.validation is not None and chosen.validation.any():
        validation = predict(dataset.validation)[0][:, chosen.validation]
        found |= figures.of_budgets(validation, tested, trained.net, dataset, config.rule)
    mistakes = Mistakes.find(
        tested.probabilities, tested.labels, class_names(trained.dataset), tested.names
    )
    for k, output in enumerate(found["outputs"]):
        output |= mistakes.described(k)
    return found, Details(chosen.name, mistakes, tested)


def write(found: dict[str, Any], details: Details, folder: Path) -> None:
    """Write all files of an evaluation into a folder, which must be there."""
    file = folder / details.name
    write_json(folder / f"{details.name}.json", found)
    draw_curve(found, folder / f"{details.name}.png")
    if details.mistakes is not None and details.tested is not None:
        details.mistakes.write(file)
        draw_confusion(details.mistakes, folder / f"{details.name}-confusion.png")
        draw_wrong(details.mistakes, details.tested.read, folder / f"{details.name}-wrong.png")


def main() -> None:
    """Command line."""
    console = Console()
    try:
        config = command_line.read(EvaluationConfig, "experiments.evaluate", __doc__)
        read_config(config.workdir)
        open_folder(config.workdir, "workdir")
        found, details = evaluate(config)
        write(found, details, config.workdir)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    console.print(found["data"], highlight=False, markup=False, soft_wrap=True)
    for table in tables(found):
        console.print(table)
    if "area_under_anytime_curve" in found:
        area = 100 * found["area_under_anytime_curve"]
        console.print(f"area under the anytime curve {area:.1f} %", highlight=False)
    written = f"{details.name}.json and {details.name}.png"
    if details.mistakes is not None:
        written += f", and mistakes as {details.name}-*"
    console.print(f"Wrote {written} in {config.workdir}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
