"""The study tunes every method alike and compares pairs; the benchmark times them in turn."""

import numpy as np
import pytest

from experiments.benchmark import pinn as benchmark
from experiments.lab.store import Store
from experiments.studies import equations, published

_TINY = {"steps": 4, "width": 4, "layers": 1, "points": 10, "edge_points": 4}


def test_rows_are_kept_and_read_again(tmp_path):
    sizes = {"rates": (1e-3, 1e-2), "tuning_seeds": 2, "looks": 2, **_TINY}
    where = {"problems": ("advection",), "output": tmp_path / "rows.jsonl.gz"}
    reported = []
    equations.work(equations.Config(methods=("sum",), **where, **sizes), reported.append)
    (first,) = equations.rows_of(Store(where["output"]))
    both = equations.Config(methods=("sum", "osgd, pde last"), **where, **sizes)
    shown = equations.work(both, reported.append)
    lines = [f"advection {m} {s}" for m in ("sum", "osgd, pde last") for s in ("tune", "test")]
    assert reported == lines
    assert shown[0].columns == ["method", "advection", "geometric mean"]
    store = Store(where["output"])
    rows = equations.rows_of(store)
    assert rows[0] == first
    for row in rows:
        tuning = [r for r in store.of("advection", row["method"]) if r["stage"] == "tune"]
        errors = {
            rate: [r["error"] for r in tuning if r["learning_rate"] == rate]
            for rate in sizes["rates"]
        }
        assert row["learning_rate"] == min(errors, key=lambda rate: np.log(errors[rate]).mean())
        assert len(row["errors"]) == 4
    other = equations.Config(methods=("sum",), **where, **sizes | {"steps": 2})
    with pytest.raises(ValueError, match="must hold rows of the settings"):
        equations.work(other, reported.append)


def test_the_published_example_is_trained_once_and_shown_beside_its_figures(tmp_path):
    config = published.Config(
        seeds=2, steps=6, looks=2, width=4, points=10, output=tmp_path / "rows.jsonl.gz"
    )
    reported = []
    (table,) = published.work(config, reported.append)
    assert len(reported) == 6
    assert published.work(config, reported.append) == [table]
    assert len(reported) == 6
    store = Store(config.output)
    uniform, theirs = table.rows[:3], table.rows[3:]
    assert [row[1:3] for row in uniform] == [("sum", "–"), ("config", "–"), ("m_config", "–")]
    assert [row[1:3] for row in theirs] == [("sum", "31"), ("config", "6.4"), ("m_config", "1.9")]
    assert uniform[0][-1] == theirs[0][-1] == "1.00 (1.00 to 1.00)"
    for sampling, shown in (("uniform", uniform), ("latin_hypercube", theirs)):
        errors = [row["errors"] for row in store.of(sampling, "config")]
        assert float(shown[1][4]) == pytest.approx(np.sqrt(errors[0][-1] * errors[1][-1]), rel=1e-2)


def _cells(table):
    return [list(map(str, row)) for row in table.rows]


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
    overall, predicted, errors, pairs, losses, conflict = map(_cells, equations.tables_of(rows))
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
    config = equations.Config()
    weighted = equations.settings(config, "helmholtz", "sum, conditions × 10")
    assert weighted.weights == (10.0, 1.0)
    assert equations.settings(config, "helmholtz", "osgd, pde first").order == "pde,bc"
    assert equations.settings(config, "burgers", "osgd, pde last").order == "ic,bc,pde"
    held = equations.settings(config, "helmholtz", "pcd, pde first, tau 0")
    assert (held.method, held.order, held.tau) == ("pcd", "pde,bc", 0.0)
    assert equations.settings(config, "burgers", "m_config, steps × 2.5").steps == 5000


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
        equations.Config(**changes)


def test_the_benchmark_times_every_way():
    config = benchmark.Config(problems=("advection",), methods=("osgd",), rounds=2, **_TINY)
    reported = []
    results = benchmark.measure(config, reported.append)
    assert [row["method"] for row in results["rows"]] == ["sum", "osgd", "jacrev, upgrad"]
    assert results["rows"][0]["time_over_sum"]["median"] == 1
    (table,) = benchmark.tables(results)
    assert [row[0] for row in table.rows] == ["advection"] * 3
