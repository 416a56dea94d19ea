"""The study: its controls, its runs and its report."""

import copy
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import osgd_jax
from experiments.methods import Method
from experiments.nets import make_net
from experiments.study import candidates, plan, report, smoke, tables, times, why
from experiments.study.candidates import CANDIDATES, Candidate
from experiments.study.problems import PROBLEMS, SCREEN
from experiments.study.runs import TESTS, TUNING_SEEDS, Runs, best_rate, read, to_tune
from experiments.study.statistics import Result, best_tuned, interval, paired, result
from experiments.study.training import Run, Trainer
from experiments.training import compile_runs

_STORED = Path(__file__).parents[2] / "experiments" / "results" / "study"
_SMALL = dataclasses.replace(SCREEN, name="small", widths=(8, 8), train_size=200, epochs=2)


@pytest.fixture(scope="module")
def dataset():
    return _SMALL.load(None, None)


def _rows(rng, conflict=True):
    rows = rng.normal(size=(3, 20))
    return jnp.array(rows if conflict else np.abs(rows), jnp.float32)


def _norm(tree):
    return float(optax.tree.norm(tree))


def test_control_has_one_direction_and_the_other_length():
    grads = _rows(np.random.default_rng(0))
    params = jnp.zeros(20)
    osgd, total = (
        osgd_jax.orthogonalize(scope="all"),
        osgd_jax.aggregate(osgd_jax.weightings.sum(), "all"),
    )
    control = candidates.with_length_of(total, osgd)
    taken, _ = control.update(grads, control.init(params), params)
    length, _ = osgd.update(grads, osgd.init(params), params)
    np.testing.assert_allclose(_norm(taken), _norm(length), rtol=1e-5)
    np.testing.assert_allclose(taken / _norm(taken), grads.sum(0) / _norm(grads.sum(0)), atol=1e-6)


def test_whole_projections_are_those_of_osgd_and_none_is_the_sum():
    grads = _rows(np.random.default_rng(1))
    gramian = osgd_jax.gramian(grads)
    expected, _ = osgd_jax.weightings.orthogonal().weigh(gramian, ())
    whole, _ = candidates.partial_orthogonal(1.0).weigh(gramian, ())
    none, _ = candidates.partial_orthogonal(0.0).weigh(gramian, ())
    np.testing.assert_allclose(whole, expected, rtol=1e-4)
    np.testing.assert_allclose(none, np.ones(3))


def test_conflicting_projections_only():
    only = candidates.partial_orthogonal(conflicts_only=True)
    aligned = osgd_jax.gramian(_rows(np.random.default_rng(2), conflict=False))
    np.testing.assert_allclose(only.weigh(aligned, ())[0], np.ones(3))
    opposed = jnp.array([[1.0, -0.5], [-0.5, 1.0]])
    np.testing.assert_allclose(only.weigh(opposed, ())[0], [1.5, 1.0], rtol=1e-6)


def test_momentum_of_each_task():
    tx = candidates.trace_tasks(3, 0.9)
    grads = _rows(np.random.default_rng(3))
    state = tx.init(jnp.zeros(20))
    _, state = tx.update(grads, state)
    traced, _ = tx.update(grads, state)
    np.testing.assert_allclose(traced, 1.9 * grads, rtol=1e-6)


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidate_takes_a_finite_step(name):
    method = CANDIDATES[name].make(SCREEN)
    params = {"shared": jnp.ones((4, 3)), "early": jnp.ones(3), "late": jnp.ones(3)}

    def losses_of(params):
        hidden = jnp.tanh(jnp.arange(8.0).reshape(2, 4) @ params["shared"] / 8)
        return tuple(
            jnp.mean((hidden @ params[n] - k) ** 2) + 0.1
            for k, n in enumerate(("early", "late", "late"))
        )

    tx = method.optimizer(0.01)

    @jax.jit
    def step(params):
        losses, grads = osgd_jax.value_and_task_grads(losses_of)(params)
        direction = osgd_jax.combine(grads, jnp.ones(3))
        if method.balance is not None:
            state = method.balance.init(params)
            direction, _ = method.balance.update(grads, state, params, losses=losses)
        return tx.update(direction, tx.init(params), params)[0]

    assert 0 < _norm(step(params)) < np.inf


