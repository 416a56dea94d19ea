"""What all benchmarks share: the command line, and tables of the figures in Markdown."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments import command_line
from experiments.app.machine import machine
from experiments.files import open_file, write_json, write_text
from experiments.lab import report


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
        config = command_line.read(config_type, module, description)
        open_file(config.output)
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
    write_json(config.output, written)
    write_text(config.output.with_suffix(".md"), page(title, written, tables(figures)))
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
    where = written["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    on = f"{where['device']}, {where['platform']}, {where['cpus']} cores"
    text = f"# {title}\n\n`{written['command']}` on {where['date']}: {on}; {versions}.\n"
    return text + "".join(f"\n## {table.title}\n\n{_markdown(table)}" for table in tables)


def described(config: Any) -> dict[str, Any]:
    """A dataclass of settings for JSON, with the last part of paths only."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=lambda path: path.name))


def command_of(module: str, arguments: Sequence[str]) -> str:
    """The command line that a user would type, with the last part of paths only."""
    shown = [Path(each).name if "/" in each else each for each in arguments]
    return shlex.join(["python", "-m", module, *shown])


def _markdown(table: Table) -> str:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    header = [str(column.header) for column in table.columns]
    return report.Table("", header, list(zip(*columns, strict=True))).markdown
