"""The study tunes every method alike and compares pairs; the benchmark times them in turn."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmark import command
from experiments.benchmark import pinn as benchmark
from experiments.pinn import published, study

_TINY = {"steps": 4, "width": 4, "layers": 1, "points": 10, "edge_points": 4}


def test_rows_are_kept_and_read_again(tmp_path):
    config = study.Config(
        problems=("advection",),
        methods=("sum",),
        rates=(1e-3, 1e-2),
        tuning_seeds=2,
        looks=2,
        output=tmp_path / "study.json",
        **_TINY,
    )
    reported = []
    (first,) = study.measure(config, reported.append)["rows"]
    # A row of another configuration is not taken for one of this.
    store = tmp_path / "study.jsonl"
    other = json.loads(store.read_text())
    other |= {"errors": [0.0], "config": other["config"] | {"steps": 2}}
    store.write_text(json.dumps(other) + "\n" + store.read_text())
    both = dataclasses.replace(config, methods=("sum", "osgd, pde last"))
    rows = study.measure(both, reported.append)["rows"]
    assert reported == ["advection, sum", "advection, osgd, pde last"]
    assert rows[0] == first
    for row in rows:
        assert np.shape(row["tuning"]) == (2, 2)
        best = np.log(row["tuning"]).mean(axis=1).argmin()
        assert row["learning_rate"] == config.rates[best]
        assert len(row["errors"]) == 4


def test_the_published_example_is_trained_once_and_shown_beside_its_figures(tmp_path):
    config = published.Config(
        seeds=2, steps=6, looks=2, width=4, points=10, output=tmp_path / "published.json"
    )
    reported = []
    results = published.measure(config, reported.append)
    assert len(reported) == 12
    assert published.measure(config, reported.append) == results
    assert len(reported) == 12
    (table,) = published.tables(results)
    uniform, theirs = _cells(table)[:3], _cells(table)[3:]
    assert [row[1:3] for row in uniform] == [["sum", "–"], ["config", "–"], ["m_config", "–"]]
    assert [row[1:3] for row in theirs] == [["sum", "31"], ["config", "6.4"], ["m_config", "1.9"]]
    assert uniform[0][-1] == theirs[0][-1] == "1.00 (1.00 to 1.00)"
    for sampling, shown in (("uniform", uniform), ("latin_hypercube", theirs)):
        kind = {"sampling": sampling, "method": "config"}
        errors = [row["errors"] for row in results["rows"] if kind.items() <= row.items()]
        assert float(shown[1][4]) == pytest.approx(np.sqrt(errors[0][-1] * errors[1][-1]), rel=1e-2)


def _cells(table):
    return list(map(list, zip(*[column.cells for column in table.columns], strict=True)))


def test_tables_hold_the_paired_ratio_of_errors():
    def row(problem, method, errors, pde=(1.0, 1.0)):
        found = {"tasks": ["bc", "pde"], "cosines": np.eye(2).tolist(), "opposed": [[0, 1], [1, 0]]}
        found |= {"alignment": -0.5, "norm_ratio": 12.0}
        return {
            "problem": problem,
            "method": method,
            "errors": errors,
            "losses": {"bc": [1.0, 2.0], "pde": pde},
            "learning_rate": 1e-3,
        } | found

    rows = [
        row("burgers", "sum", [0.1, 0.4]),
        row("burgers", "upgrad", [0.05, 0.2], (3.0, 3.0)),
        row("advection", "sum", [1.0, 1.0]),
        row("advection", "upgrad", [2.0, 2.0]),
        row("burgers", "sum, conditions × 100", [0.05, 0.2]),
        row("advection", "sum, conditions × 100", [0.5, 0.5], (0.0, 1.0)),
    ]
    overall, predicted, errors, pairs, losses, conflict = map(_cells, study.tables({"rows": rows}))
    seen = ["-0.50", "+0.00", "12 : 1"]
    assert predicted == [
        ["burgers", *seen, "`upgrad`, `sum, conditions × 100`", "none"],
        ["advection", *seen, "`sum, conditions × 100`", "`upgrad`"],
    ]
    assert [row[3] for row in errors] == ["0.2", "0.1", "1", "2", "0.1", "0.5"]
    assert [row[0] for row in pairs] == ["burgers", "advection"]
    assert [row[1:3] for row in pairs] == [["upgrad", "sum, conditions × 100"]] * 2
    assert [row[3] for row in pairs] == ["1 (1 to 1)", "4 (4 to 4)"]
    assert pairs[0][4:] == ["1 (1 to 1)", "", "3 (3 to 3)"]
    assert losses[1][2:] == ["1 (1 to 1)", "", "3 (3 to 3)"]
    assert losses[-1][2:] == ["1 (1 to 1)", "", "some are 0"]
    assert overall[1] == ["upgrad", "0.5 (0.5 to 0.5)", "2 (2 to 2)", "1.00"]
    assert conflict[0] == ["burgers", "bc and pde", "+0.00", "100%"]


def test_weights_and_orders_fit_the_losses_of_a_problem():
    config = study.Config()
    weighted = study.settings(config, "helmholtz", "sum, conditions × 10")
    assert weighted.weights == (10.0, 1.0)
    assert study.settings(config, "helmholtz", "osgd, pde first").order == "pde,bc"
    assert study.settings(config, "burgers", "osgd, pde last").order == "ic,bc,pde"
    held = study.settings(config, "helmholtz", "pcd, pde first, tau 0")
    assert (held.method, held.order, held.tau) == ("pcd", "pde,bc", 0.0)
    assert study.settings(config, "burgers", "m_config, steps × 2.5").steps == 5000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("sum", "adam")}, "methods={'adam'} are unknown; use some of sum"),
        ({"methods": ("upgrad", "sum")}, "must begin with sum"),
        ({"steps": 7, "looks": 2}, "steps=7 must be a multiple of looks=2"),
        ({"rates": (0.0,)}, "rates=.* must be one or more numbers, each above 0"),
    ],
)
def test_wrong_settings_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        study.Config(**changes)


def test_the_benchmark_times_every_way():
    config = benchmark.Config(problems=("advection",), methods=("osgd",), rounds=2, **_TINY)
    reported = []
    results = benchmark.measure(config, reported.append)
    assert [row["method"] for row in results["rows"]] == ["sum", "osgd", "jacrev, upgrad"]
    assert results["rows"][0]["time_over_sum"]["median"] == 1
    (table,) = benchmark.tables(results)
    assert list(table.columns[0].cells) == ["advection"] * 3


def test_the_page_says_what_latin_hypercubes_change():
    results = Path(study.__file__).parents[1] / "results" / "pinn"
    logs = [
        {
            (row["problem"], row["method"]): np.log(row["errors"]).mean()
            for row in json.loads((results / f"{name}.json").read_text())["rows"]
        }
        for name in ("study", "study_uniform")
    ]
    solved = [case for case in logs[0] if case[0] in ("burgers", "helmholtz", "klein_gordon")]
    ratios = np.exp([logs[0][case] - logs[1][case] for case in solved])
    words = (Path(study.__file__).parents[2] / "docs" / "pinn.md").read_text().split()
    said = f"errors are {ratios.min():.1f} to {ratios.max():.1f} times those with uniform points,"
    assert f"{said} in {sum(ratios < 1)} of {len(ratios)} cases less" in " ".join(words)


@pytest.mark.parametrize(
    ("name", "module"),
    [("study", study), ("study_uniform", study), ("published", published)],
)
def test_the_stored_pages_are_of_the_stored_figures(name, module):
    stored = Path(study.__file__).parents[1] / "results" / "pinn" / f"{name}.json"
    written = json.loads(stored.read_text())
    page = command.page(module.TITLE, written, module.tables(written))
    assert stored.with_suffix(".md").read_text() == page
