"""The command line of all benchmarks, which also writes their tables in Markdown."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from experiments.app.files import write_json, write_text
from experiments.lab import report


def run(
    module: str,
    description: str | None,
    config_type: Callable[..., Any],
    measure: Callable[[Any, Callable[[str], None]], dict[str, Any]],
    tables: Callable[[dict[str, Any]], Sequence[Table]],
    title: str,
) -> None:
    """Run a benchmark: measure, print tables, and write them beside the figures.

    Args:
      module: as for `report.run`, like `description`, `config_type` and `measure`.
      description: see above.
      config_type: see above.
      measure: see above.
      tables: returns the tables of the figures.
      title: heading of the page of tables.
    """

    def work(config: Any, progress: Callable[[str], None]) -> list[report.Table]:
        figures = measure(config, progress)
        written = report.about(module) | {"config": report.described(config)} | figures
        shown = tables(figures)
        write_json(config.output, written)
        write_text(config.output.with_suffix(".md"), page(title, written, shown))
        return list(map(_converted, shown))

    report.program(module, description, config_type, work)


def page(title: str, written: dict[str, Any], tables: Sequence[Table]) -> str:
    """Return a Markdown page of tables.

    Args:
      title: heading of the page.
      written: a file of figures, with the `command` that measured them and the `machine`.
      tables: the tables of the figures.
    """
    return report.page(title, written, map(_converted, tables))


def _converted(table: Table) -> report.Table:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    header = [str(column.header) for column in table.columns]
    return report.Table(str(table.title), header, list(zip(*columns, strict=True)))