@pytest.mark.parametrize("name", ["sgd", "osgd-shared"])
def test_group_trains_as_single_runs_do(name, dataset):
    """The second implementation is that of `compare`: unvectorized, step by step."""
    method = CANDIDATES[name].make(_SMALL)
    make = functools.partial(make_net, "width-nested", dataset, num_outputs=3, widths=(8, 8))
    single = compile_runs(lambda rngs: make(rngs=rngs), dataset, method, epochs=2, batch_size=100)
    runs = [Run(0, 0.1), Run(1, 0.2)]
    trained = Trainer(_SMALL, dataset, method, group=2).train(runs, test=True)
    for run, kept in zip(runs, trained, strict=True):
        expected = single.train(run.seed, run.learning_rate)
        for split in ("train", "validation", "test"):
            found = single.accuracy(expected, getattr(dataset, split))
            np.testing.assert_allclose(kept[f"{split}_accuracy"], found, atol=0.011)


def test_runs_are_kept_and_not_done_again(tmp_path, dataset):
    runs = Runs(tmp_path, _SMALL, lambda: dataset, "sgd", CANDIDATES["sgd"])
    rate = runs.tune()
    runs.finish("test", rate, range(100, 103))

    def no_data():
        raise AssertionError("a run was done again")

    resumed = Runs(tmp_path, _SMALL, no_data, "sgd", CANDIDATES["sgd"])
    assert resumed.tune() == rate
    resumed.finish("test", rate, range(100, 103))
    assert [r["seed"] for r in resumed.kept if r["stage"] == "test"] == [100, 101, 102]
    assert all("test_accuracy" not in r for r in resumed.kept if r["stage"] == "tune")


def test_conflict_of_each_stage_is_looked_at_and_shown(tmp_path, dataset):
    trainer = Trainer(_SMALL, dataset, CANDIDATES["osgd-all"].make(_SMALL), group=1)
    state, _ = trainer._initial([Run(0, 0.1)])
    batches = (trainer._gather(np.arange(100)[None, None] + start) for start in (0, 100))
    looks = np.concatenate([trainer._look(state, each)["stage_cosines"] for each in batches])
    # No earlier loss reaches what a later output adds.
    reached = np.array(
        [[[i >= k and j >= k for j in range(3)] for i in range(3)] for k in range(3)]
    )
    assert (looks[:, ~reached] == 0).all()
    assert (np.abs(looks[:, reached]) > 1e-4).all()
    np.testing.assert_allclose(looks[:, 0].diagonal(axis1=1, axis2=2), 1, rtol=1e-3)
    kept = [{"stage_cosines": look.tolist()} for look in looks]
    _store(tmp_path, SCREEN, "sgd", [{"stage": "conflict", "looks": kept}])
    first, later = looks[:, 1, 1, 2]
    assert f" | {first:+.2f} → {later:+.2f} | 1 |" in why._conflict(tmp_path)


def test_times_are_those_of_sgd_in_the_same_round_and_kept(tmp_path, dataset):
    path = tmp_path / "times.json"
    asked = []

    def load(problem):
        asked.append(problem.name)
        return dataset

    tiny = dataclasses.replace(_SMALL, widths=(4,), outputs=2)
    for _ in range(2):
        times.complete(path, [tiny], load, advance=lambda line: None)
    assert asked == ["small"]
    found = times.read(path)["small"]
    assert found["sgd"]["median"] == 1
    assert all(found[name]["quarter"] > 0 for name in candidates.COMPARED)


