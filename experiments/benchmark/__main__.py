"""Measure speed and memory: `python -m experiments.benchmark [NAME]`.

- `steps` (if no name is given): training steps of SGD, OSGD and `jax.jacrev`, and of PyTorch and
  TorchJD with `--peer`
- `arrays`: compilation of updates with many parameter arrays, and their Gramian
- `losses`: many losses, and weights of 64 tasks
- `pinn`: training steps of physics-informed nets
- `serving`: stages and deadlines of an anytime net, and tokens of a language model
- `accelerators`: training steps compiled for TPU and GPU, without one

`python -m experiments.benchmark NAME --help` lists the options.
"""

import importlib
import sys

from experiments.lab import report

NAMES = ("steps", "arrays", "losses", "pinn", "serving", "accelerators")


def main() -> None:
    """Command line."""
    arguments = sys.argv[1:]
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments.pop(0) if named else "steps"
    if name not in NAMES:
        sys.exit(f"error: `NAME` must be one of {', '.join(NAMES)}, got {name}.")
    sys.argv[1:] = arguments
    benchmark = importlib.import_module(f"experiments.benchmark.{name}")
    description = benchmark.__doc__ if named else f"{__doc__}\n{benchmark.__doc__}"
    program = f"experiments.benchmark {name}"
    report.run(program, description, benchmark.Config, benchmark.measure, benchmark.tables)


if __name__ == "__main__":
    main()
