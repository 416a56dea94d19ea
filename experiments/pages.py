"""Pages and figures of all stored results, made when the documents are built."""

import importlib
from pathlib import Path
from types import ModuleType

from experiments import compare
from experiments.app.files import read_json
from experiments.benchmark.__main__ import NAMES
from experiments.lab.report import page, runs
from experiments.lab.store import Store
from experiments.serve import load
from experiments.studies import conflict, equations, growth, published, trade
from experiments.studies.anytime import page as anytime
from experiments.studies.anytime.results import sweep
from experiments.studies.language import tables as language

RESULTS = Path(__file__).parent / "results"

# Studies with one page of tables, and figures if the module has `draw`.
STUDIES = {
    "conflict": conflict,
    "trade": trade,
    "growth": growth,
    "language": language,
    "equations": equations,
    "published": published,
}


def write(folder: Path) -> None:
    """Write a page of each study and of each benchmark, and the figures, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    anytime.write(sweep(Store(RESULTS / "anytime.jsonl.gz")), folder / "study.md")
    for name, study in STUDIES.items():
        store = Store(RESULTS / f"{name}.jsonl.gz")
        (folder / f"{name}.md").write_text(page(study.TITLE, store.about, study.tables(store)))
        if hasattr(study, "draw"):
            study.draw(store, folder)
    for name in NAMES:
        benchmark = importlib.import_module(f"experiments.benchmark.{name}")
        text = _sections(benchmark, RESULTS / "benchmark" / f"{name}.jsonl.gz")
        (folder / f"benchmark_{name}.md").write_text(text)
    (folder / "load.md").write_text(_sections(load, RESULTS / "serve" / "load.jsonl.gz"))
    results = read_json(RESULTS / "compare" / "mnist1d" / "results.json", "methods")
    compare.plot(results, folder / "comparison.png")


def _sections(program: ModuleType, file: Path) -> str:
    """Return a section of each stored run of a program."""
    return "\n".join(page(program.TITLE, run, program.tables(run)) for run in runs(file))