def test_grid_goes_on_beyond_its_end(tmp_path, dataset):
    def make(problem):
        return Method("sgd", functools.partial(optax.sgd))

    rates = (1e-6, 2e-6, 4e-6, 8e-6, 16e-6)
    runs = Runs(tmp_path, _SMALL, lambda: dataset, "slow", Candidate(make, "slow", rates))
    runs.tune()
    tried = sorted({run["learning_rate"] for run in runs.kept})
    best = best_rate([run for run in runs.kept if run["learning_rate"] in rates])
    assert (len(tried) == 10) == (best in (rates[0], rates[-1]))


def test_paired_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = ({seed: rng.normal(size=3) for seed in range(8)} for _ in range(2))
    first, second = (Result("", 0.1, False, tests, []) for tests in (a, b))
    means = [np.array([tests[s].mean() for s in range(8)]) for tests in (a, b)]
    expected = stats.ttest_rel(*means).confidence_interval(0.95)
    found = paired(first, second)
    np.testing.assert_allclose(found.mean - found.half_width, expected.low)
    np.testing.assert_allclose(found.mean + found.half_width, expected.high)


def test_stored_study_is_what_its_runs_say(tmp_path):
    shutil.copytree(_STORED, tmp_path / "study")
    written = report.write(tmp_path / "study")
    assert written.read_text() == (_STORED.parent / "STUDY.md").read_text()


def _not_json(constant):
    pytest.fail(f"{constant} is not JSON")


def test_stored_runs_are_strict_json_of_known_problems():
    for path in _STORED.glob("*/*.jsonl"):
        assert path.parent.name in PROBLEMS
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=_not_json)


def test_test_data_is_looked_at_with_the_chosen_rates_only():
    for path in _STORED.glob("*/*.jsonl"):
        runs = read(path)
        tested = {run["learning_rate"] for run in runs if run["stage"] in TESTS}
        stages = {run["stage"] for run in runs} & {"tune", "rates"}
        assert tested <= {best_rate(runs, stage) for stage in stages}


def _run(stage, seed, rate, accuracy):
    split = "test" if stage in TESTS else "validation"
    return {
        "stage": stage,
        "seed": seed,
        "learning_rate": rate,
        f"{split}_accuracy": [accuracy] * 3,
    }


def _store(folder, problem, name, runs):
    path = folder / problem.name / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))


_BELOW = tuple(rate / 32 for rate in candidates.GRID)


def _tuned_and_tested(best, tested, stage):
    """Runs at the whole grid, and below it where it must go on; tests at the best of its rates."""
    rates = candidates.GRID if best in candidates.GRID[1:-1] else (*candidates.GRID, *_BELOW)
    tuning = [
        _run(stage, seed, rate, 0.9 if rate == best else 0.5)
        for rate in rates
        for seed in TUNING_SEEDS[stage]
    ]
    return tuning + [_run("test", seed, best, tested + seed / 1000) for seed in range(3)]


@pytest.mark.parametrize("stage", list(TUNING_SEEDS))
def test_tuning_is_complete_with_every_seed_and_the_rates_beyond_the_best_end(stage):
    grid, seeds = candidates.GRID, TUNING_SEEDS[stage]
    inside = _tuned_and_tested(0.4, 0.6, stage)
    assert to_tune(inside, stage, grid) == []
    assert to_tune(inside[1:], stage, grid) == [(seeds[0], grid[0])]
    below = _tuned_and_tested(0.1, 0.6, stage)
    assert to_tune(below, stage, grid) == []
    on_grid = [run for run in below if run["learning_rate"] in grid]
    assert to_tune(on_grid, stage, grid) == [(seed, rate) for rate in _BELOW for seed in seeds]


def test_result_is_of_the_tests_at_the_rate_that_the_stage_chose(tmp_path):
    end = min(_BELOW)
    runs = _tuned_and_tested(end, 0.6, "tune") + _tuned_and_tested(0.4, 0.7, "rates")
    _store(tmp_path, SCREEN, "sgd", runs)
    for stage, rate, mean in (("tune", end, 60.1), ("rates", 0.4, 70.1)):
        found = result(tmp_path, SCREEN, "sgd", stage)
        assert (found.rate, found.is_edge) == (rate, rate == end)
        np.testing.assert_allclose(found.means, [mean] * 3)
    fresh = [_run("confirm", seed, 0.4, 0.8) for seed in range(3)]
    _store(tmp_path, SCREEN, "sgd", runs + fresh)
    found = result(tmp_path, SCREEN, "sgd", "rates", "confirm")
    np.testing.assert_allclose(found.means, [80] * 3)


