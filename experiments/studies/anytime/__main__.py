"""The study of anytime nets: `python -m experiments.studies.anytime`.

Each question names its nets, its methods and the seeds that choose their rates and that test them;
the page lists all. Runs that the output holds already are not trained again.
"""

import dataclasses
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from experiments.app import command_line
from experiments.app.data import Dataset
from experiments.lab.store import Store
from experiments.studies.anytime import page, times
from experiments.studies.anytime.problems import FAMILIES, IMAGES, NetProblem
from experiments.studies.anytime.questions import QUESTIONS
from experiments.studies.anytime.results import sweep
from experiments.studies.anytime.training import AnytimeTraining


@dataclasses.dataclass(frozen=True)
class Config:
    """Choose the questions to run.

    Attributes:
      questions: names of those to answer; none only writes the page of what there is.
      times: whether to measure the time of a step of the nets that have none.
      fashion_mnist: folder where `tensorflow_datasets` keeps Fashion-MNIST.
      cifar10_jpeg: folder of CIFAR-10 (JPEG): train and test, with a folder for each class.
      output: file of the rows; the page and its figures are written beside it.
    """

    questions: tuple[str, ...] = tuple(QUESTIONS)
    times: bool = False
    fashion_mnist: Path | None = None
    cifar10_jpeg: Path | None = None
    output: Path = Path("runs/anytime/rows.jsonl.gz")

    def __post_init__(self):
        for name in self.questions:
            if name not in QUESTIONS:
                raise ValueError(f"questions={name} must be of {', '.join(QUESTIONS)}.")


def main() -> None:
    """Command line."""
    console = Console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    try:
        config = command_line.read(Config, "experiments.studies.anytime", __doc__)
        runs = sweep(Store(config.output))
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("")

            def advance(line: str) -> None:
                progress.update(task, description=line)

            def load(problem: NetProblem) -> Dataset:
                return problem.load(config.fashion_mnist, config.cifar10_jpeg)

            train = AnytimeTraining(load)
            for name in config.questions:
                runs.answer(QUESTIONS[name], train, advance)
            if config.times:
                times.complete(runs.store, (*FAMILIES, *IMAGES), load, advance)
        written = config.output.parent / "study.md"
        page.write(runs, written)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command goes on from here.")
    console.print(f"Wrote {written}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
