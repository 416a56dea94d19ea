"""The study of Orthogonalized SGD. What is done already in the output folder is not done again.

Each question names its nets, its methods and the seeds that choose their rates and that test them;
STUDY.md lists all.
"""

import dataclasses
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from experiments import command_line
from experiments.study import report, times
from experiments.study.problems import FAMILIES, IMAGES
from experiments.study.questions import QUESTIONS
from experiments.study.runs import answer
from experiments.study.store import Store


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
      questions: names of those to answer; none only writes the report of what there is.
      times: whether to measure the time of a step of the nets that have none.
      fashion_mnist: folder where `tensorflow_datasets` keeps Fashion-MNIST.
      cifar10_jpeg: folder of CIFAR-10 (JPEG): train and test, with a folder for each class.
      output: folder of the results; experiments/results/study adds to the stored ones.
    """

    questions: tuple[str, ...] = tuple(QUESTIONS)
    times: bool = False
    fashion_mnist: Path | None = None
    cifar10_jpeg: Path | None = None
    output: Path = Path("runs/study")

    def __post_init__(self):
        for name in self.questions:
            if name not in QUESTIONS:
                raise ValueError(f"questions={name} must be of {', '.join(QUESTIONS)}.")


def main() -> None:
    """Command line."""
    console = Console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    try:
        config = command_line.read(Config, "experiments.study", __doc__)
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("")

            def advance(line: str) -> None:
                progress.update(task, advance=1, description=line)

            def load(problem):
                return problem.load(config.fashion_mnist, config.cifar10_jpeg)

            store = Store(config.output / report.RUNS)
            for name in config.questions:
                answer(QUESTIONS[name], store, load, advance)
            if config.times:
                among = (*FAMILIES, *IMAGES)
                times.complete(config.output / times.FILE, among, load, advance)
        written = report.write(config.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command goes on from here.")
    console.print(f"Wrote {written}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
