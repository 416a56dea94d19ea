"""Command lines of all programs: settings by tyro, with `~` expanded in every path."""

from pathlib import Path
from typing import Any

import tyro

from experiments.app.settings import expanded

_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _paths(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    if info.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: expanded(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def read(
    config_type: Any,
    module: str,
    description: str | None,
    default: Any = tyro.MISSING_NONPROP,
) -> Any:
    """Read the settings of `python -m MODULE` from its command line.

    Args:
      config_type: dataclass of the settings.
      module: of the program.
      description: text for `--help`.
      default: the settings that options replace; the defaults of the class if not given.
    """
    program = f"python -m {module}"
    with _REGISTRY:
        return tyro.cli(config_type, prog=program, description=description, default=default)
