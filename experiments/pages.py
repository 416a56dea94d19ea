"""Pages and figures of all stored studies, made when the documents are built."""

from pathlib import Path

from experiments import compare
from experiments.app.files import read_json
from experiments.lab.report import page
from experiments.lab.store import Store
from experiments.studies import equations, published
from experiments.studies.anytime import page as anytime
from experiments.studies.anytime.results import sweep
from experiments.studies.language import tables as language

RESULTS = Path(__file__).parent / "results"


def write(folder: Path) -> None:
    """Write study.md, language.md, equations.md, published.md and the figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    anytime.write(sweep(Store(RESULTS / "anytime.jsonl.gz")), folder / "study.md")
    for name, study in (("language", language), ("equations", equations), ("published", published)):
        store = Store(RESULTS / f"{name}.jsonl.gz")
        (folder / f"{name}.md").write_text(page(study.TITLE, store.about, study.tables(store)))
    language.draw(Store(RESULTS / "language.jsonl.gz"), folder)
    results = read_json(RESULTS / "compare" / "mnist1d" / "results.json", "methods")
    compare.plot(results, folder / "comparison.png")
