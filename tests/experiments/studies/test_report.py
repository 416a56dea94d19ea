"""The study's statistics and tables, of runs whose outcome is known."""

import numpy as np
import pytest
from scipy import stats

from experiments.lab.statistics import interval
from experiments.lab.sweep import Result, Run
from experiments.studies.anytime import candidates, page, tables, why
from experiments.studies.anytime.problems import PROBLEMS, SCREEN
from experiments.studies.anytime.questions import FIRST, FRESH, QUESTIONS, TEN, TWO
from experiments.studies.anytime.results import best_tuned
from tests.experiments.studies.storing import study

_BELOW = tuple(rate / 32 for rate in candidates.GRID)


def _run(stage, seed, rate, accuracy):
    split = "test" if stage == "test" else "validation"
    run = {"stage": stage, "learning_rate": rate, "seed": seed}
    return run | {f"{split}_accuracy": [accuracy] * 3}


def _tuned_and_tested(best, tested, seeds):
    """Runs at the whole grid, and below it where it must go on; tests at the best of its rates."""
    rates = candidates.GRID if best in candidates.GRID[1:-1] else (*candidates.GRID, *_BELOW)
    tuning = [
        _run("tune", seed, rate, 0.9 if rate == best else 0.5) for rate in rates for seed in seeds
    ]
    return tuning + [_run("test", seed, best, tested + seed % 100 / 1000) for seed in FIRST[:3]]


@pytest.mark.parametrize("seeds", [TWO, TEN])
def test_tuning_is_complete_with_every_seed_and_the_rates_beyond_the_best_end(seeds):
    def lacking(rows):
        return study((SCREEN, "sgd", rows)).to_tune(SCREEN.name, "sgd", seeds)

    grid = candidates.GRID
    inside = _tuned_and_tested(0.4, 0.6, seeds)
    assert lacking(inside) == []
    assert lacking(inside[1:]) == [Run(seeds[0], grid[0])]
    below = _tuned_and_tested(0.1, 0.6, seeds)
    assert lacking(below) == []
    on_grid = [run for run in below if run["learning_rate"] in grid]
    assert lacking(on_grid) == [Run(seed, rate) for rate in _BELOW for seed in seeds]


def test_result_is_of_the_tests_at_the_rate_that_the_seeds_chose():
    end = min(_BELOW)
    runs = _tuned_and_tested(end, 0.6, TWO) + _tuned_and_tested(0.4, 0.7, TEN)
    fresh = [_run("test", seed, 0.4, 0.8) for seed in FRESH[:3]]
    stored = study((SCREEN, "sgd", runs + fresh))
    for seeds, rate, mean in ((TWO, end, 60.1), (TEN, 0.4, 70.1)):
        found = stored.result(SCREEN.name, "sgd", seeds, FIRST)
        assert (found.rate, found.is_edge) == (rate, rate == end)
        np.testing.assert_allclose(found.means, [mean] * 3)
    np.testing.assert_allclose(stored.result(SCREEN.name, "sgd", TEN, FRESH).means, [80] * 3)
    assert stored.result(SCREEN.name, "sgd", TWO, FRESH) is None


def test_comparison_takes_all_rates_from_as_many_seeds():
    both = _tuned_and_tested(0.8, 0.6, TWO) + _tuned_and_tested(0.4, 0.7, TEN)
    few = _tuned_and_tested(0.2, 0.65, TWO)
    unfinished = [run for run in both if (run["learning_rate"], run["seed"]) != (1.6, TEN[-1])]
    stored = study(
        (SCREEN, "sgd", both),
        (SCREEN, "osgd-all", both),
        (SCREEN, "osgd-reach", few),
        (SCREEN, "sgd-clipped", unfinished),
    )
    rates = [found.rate for found in best_tuned(stored, SCREEN, "osgd-all", "sgd")]
    assert rates == [0.4, 0.4]
    assert [f.rate for f in best_tuned(stored, SCREEN, "osgd-reach", "sgd")] == [0.2, 0.8]
    assert best_tuned(stored, SCREEN, "pcgrad", "sgd") == []
    assert [f.rate for f in best_tuned(stored, SCREEN, "osgd-all", "sgd-clipped")] == [0.8, 0.8]


def test_paired_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = ({seed: rng.normal(size=3) for seed in range(8)} for _ in range(2))
    first, second = (Result("", 0.1, False, tests, []) for tests in (a, b))
    means = [np.array([tests[s].mean() for s in range(8)]) for tests in (a, b)]
    expected = stats.ttest_rel(*means).confidence_interval(0.95)
    found = first.over(second)
    np.testing.assert_allclose(found.mean - found.half_width, expected.low)
    np.testing.assert_allclose(found.mean + found.half_width, expected.high)


def test_rates_are_compared_with_those_of_the_shared_scope():
    stored = study(
        (SCREEN, "sgd", _tuned_and_tested(0.4, 0.6, TEN)),
        (SCREEN, "osgd-shared", _tuned_and_tested(0.2, 0.7, TEN)),
    )
    text = tables.rates(stored).markdown
    row = "| mnist1d-width | sgd | 0.4 | 50.0 | 50.0 | 90.0 | 50.0 | 50.0 | +0.00 ± 0.00 | -10.00"
    assert row in text


