"""Tables for the terminal and the documents, and the command line of programs that print them."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import rich.table
from rich.console import Console

from experiments.app import command_line
from experiments.app.files import open_file, read_records, write_records
from experiments.app.machine import machine


@dataclasses.dataclass
class Table:
    """A table; `rich` prints it and `markdown` is its text for documents.

    Attributes:
      title: shown above the table.
      columns: headers.
      rows: cells, which may be numbers or anything else with a string.
      words: number of columns at the left whose cells are words, not figures.
    """

    title: str
    columns: Sequence[str]
    rows: list[Any] = dataclasses.field(default_factory=list)
    words: int = 1

    def add(self, *cells: Any) -> None:
        """Append a row.

        Raises:
          ValueError: a number of cells that differs from the number of columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(
                f"`cells` must be {len(self.columns)}, one for each column, got {len(cells)}."
            )
        self.rows.append(cells)

    @property
    def markdown(self) -> str:
        """The table in Markdown, without the title; each line ends with a newline."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)

    def __rich__(self) -> rich.table.Table:
        shown = rich.table.Table(title=self.title or None)
        for i, column in enumerate(self.columns):
            justify = "left" if i < self.words else "right"
            shown.add_column(column, justify=justify, overflow="fold")
        for row in self.rows:
            shown.add_row(*map(str, row))
        return shown


def page(title: str, results: dict[str, Any], tables: Iterable[Table]) -> str:
    """Return a Markdown page of tables.

    Args:
      title: heading of the page.
      results: as `run` stores them, with `command` and `machine`; `revision` names the one whose
        command this is, if it was another.
      tables: the tables of the results.
    """
    where = results["machine"]
    used = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    on = f"{where['device']}, {where['platform']}, {where['cpus']} cores"
    made = f"`{results['command']}`"
    if "revision" in results:
        made += f" of `{results['revision']}`"
    text = f"# {title}\n\n{made} on {where['date']}: {on}; {used}.\n"
    return text + "".join(f"\n## {table.title}\n\n{table.markdown}" for table in tables)


def program(
    module: str,
    description: str | None,
    config_type: Callable[..., Any],
    work: Callable[[Any, Callable[[str], None]], Sequence[Table]],
) -> None:
    """Run a program that writes results and prints their tables.

    Args:
      module: the program's module.
      description: text for `--help`.
      config_type: dataclass of the settings, with the file for the results as `output`.
      work: writes the results and returns their tables; calls its second argument with the current
        step. A `ValueError` or `OSError` from it or from `config_type` ends the program with one
        sentence.
    """
    console = Console()
    # Tables are not cut where the output goes to a file.
    console.width = max(console.width, 140)
    try:
        config = command_line.read(config_type, module, description)
        open_file(config.output)
        with console.status("") as status:
            tables = work(config, lambda text: status.update(text))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for table in tables:
        console.print(table)
    console.print(f"Wrote {config.output}.", highlight=False, soft_wrap=True)


def run(
    module: str,
    description: str | None,
    config_type: Callable[..., Any],
    measure: Callable[[Any, Callable[[str], None]], dict[str, Any]],
    tables: Callable[[dict[str, Any]], Sequence[Table]],
) -> None:
    """Run a program that measures something and stores its run with `store`.

    Args:
      module: as for `program`, like `description` and `config_type`.
      description: see above.
      config_type: see above.
      measure: returns results by name; calls its second argument with the current step.
      tables: returns the tables of the results.
    """

    def work(config: Any, report: Callable[[str], None]) -> Sequence[Table]:
        runs(config.output)  # refuses another kind of file before the measurement
        results = measure(config, report)
        store(module, config, results)
        return tables(results)

    program(module, description, config_type, work)


def store(module: str, config: Any, results: dict[str, Any]) -> None:
    """Write a run into `config.output`, in place of an earlier run with the same settings.

    Args:
      module: the program's module.
      config: dataclass of the settings.
      results: by name, for JSON.
    """
    run = about(module) | {"config": settings(config)} | results
    stored = {json.dumps(each["config"]): each for each in runs(config.output)}
    stored[json.dumps(run["config"])] = run
    write_records(config.output, stored.values())


def runs(file: Path) -> list[dict[str, Any]]:
    """Return the runs in a file: their command, machine, settings as `config`, and results.

    There are none where the file is missing.

    Raises:
      ValueError: a file that `store` did not write.
    """
    stored = read_records(file)
    if not all("config" in each for each in stored):
        raise ValueError(f"output={file} must be a file of runs; name another file.")
    return stored


def about(module: str) -> dict[str, Any]:
    """Return the command that is running, and the machine."""
    return {"command": command_of(module, sys.argv[1:]), "machine": machine()}


def settings(config: Any) -> dict[str, Any]:
    """Return a dataclass of settings for JSON, with the last part of paths and without `output`."""
    described = json.loads(json.dumps(dataclasses.asdict(config), default=lambda path: path.name))
    return {name: value for name, value in described.items() if name != "output"}


def command_of(module: str, arguments: Sequence[str]) -> str:
    """Return the command line that a user would type, with the last part of paths only."""
    shown = [Path(each).name if "/" in each else each for each in arguments]
    return shlex.join(["python", "-m", *module.split(), *shown])
