"""Train an anytime net on real data: `python -m experiments.train --workdir DIR …`.

On digits with `--scope shared` it takes about a minute on two idle CPU cores and ends with test
accuracies of 99.4, 99.4 and 99.8 % at the three outputs. `--recipe NAME` takes the settings of a
published protocol; the other options replace single ones of them.
"""

import argparse
import sys

from rich.console import Console

from experiments.app import command_line, devices
from experiments.app import summary as summaries
from experiments.app.config import TrainConfig
from experiments.app.training import train


def _read_config() -> TrainConfig:
    """Read the command line, whose defaults are those of the recipe if it names one."""
    module = "experiments.train"
    first = argparse.ArgumentParser(f"python -m {module}", add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")
    recipe = first.parse_known_args()[0].recipe
    default = {} if recipe is None else {"default": TrainConfig.from_recipe(recipe)}
    return command_line.read(TrainConfig, module, __doc__, **default)


def main() -> None:
    """Command line."""
    console = Console(quiet=False)
    try:
        config = _read_config()
        summary = train(config, console)
    except devices.StoppedError as stopped:
        console.print(str(stopped), highlight=False)
        sys.exit(128 + stopped.number)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    for line in summaries.lines(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if config.recipe is not None:
        console.print(summaries.comparison(config.recipe, config.dataset.data, summary))
    console.print(f"Wrote {config.workdir / 'summary.json'}.", highlight=False)


if __name__ == "__main__":
    main()