def test_fresh_seeds_are_pooled_over_seeds_and_over_problems():
    rng = np.random.default_rng(0)
    gains, runs = {}, []
    for problem in ("mnist1d-width", "mnist1d-depth"):
        gains[problem] = rng.normal(1, 0.3, len(FRESH))
        for name in QUESTIONS["confirm"].methods:
            extra = gains[problem] / 100 if name == "osgd-all" else np.zeros(40)
            fresh = [
                _run("test", seed, 0.4, 0.5 + more) for seed, more in zip(FRESH, extra, strict=True)
            ]
            runs.append((PROBLEMS[problem], name, _tuned_and_tested(0.4, 0, TEN) + fresh))
    stored = study(*runs)
    text = tables.confirmed(stored).markdown
    rows = [line.split(" | ") for line in text.splitlines() if "*" in line]
    both = np.array(list(gains.values()))
    for row, over, values in zip(
        rows, ("seeds", "nets"), (both.mean(0), both.mean(1)), strict=True
    ):
        ends = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        mean, half_width = map(float, row[6].split(" ± "))
        np.testing.assert_allclose([mean - half_width, mean + half_width], ends, atol=0.011)
        assert tables.difference(stored, "confirm", "osgd-all", "sgd", over) == row[6]
    one = tables.difference(stored, "confirm", "osgd-all", "sgd", "mnist1d-depth")
    assert one == str(interval(gains["mnist1d-depth"]))


def test_gains_are_paired_by_seed_and_their_mean_is_over_problems():
    among = [PROBLEMS["fashion-width"], PROBLEMS["fashion-depth"]]
    runs = [(among[0], f"alone-{k + 1}", _tuned_and_tested(0.4, 0.65, TWO)) for k in range(3)]
    for problem, gain in zip(among, (0.01, 0.03), strict=True):
        runs.append((problem, "sgd", _tuned_and_tested(0.4, 0.6, TWO)))
        runs.append((problem, "osgd-all", _tuned_and_tested(0.4, 0.6 + gain, TWO)))
    text = tables.gains(study(*runs), "images", "sgd").markdown
    assert "| fashion-width | 60.1 | +5.00 |  |  | +1.00 ± 0.00 |  | 3 |" in text
    assert "| fashion-depth | 60.1 |  |  |  | +3.00 ± 0.00 |  | 3 |" in text
    assert f"over problems* |  |  |  |  | {interval(np.array([1.0, 3.0]))} |  |  |" in text


def test_scopes_are_compared_with_the_freshest_seeds_of_each_net():
    on, other = PROBLEMS["mnist1d-width"], PROBLEMS["fashion-both"]
    few, many = (_tuned_and_tested(0.4, 0.6, seeds) for seeds in (TWO, TEN))
    fresh = [_run("test", seed, 0.4, 0.62) for seed in FRESH[:4]]
    stored = study(
        *((on, "osgd-shared", many + fresh), (on, "osgd-all", many + _better(fresh, 0.01))),
        *((other, "osgd-shared", few), (other, "osgd-all", _better(few, 0.03))),
    )
    text = tables.scopes(stored).markdown
    assert "| mnist1d-width | 10 | 4 fresh | +1.00 ± 0.00 |" in text
    assert "| fashion-both | 2 | 3 | +3.00 ± 0.00 |" in text
    mean = str(interval(np.array([1.0, 3.0])))
    assert f"| *mean over the 2 nets, interval over nets* |  |  | {mean} |" in text
    assert tables.scope(stored, "all") == mean
    assert tables.scope(stored, "images") == "+3.00 ± inf"


def _better(runs, gain):
    return [
        run | {"test_accuracy": [a + gain for a in run["test_accuracy"]]}
        if run["stage"] == "test"
        else run
        for run in runs
    ]


def test_branched_nets_are_compared_at_equal_work():
    branched = PROBLEMS["mnist1d-branched"]
    runs = _tuned_and_tested(0.4, 0.6, TWO)
    for run in runs[-3:]:
        run["test_accuracy"] = [0.6, 0.8, 0.9]
    stored = study((branched, "sgd", runs))
    work = np.array([output.multiply_adds for output in branched.costs()])
    between = np.sqrt(work[0] * work[1])
    found = why.branched_at(stored, SCREEN, "sgd", np.array([work[0] / 2, between, work[1]]))
    np.testing.assert_allclose(found, [-np.inf, 70, 80])


def test_study_of_nothing_says_that_all_is_missing(tmp_path):
    page.write(study(), tmp_path / "study.md")
    text = (tmp_path / "study.md").read_text()
    assert text.count(" 0, incomplete |") == len(QUESTIONS)
    assert "is\n  missing points above" in text


def test_text_and_tables_know_each_other(tmp_path):
    stored = study()
    with pytest.raises(ValueError, match=r"\{\{diary today\}\} is unknown; the text may ask for "):
        page.filled("{{diary today}}", stored, tmp_path)
    with pytest.raises(ValueError, match=r"Use .*confirmed, .* in the text, or delete"):
        page.filled("{{rates}}", stored, tmp_path)


def test_the_diagnosis_is_shown_beside_the_gains_and_ranked_with_them():
    runs = []
    names = ("mnist1d-width", "mnist1d-depth", "fashion-width")
    for name, cosine, gain in zip(names, (0.5, -0.2, 0.1), (0.01, 0.03, 0.02), strict=True):
        cosines = np.full((2, 3, 3), cosine) + (1 - cosine) * np.eye(3)
        sgd = [
            run | {"looks": {"task_cosines": cosines.tolist()}}
            for run in _tuned_and_tested(0.4, 0.6, TWO)
        ]
        runs.append((PROBLEMS[name], "sgd", sgd))
        runs += [
            (PROBLEMS[name], method, _tuned_and_tested(0.4, 0.6 + gain, TWO))
            for method in ("sgd-clipped", "osgd-all", "aligned_mtl")
        ]
    text = why.predicted(study(*runs)).markdown
    gains = " | ".join(["+3.00 ± 0.00"] * 3)
    assert f"| mnist1d-depth | {2 * (3 - 1.2) / 9 - 1:+.2f} | -0.20 | 100% | {gains} |" in text
    assert "3 nets* |  |  |  | -1.00 (p = 0.00)" in text
