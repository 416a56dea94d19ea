"""The study of Orthogonalized SGD. What is done already is not done again.

Candidates are tuned, each on the same number of learning rates and seeds, and ranked on the
validation data of one problem; the best go on to the test data, and to the other problems.
"""

import dataclasses
import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from experiments.study import report
from experiments.study.plan import PARTS, RUNS, Part, Study
from experiments.study.store import Store


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
      parts: of the study, in this order; the others need what `screen` finds. `--parts` without a
        name only writes the report of what there is.
      fashion_mnist: folder where `tensorflow_datasets` keeps Fashion-MNIST.
      cifar10_jpeg: folder of CIFAR-10 (JPEG): train and test, with a folder for each class.
      output: folder of the results.
    """

    parts: tuple[Part, ...] = PARTS
    fashion_mnist: Path | None = None
    cifar10_jpeg: Path | None = None
    output: Path = Path("experiments/results/study")


def main() -> None:
    """Command line."""
    config = tyro.cli(Config, prog="python -m experiments.study", description=__doc__)
    console = Console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("")

            def advance(line: str) -> None:
                progress.update(task, advance=1, description=line)

            study = Study(
                Store(config.output / RUNS), config.fashion_mnist, config.cifar10_jpeg, advance
            )
            for part in config.parts:
                study.run(part)
        written = report.write(config.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command goes on from here.")
    console.print(f"Wrote {written}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
