"""Tables of a benchmark's figures in Markdown."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table


def page(title: str, command: str, machine: dict[str, Any], tables: Sequence[Table]) -> str:
    """A page of tables.

    Args:
      title: of the page.
      command: what measured the figures.
      machine: on what.
      tables: to write.
    """
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    described = f"{machine['device']}, {machine['platform']}, {machine['cpus']} cores"
    lines = [f"# {title}", "", f"`{command}` on {machine['date']}: {described}; {versions}."]
    for table in tables:
        lines += ["", f"## {table.title}", "", *_lines(table)]
    return "\n".join(lines) + "\n"


def command_of(module: str, arguments: Sequence[str]) -> str:
    """The command line that a user would type, with the last part of paths only."""
    shown = [Path(each).name if "/" in each else each for each in arguments]
    return shlex.join(["python", "-m", module, *shown])


def _lines(table: Table) -> list[str]:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    header = [str(column.header) for column in table.columns]
    rows = [header, ["---"] * len(header), *zip(*columns, strict=True)]
    return [f"| {' | '.join(row)} |" for row in rows]
