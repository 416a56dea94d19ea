"""Tuning, tests and comparisons of a sweep, with runs whose outcome is a formula."""

import dataclasses

import numpy as np
import pytest

from experiments.lab.statistics import interval, paired
from experiments.lab.store import Store
from experiments.lab.sweep import Question, Sweep

_GRID = (1.0, 2.0, 4.0)
_QUESTION = Question("", ("net",), ("near", "far"), tuned=range(2), seeds=range(5, 8))
# The rate of the least error.
_BEST = {"near": 2.0, "far": 100.0}


def _error(method, run):
    return abs(np.log(run.learning_rate / _BEST[method])) + 0.01 * run.seed**2


def _sweep(widen=False):
    """Return a sweep in which lower errors are better, and the list of runs that it trains."""
    trained = []

    def train(problem, method, stage, runs):
        for run in runs:
            trained.append((method, stage, *run))
            yield [run._asdict() | {"stage": stage, "error": _error(method, run)}]

    outcome = lambda row: np.array([row["error"], 2 * row["error"]])  # noqa: E731
    sweep = Sweep(Store(None), lambda method: _GRID, lambda row: -row["error"], outcome, widen)
    return sweep, train, trained


def test_seeds_choose_the_rate_and_others_test_it_once():
    sweep, train, trained = _sweep()
    sweep.answer(_QUESTION, train)
    tuning = [("near", "tune", seed, rate) for rate in _GRID for seed in (0, 1)]
    assert trained[:9] == [*tuning, *(("near", "test", seed, 2.0) for seed in (5, 6, 7))]
    assert len(trained) == 18
    sweep.answer(_QUESTION, train)
    assert len(trained) == 18
    sweep.answer(_QUESTION._replace(seeds=range(5, 9)), train)
    assert trained[18:] == [("near", "test", 8, 2.0), ("far", "test", 8, 4.0)]
    rows = sweep.answers(_QUESTION, "net", "near")
    assert [(row["stage"], row["seed"]) for row in rows][-3:] == [("test", s) for s in (5, 6, 7)]
    assert len(rows) == 9


def test_results_are_compared_in_pairs_of_common_seeds():
    sweep, train, _ = _sweep()
    sweep.answer(_QUESTION, train)
    near = sweep.result("net", "near", range(2), range(5, 8))
    far = sweep.result("net", "far", range(2), range(6, 20))
    assert (near.rate, near.is_edge, far.rate, far.is_edge) == (2.0, False, 4.0, True)
    assert (near.shown_rate, far.shown_rate) == ("2", "4*")
    assert near.intervals == [interval(np.array(list(near.tests.values()))[:, k]) for k in (0, 1)]
    found = sweep.results(("net", "none"), ("near", "far", "new"), range(2), range(5, 8))
    assert {name: list(each) for name, each in found.items()} == {"net": ["near", "far"]}
    assert found["net"]["near"].rows == near.rows
    errors = [
        np.array([1.5 * row["error"] for row in result.rows if row["seed"] in (6, 7)])
        for result in (far, near)
    ]
    np.testing.assert_allclose(far.over(near), paired(*errors), atol=1e-12)
    assert far.over(near).sign == 1
    np.testing.assert_allclose(near.means, np.mean(list(near.tests.values()), axis=0))
    assert sweep.result("net", "near", range(3), range(5, 8)) is None
    assert sweep.result("net", "near", range(2), range(50, 60)) is None


@pytest.mark.parametrize("method", ["near", "far"])
def test_a_grid_is_widened_beyond_the_end_that_is_best(method):
    sweep, train, _ = _sweep(widen=True)
    sweep.answer(_QUESTION._replace(methods=(method,)), train)
    tried = list(sweep.mean_scores("net", method, range(2)))
    assert tried == [*_GRID, *([8.0, 16.0, 32.0] if method == "far" else [])]
    assert sweep.best_rate("net", method, range(2)) == {"near": 2.0, "far": 32.0}[method]


def test_a_single_rate_needs_no_tuning():
    sweep, train, trained = _sweep()
    alone = dataclasses.replace(sweep, rates=lambda method: (3.0,))
    alone.answer(_QUESTION._replace(methods=("near",), tuned=range(0)), train)
    assert trained == [("near", "test", seed, 3.0) for seed in (5, 6, 7)]
    with pytest.raises(ValueError, match="`tuned` must choose from 3 rates of near"):
        sweep.answer(_QUESTION._replace(tuned=range(0)), train)
    widened = dataclasses.replace(alone, widen=True)
    widened.answer(_QUESTION._replace(tuned=range(2)), train)
    assert list(widened.mean_scores("net", "far", range(2))) == [3.0]


@pytest.mark.parametrize("widen", [False, True])
@pytest.mark.parametrize("diverged", [(1.0,), (2.0, 4.0), _GRID])
def test_a_rate_at_which_a_run_diverged_is_not_chosen(diverged, widen):
    sweep, _, _ = _sweep(widen)

    def train(problem, method, stage, runs):
        for run in runs:
            nan = run.learning_rate in diverged and run.seed == 1
            error = float("nan") if nan else _error(method, run)
            yield [run._asdict() | {"stage": stage, "error": error}]

    if diverged == _GRID:
        with pytest.raises(ValueError, match="`rates` must have one at which no run diverges"):
            sweep.answer(_QUESTION, train)
        return
    sweep.answer(_QUESTION._replace(methods=("near",)), train)
    assert sweep.best_rate("net", "near", range(2)) == {1.0: 2.0, 2.0: 1.0}[diverged[0]]
