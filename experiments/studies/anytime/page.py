"""STUDY.md and its figures, made from the text in study.md and the stored runs."""

import re
from collections.abc import Callable
from pathlib import Path

from experiments.study import figures, tables, why
from experiments.study.store import Store

RUNS = "runs.jsonl"

# What the text may ask for as {{name argument ...}}.
PLACES: dict[str, Callable[..., str]] = {
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


def write(folder: Path) -> Path:
    """Write STUDY.md beside the folder of runs, and its figures into it.

    Args:
      folder: of the runs.

    Returns:
      The path of STUDY.md.
    """
    text = Path(__file__).with_name("study.md").read_text()
    path = folder.parent / "STUDY.md"
    path.write_text(filled(text, Store(folder / RUNS)))
    return path


def filled(text: str, store: Store) -> str:
    """The text with its places filled.

    Raises:
      ValueError: a place is unknown, or one that there is has not been used.
    """
    used = set()

    def fill(place: re.Match[str]) -> str:
        name, *arguments = place[1].split()
        if name not in PLACES:
            known = ", ".join(PLACES)
            raise ValueError(f"{place[0]} is unknown; the text may ask for {known}.")
        used.add(name)
        return PLACES[name](store, *arguments)

    text = re.sub(r"\{\{(.+?)\}\}", fill, text)
    if unused := PLACES.keys() - used:
        raise ValueError(f"Use {', '.join(sorted(unused))} in the text, or delete what makes them.")
    return text