def test_comparison_takes_all_rates_from_one_stage(tmp_path):
    both = _tuned_and_tested(0.8, 0.6, "tune") + _tuned_and_tested(0.4, 0.7, "rates")
    _store(tmp_path, SCREEN, "sgd", both)
    _store(tmp_path, SCREEN, "osgd-all", both)
    _store(tmp_path, SCREEN, "osgd-reach", _tuned_and_tested(0.2, 0.65, "tune"))
    rates = [found.rate for found in best_tuned(tmp_path, SCREEN, "osgd-all", "sgd")]
    assert rates == [0.4, 0.4]
    assert [f.rate for f in best_tuned(tmp_path, SCREEN, "osgd-reach", "sgd")] == [0.2, 0.8]
    assert best_tuned(tmp_path, SCREEN, "pcgrad", "sgd") == []
    lacking = ("rates", 1.6, TUNING_SEEDS["rates"][-1])
    unfinished = [
        run for run in both if (run["stage"], run["learning_rate"], run["seed"]) != lacking
    ]
    _store(tmp_path, SCREEN, "sgd", unfinished)
    assert [f.rate for f in best_tuned(tmp_path, SCREEN, "osgd-all", "sgd")] == [0.8, 0.8]


def test_rates_are_compared_with_those_of_the_shared_scope(tmp_path):
    _store(tmp_path, SCREEN, "sgd", _tuned_and_tested(0.4, 0.6, "rates"))
    _store(tmp_path, SCREEN, "osgd-shared", _tuned_and_tested(0.2, 0.7, "rates"))
    text = report._rates(tmp_path)
    row = "| mnist1d-width | sgd | 0.4 | 50.0 | 50.0 | 90.0 | 50.0 | 50.0 | +0.00 ± 0.00 | -10.00"
    assert row in text
    assert "mnist1d-width osgd-all" in text.split("Missing: ")[1]


def test_fresh_seeds_are_pooled_over_seeds_and_over_problems(tmp_path):
    rng = np.random.default_rng(0)
    gains = {}
    for problem in ("mnist1d-width", "mnist1d-depth"):
        gains[problem] = rng.normal(1, 0.3, len(plan.FRESH_SEEDS))
        for name in candidates.CONFIRMED:
            extra = gains[problem] / 100 if name == "osgd-all" else np.zeros(40)
            fresh = [
                _run("confirm", seed, 0.4, 0.5 + more)
                for seed, more in zip(plan.FRESH_SEEDS, extra, strict=True)
            ]
            _store(tmp_path, PROBLEMS[problem], name, _tuned_and_tested(0.4, 0, "rates") + fresh)
    rows = [line.split(" | ") for line in report._confirmed(tmp_path).splitlines() if "*" in line]
    both = np.array(list(gains.values()))
    for row, values in zip(rows, (both.mean(0), both.mean(1)), strict=True):
        ends = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        mean, half_width = map(float, row[6].split(" ± "))
        np.testing.assert_allclose([mean - half_width, mean + half_width], ends, atol=0.011)


