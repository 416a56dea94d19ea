"""Tables of an evaluation: outputs, classes, confusions and wrong examples, texts at deadlines."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

# Rows of a table, and classes up to which the confusion matrix is printed.
_ROWS, _PRINTED = 15, 12


def tables(found: dict[str, Any]) -> list[Table]:
    """Make all tables of what evaluation.json holds."""
    shown = [outputs_table(found)]
    if "deadlines" in found:
        return [*shown, deadlines_table(found)]
    outputs = found["outputs"]
    return [*shown, class_table(outputs), confusion_table(outputs[-1]), wrong_table(outputs[-1])]


def outputs_table(found: dict[str, Any]) -> Table:
    """Make a row for each output."""
    shown = Table(title=f"Test data, {found['examples']} examples, step {found['step']}")
    columns = {
        "bits_per_token": ("bits per token", lambda value: f"{value:.3f}"),
        "accuracy": ("accuracy, %", lambda value: f"{100 * value:.1f}"),
        "calibration_error": ("calibration error, %", lambda value: f"{100 * value:.1f}"),
        "multiply_adds": ("multiply-adds", lambda value: f"{value:,.0f}"),
        "parameters": ("parameters", lambda value: f"{value:,}"),
    }
    measured = [columns[name] for name in columns if name in found["outputs"][0]]
    for header in ("output", *[header for header, _ in measured]):
        shown.add_column(header, justify="right")
    for k, output in enumerate(found["outputs"]):
        figures = [show(output[name]) for name, (_, show) in columns.items() if name in output]
        shown.add_row(str(k + 1), *figures)
    return shown


def class_table(outputs: Sequence[dict[str, Any]]) -> Table:
    """Make a row for each class, the least accurate at the last output first."""
    last = outputs[-1]["classes"]
    known = [c for c, each in enumerate(last) if each["examples"]]
    order = sorted(known, key=lambda c: last[c]["accuracy"])
    title = "Classes: accuracy of each output, precision of the last, %"
    if len(order) > _ROWS:
        title += f" (the {_ROWS} least accurate of {len(order):,})"
    shown = _table(title, "class", "examples")
    for header in (*[f"output {k + 1}" for k in range(len(outputs))], "precision"):
        shown.add_column(header, justify="right")
    for c in order[:_ROWS]:
        figures = *[output["classes"][c]["accuracy"] for output in outputs], last[c]["precision"]
        name, count = Text(last[c]["class"]), f"{last[c]['examples']:,}"
        shown.add_row(name, count, *[_percent(each) for each in figures])
    return shown


def confusion_table(output: dict[str, Any]) -> Table:
    """Make the confusion matrix of a few classes, or list the most frequent confusions of many."""
    names = [each["class"] for each in output["classes"]]
    if len(names) > _PRINTED:
        title = "Most frequent confusions of the last output"
        shown = _table(title, "true", "predicted", "examples")
        for each in output["most_confused"][:_ROWS]:
            shown.add_row(Text(each["true"]), Text(each["predicted"]), f"{each['examples']:,}")
        return shown
    shown = _table("Confusion matrix of the last output, true classes by row", "true")
    for name in names:
        shown.add_column(Text(name), justify="right")
    for name, row in zip(names, output["confusion"], strict=True):
        shown.add_row(Text(name), *map(str, row))
    return shown


def wrong_table(output: dict[str, Any]) -> Table:
    """List the wrong examples whose class was the most probable."""
    title = f"Wrong examples of the last output: {output['wrong_examples']:,}"
    if output["wrong_examples"] > _ROWS:
        title += f" (the {_ROWS} most probable mistakes)"
    shown = _table(title, "example", "true", "predicted", "probability, %")
    for each in output["wrong"][:_ROWS]:
        names = [Text(str(each[name])) for name in ("example", "true", "predicted")]
        shown.add_row(*names, _percent(each["probability"]))
    return shown


def deadlines_table(found: dict[str, Any]) -> Table:
    """Make a row for each range of deadlines, of texts that were continued."""
    shown = Table(title="Texts continued at random deadlines")
    for column in ("deadline, ms", "tokens by each output, %", "bits per token", "late, %"):
        shown.add_column(column, justify="right")
    for row in found["deadlines"]:
        shares = " ".join(f"{100 * share:.0f}" for share in row["exit_shares"])
        figures = f"{row['bits_per_token']:.3f}", f"{100 * row['late']:.1f}"
        shown.add_row(f"{1e3 * row['deadline']:.2f}", shares, *figures)
    return shown


def _table(title: str, *columns: str) -> Table:
    """Make an empty table, names at the left and figures at the right."""
    shown = Table(title=title)
    for column in columns:
        name = column in ("class", "example", "true", "predicted")
        shown.add_column(column, justify="left" if name else "right", overflow="fold")
    return shown


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
