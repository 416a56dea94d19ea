"""Run a study: `python -m experiments.study NAME`, `anytime` if no name is given.

A name is a module of `experiments.studies`; `python -m experiments.study NAME --help` lists its
options.
"""

import pkgutil
import runpy
import sys

from experiments import studies


def main() -> None:
    """Command line."""
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "anytime"
    names = sorted(module.name for module in pkgutil.iter_modules(studies.__path__))
    if name not in names:
        sys.exit(f"error: `NAME` must be one of {', '.join(names)}, got {name}.")
    sys.argv[1:] = arguments
    runpy.run_module(f"experiments.studies.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
