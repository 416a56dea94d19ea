"""Tables and statistics of the laboratory."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from experiments.lab.report import Table, page, runs, store
from experiments.lab.statistics import interval, paired, paired_ratio, standard_error


def test_a_table_is_the_same_in_the_terminal_and_in_documents():
    table = Table("Errors", ["method", "error"])
    table.add("sgd", 0.5)
    assert table.markdown == "| method | error |\n| --- | --- |\n| sgd | 0.5 |\n"
    console = Console(width=60)
    with console.capture() as printed:
        console.print(table)
    for word in ("Errors", "method", "sgd", "0.5"):
        assert word in printed.get()
    where = {"date": "2026-01-01", "device": "cpu", "platform": "Linux", "cpus": 2}
    about = {"command": "python -m x", "machine": where | {"versions": {"jax": "1"}}}
    assert f"jax 1.\n\n## Errors\n\n{table.markdown}" in page("Study", about, [table])
    with pytest.raises(ValueError, match="`cells` must be 2"):
        table.add("sgd")


@dataclasses.dataclass(frozen=True)
class _Config:
    output: Path
    rounds: int = 1


@pytest.mark.parametrize("name", ["runs.jsonl", "runs.jsonl.gz"])
def test_a_run_replaces_only_that_of_the_same_settings(tmp_path, name):
    file = tmp_path / name
    assert runs(file) == []
    for rounds, row in ((1, "a"), (2, "b"), (1, "c")):
        store("experiments.benchmark steps", _Config(file, rounds), {"rows": [row]})
    stored = runs(file)
    assert [run["rows"] for run in stored] == [["c"], ["b"]]
    assert [run["config"] for run in stored] == [{"rounds": 1}, {"rounds": 2}]
    assert stored[0]["command"].startswith("python -m experiments.benchmark steps")
    assert file.read_bytes()[:2] == (b"\x1f\x8b" if name.endswith("gz") else b'{"')


def test_a_file_of_something_else_is_refused(tmp_path):
    for content, words in (
        ('{"rows": []}\n', "must be a file of runs"),
        ("x\n", "damaged in line 1"),
    ):
        (tmp_path / "other.jsonl").write_text(content)
        with pytest.raises(ValueError, match=words):
            runs(tmp_path / "other.jsonl")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"{}\n")[:-3])
    with pytest.raises(ValueError, match="is damaged"):
        runs(tmp_path / "cut.gz")


def test_paired_differences_are_those_of_the_paired_t_test():
    first, second = np.random.default_rng(0).uniform(1, 2, (2, 12))
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    found = paired(first, second)
    np.testing.assert_allclose(
        [found.mean - found.half_width, found.mean + found.half_width], [low, high]
    )
    assert found.sign == int(low > 0) - int(high < 0)
    assert paired(first + 5, second).sign == 1
    assert paired(first, second + 5).sign == -1
    assert f"{found:+.3f}" == f"{found.mean:+.3f} ± {found.half_width:.3f}"
    ratio = paired_ratio(2 * second, second)
    assert ratio.as_ratio() == "2 (2 to 2)"
    with pytest.raises(ValueError, match="must be as many, got 12 and 1"):
        paired(first, second[:1])


def test_a_single_value_has_no_interval():
    assert interval([3.0]) == (3.0, float("inf"))
    assert np.isnan(standard_error(np.ones((1, 3)))).all()
