"""What all benchmarks share: the command line, and tables of the figures in Markdown."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table


def run(
    module: str,
    description: str | None,
    config_type: Callable[..., Any],
    measure: Callable[[Any, Callable[[str], None]], dict[str, Any]],
    tables: Callable[[dict[str, Any]], Sequence[Table]],
    title: str,
) -> None:
    """The command line of a benchmark: measures, prints tables, writes them beside the figures.

    Args:
      module: that is run.
      description: shown by `--help`.
      config_type: dataclass of the settings, with the file for the figures as `output`.
      measure: gives figures by name; calls its second argument with what is being measured. A
        `ValueError` or `OSError` from it or from `config_type` ends the program with a sentence.
      tables: of the figures.
      title: of the page of tables.
    """
    console = Console()
    # Tables are not cut where the output goes to a file.
    console.width = max(console.width, 140)
    try:
        config = tyro.cli(config_type, prog=f"python -m {module}", description=description)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        with console.status("") as status:
            figures = measure(config, lambda text: status.update(text))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for table in tables(figures):
        console.print(table)
    written = {
        "command": command_of(module, sys.argv[1:]),
        "config": described(config),
        "machine": machine(),
        **figures,
    }
    config.output.write_text(json.dumps(written, indent=1) + "\n")
    config.output.with_suffix(".md").write_text(page(title, written, tables(figures)))
    console.print(
        f"Wrote {config.output} and its tables beside it.", highlight=False, soft_wrap=True
    )


def page(title: str, written: dict[str, Any], tables: Sequence[Table]) -> str:
    """A page of tables.

    Args:
      title: of the page.
      written: a file of figures, with the `command` that measured them and the `machine`.
      tables: of the figures.
    """
    machine = written["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    on = f"{machine['device']}, {machine['platform']}, {machine['cpus']} cores"
    lines = [f"# {title}", "", f"`{written['command']}` on {machine['date']}: {on}; {versions}."]
    for table in tables:
        lines += ["", f"## {table.title}", "", *_lines(table)]
    return "\n".join(lines) + "\n"


def described(config: Any) -> dict[str, Any]:
    """A dataclass of settings for JSON, with the last part of paths only."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=lambda path: path.name))


def machine() -> dict[str, Any]:
    """What figures were measured on and with."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "optax", "flax")},
    }


def command_of(module: str, arguments: Sequence[str]) -> str:
    """The command line that a user would type, with the last part of paths only."""
    shown = [Path(each).name if "/" in each else each for each in arguments]
    return shlex.join(["python", "-m", module, *shown])


def _lines(table: Table) -> list[str]:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    header = [str(column.header) for column in table.columns]
    rows = [header, ["---"] * len(header), *zip(*columns, strict=True)]
    return [f"| {' | '.join(row)} |" for row in rows]