def test_gains_are_paired_by_seed_and_their_mean_is_over_problems(tmp_path):
    among = [PROBLEMS["mnist1d-width"], PROBLEMS["mnist1d-depth"]]
    for problem, gain in zip(among, (0.01, 0.03), strict=True):
        _store(tmp_path, problem, "sgd", _tuned_and_tested(0.4, 0.6, "tune"))
        _store(tmp_path, problem, "osgd-all", _tuned_and_tested(0.4, 0.6 + gain, "tune"))
    for k in range(3):
        _store(tmp_path, among[0], f"alone-{k + 1}", _tuned_and_tested(0.4, 0.65, "tune"))
    text = tables.gains(tmp_path, (*among, SCREEN), ("sgd", "alone", "osgd-all", "pcgrad"))
    ends = interval(np.array([1.0, 3.0, 1.0]))
    assert "| mnist1d-width | 60.1 | +5.00 | +1.00 ± 0.00 |  | 3 |" in text
    assert "| mnist1d-depth | 60.1 |  | +3.00 ± 0.00 |  | 3 |" in text
    assert f"| *mean, interval over problems* |  | +5.00 ± 0.00 | {ends} |  |  |" in text
    missing = "mnist1d-width pcgrad, mnist1d-depth alone, mnist1d-depth pcgrad"
    assert f"Missing: {missing}, mnist1d-width pcgrad." in text
    nothing = tables.gains(tmp_path, among, ("sgd", "osgd-all"), "rates", "confirm")
    assert "Missing: mnist1d-width sgd, mnist1d-depth sgd." in nothing


def test_branched_nets_are_compared_at_equal_work(tmp_path):
    branched = PROBLEMS["mnist1d-branched"]
    runs = _tuned_and_tested(0.4, 0.6, "tune")
    for run in runs[-3:]:
        run["test_accuracy"] = [0.6, 0.8, 0.9]
    _store(tmp_path, branched, "sgd", runs)
    work = np.array([output.multiply_adds for output in branched.costs()])
    between = np.sqrt(work[0] * work[1])
    found = why._branched_at(tmp_path, SCREEN, "sgd", np.array([work[0] / 2, between, work[1]]))
    np.testing.assert_allclose(found, [-np.inf, 70, 80])


def test_warm_up_takes_a_share_of_the_steps_of_sgd():
    # In batches of 100, 2 epochs of 200 examples are 4 steps, of which a tenth is less than one; 20
    # epochs are 40 steps, of which the first 4 warm up.
    long = dataclasses.replace(_SMALL, epochs=20)
    params = jnp.ones(3)
    sgd = CANDIDATES["sgd"].make(_SMALL).optimizer(0.1)
    plain, _ = sgd.update(params, sgd.init(params), params)
    for problem, share in ((_SMALL, 1), (long, 1 / 4)):
        tx = CANDIDATES["sgd-warmup"].make(problem).optimizer(0.1)
        update, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(update, share * plain, rtol=1e-6)


def test_longer_training_has_half_as_many_epochs_again(tmp_path):
    study = plan.Study(tmp_path)
    assert study._runs(SCREEN, "sgd-longer").problem.epochs == 1.5 * SCREEN.epochs
    assert study._runs(SCREEN, "sgd").problem.epochs == SCREEN.epochs


def test_shrunk_images_are_means_of_squares():
    problem = dataclasses.replace(PROBLEMS["fashion-depth"], shrink=4)
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    shrunk = problem._shrunk(images)
    assert shrunk.shape == (2, *problem.input_shape) == (2, 7, 7, 1)
    np.testing.assert_allclose(shrunk[1, 2, 6], images[1, 8:12, 24:28].mean((0, 1)), rtol=1e-5)
    np.testing.assert_array_equal(PROBLEMS["fashion-width-short"]._shrunk(images), images)


def test_study_of_nothing_says_that_all_is_missing(tmp_path):
    text = report.write(tmp_path).read_text()
    assert "Missing: sgd, " in text
    assert "Conclusions: missing." in text


def test_corner_of_the_study_is_reproduced():
    before = smoke.stored(_STORED, "osgd-all")
    assert smoke.differences(before, smoke.again(before, "osgd-all")) == []


def test_smoke_finds_what_differs():
    before = smoke.stored(_STORED, "sgd")
    now = copy.deepcopy(before)
    assert smoke.differences(before, now) == []
    now[0]["looks"][0]["losses"][0] *= 1.1
    for run in now:
        run["validation_accuracy"] = [0.5, 0.5, 0.5]
    assert len(smoke.differences(before, now)) == 2
