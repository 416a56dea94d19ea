"""The study's page: the text in page.md, with tables and figures made from the rows."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.lab.report import Table
from experiments.lab.sweep import Sweep
from experiments.studies.anytime import figures, tables, why

PLACE = re.compile(r"\{\{(.+?)\}\}")

# What the text may ask for as {{name argument ...}}.
PLACES: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        tables.summary,
        tables.questions,
        tables.problems,
        tables.tests,
        tables.tested,
        tables.difference,
        tables.gains,
        tables.scope,
        tables.scopes,
        tables.rates,
        tables.confirmed,
        tables.screened,
        tables.settings_by_two,
        why.controls,
        why.optimization,
        why.conflict,
        why.predicted,
        why.cost,
        why.nested,
        figures.figure,
    )
}


def write(runs: Sweep, path: Path) -> None:
    """Write the page, and its figures beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = Path(__file__).with_name("page.md").read_text()
    path.write_text(filled(text, runs, path.parent))


def filled(text: str, runs: Sweep, folder: Path) -> str:
    """Return the text with its places filled; figures are drawn into the folder.

    Raises:
      ValueError: a place is unknown, or one of `PLACES` is not used.
    """
    draw: Callable[..., str] = functools.partial(figures.figure, folder=folder)
    places: dict[str, Callable[..., Any]] = {**PLACES, "figure": draw}
    used = set()

    def fill(place: re.Match[str]) -> str:
        name, *arguments = place[1].split()
        if name not in places:
            known = ", ".join(places)
            raise ValueError(f"{place[0]} is unknown; the text may ask for {known}.")
        used.add(name)
        shown = places[name](runs, *arguments)
        return shown.markdown.rstrip("\n") if isinstance(shown, Table) else shown

    text = PLACE.sub(fill, text)
    if unused := places.keys() - used:
        raise ValueError(f"Use {', '.join(sorted(unused))} in the text, or delete what makes them.")
    return text
