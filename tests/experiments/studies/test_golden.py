"""Every table and figure of the stored results is the one that was published, to the digit.

`golden.json` holds a digest of each. A change that is meant to alter a table renews its digest.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import compare, pages
from experiments.app.files import read_json
from experiments.benchmark.__main__ import NAMES
from experiments.lab.store import Store
from experiments.studies.anytime import page
from experiments.studies.anytime.results import sweep
from tests.weightings.table import table as weightings_table

_GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the folder of all pages, and digests of the data of each figure by its name."""
    folder, figures = tmp_path_factory.mktemp("pages"), {}

    def record(figure, path, **options):
        figures[Path(path).stem] = [_digest_of_lines(axes) for axes in figure.axes]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", record)
        pages.write(folder)
    return folder, figures


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _digest_of_lines(axes):
    digest = hashlib.sha256()
    for line in axes.lines:
        label = line.get_label()
        digest.update(b"_" if label.startswith("_") else label.encode())
        for values in (line.get_xdata(), line.get_ydata()):
            digest.update(np.round(np.asarray(values, float), 6).tobytes())
    return digest.hexdigest()[:12]


def _tables(text):
    """Return the tables of a page, each as its lines."""
    blocks, block = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            blocks.append("\n".join(block))
            block = []
    return blocks


@pytest.mark.parametrize(
    "name",
    ["study", *pages.STUDIES, *(f"benchmark_{each}" for each in NAMES), "load"],
)
def test_tables_are_the_published_ones(written, name):
    tables = _tables((written[0] / f"{name}.md").read_text())
    assert len(tables) == len(_GOLDEN[name])
    changed = [t for t, digest in zip(tables, _GOLDEN[name], strict=True) if _digest(t) != digest]
    assert not changed, changed[0]


def test_figures_show_the_published_data(written):
    assert written[1] == _GOLDEN["figures"]


def test_sentences_of_the_study_have_the_published_figures():
    runs, asked = sweep(Store(pages.RESULTS / "anytime.jsonl.gz")), []
    text = Path(page.__file__).with_name("page.md").read_text()
    for place in page.PLACE.findall(text):
        name, *arguments = place.split()
        if name in ("difference", "tested", "scope"):
            asked.append(page.PLACES[name](runs, *arguments))
    assert _digest("\n".join(asked)) == _GOLDEN["sentences"]


def test_weightings_have_the_published_times():
    rows = [line.split(" | ") for line in weightings_table().splitlines() if "| `" in line]
    timed = [[row[0], *row[-3:]] for row in rows if row[-3].isdigit()]
    assert _digest("\n".join(" | ".join(row) for row in timed)) == _GOLDEN["weightings"]


def test_the_comparison_has_the_published_figures():
    results = read_json(pages.RESULTS / "compare" / "mnist1d" / "results.json")
    table, answers = compare.table(results), compare.deadline_table(results)
    lines = [table.columns, *table.rows, *answers.rows, compare.sentences(results)]
    assert _digest("\n".join(" | ".join(line) for line in lines)) == _GOLDEN["compare"]
