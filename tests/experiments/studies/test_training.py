"""The study's runs: how they are trained, looked at, timed and kept."""

import dataclasses
import functools

import numpy as np
import optax
import pytest

from experiments.app.methods import Method
from experiments.lab.store import Store
from experiments.lab.sweep import Question, Run
from experiments.studies.anytime import times, why
from experiments.studies.anytime.candidates import CANDIDATES, METHODS, Candidate
from experiments.studies.anytime.problems import PROBLEMS, SCREEN
from experiments.studies.anytime.questions import FIRST, TWO
from experiments.studies.anytime.results import sweep
from experiments.studies.anytime.training import AnytimeTraining, Observer, lengthened
from tests.experiments.studies.storing import study

_SMALL = dataclasses.replace(SCREEN, name="small", widths=(8, 8), train_size=200, epochs=2)


@pytest.fixture(scope="module")
def dataset():
    return _SMALL.load(None, None)


def _training(load):
    return AnytimeTraining(load, {"small": _SMALL})


def test_runs_are_kept_and_not_done_again(tmp_path, dataset):
    question = Question("", ("small",), ("sgd",), TWO, FIRST[:3])
    runs = sweep(Store(tmp_path / "rows.jsonl.gz"))
    runs.answer(question, _training(lambda problem: dataset))
    kept = runs.store.of("small", "sgd")
    rate = runs.best_rate("small", "sgd", TWO)
    tests = [(run["learning_rate"], run["seed"]) for run in kept if run["stage"] == "test"]
    assert tests == [(rate, 100), (rate, 101), (rate, 102)]
    for run in kept:
        assert ("test_accuracy" in run) == ("looks" in run) == (run["stage"] == "test")

    def no_data(problem):
        raise AssertionError("a run was done again")

    again = sweep(Store(runs.store.path))
    again.answer(question, _training(no_data))
    with pytest.raises(AssertionError):
        again.answer(question._replace(seeds=FIRST[:4]), _training(no_data))


def test_grid_goes_on_beyond_its_end(dataset, monkeypatch):
    def make(problem):
        return Method("sgd", functools.partial(optax.sgd))

    rates = (1e-6, 2e-6, 4e-6, 8e-6, 16e-6)
    monkeypatch.setitem(METHODS, "slow", Candidate(make, "slow", rates))
    runs = sweep(Store(None))
    question = Question("", ("small",), ("slow",), TWO, range(0))
    runs.answer(question, _training(lambda problem: dataset))
    means = runs.mean_scores("small", "slow", TWO)
    best = max(rates, key=means.__getitem__)
    assert (len(means) == 10) == (best in (rates[0], rates[-1]))


def test_conflict_of_each_stage_is_looked_at_and_shown(dataset):
    trainer = _SMALL.trainer(dataset, CANDIDATES["osgd-all"].make(_SMALL))
    state, _ = trainer.start([Run(0, 0.1)])
    batches = (np.arange(100)[None, None] + start for start in (0, 100))
    observer = Observer(trainer)
    looks = np.concatenate([observer.look(state, each)["stage_cosines"] for each in batches])
    # No earlier loss reaches what a later output adds.
    reached = np.array(
        [[[i >= k and j >= k for j in range(3)] for i in range(3)] for k in range(3)]
    )
    assert (looks[:, ~reached] == 0).all()
    assert (np.abs(looks[:, reached]) > 1e-4).all()
    np.testing.assert_allclose(looks[:, 0].diagonal(axis1=1, axis2=2), 1, rtol=1e-3)
    kept = {"stage_cosines": looks.tolist()}
    run = {"stage": "look", "learning_rate": 0.1, "seed": 0, "looks": kept}
    stored = study((SCREEN, "sgd", [run]))
    first, later = looks[:, 1, 1, 2]
    assert f" | {first:+.2f} → {later:+.2f} | 1 |" in why.conflict(stored).markdown


def test_times_are_those_of_sgd_in_the_same_round_and_kept(dataset):
    store, asked = Store(None), []

    def load(problem):
        asked.append(problem.name)
        return dataset

    tiny = dataclasses.replace(_SMALL, widths=(4,), outputs=2)
    for _ in range(2):
        times.complete(store, [tiny], load, advance=lambda line: None)
    assert asked == ["small"]
    assert times.median(store, "small", "sgd") == 1
    assert all(store.of("small", name)[0]["quarter"] > 0 for name in times.TIMED)
    assert times.median(store, "small", "osgd-reach") is None


def test_longer_training_has_half_as_many_epochs_again():
    assert lengthened(SCREEN, CANDIDATES["sgd-longer"]).epochs == 1.5 * SCREEN.epochs
    assert lengthened(SCREEN, CANDIDATES["sgd"]) == SCREEN


def test_shrunk_images_are_means_of_squares():
    problem = dataclasses.replace(PROBLEMS["fashion-depth"], shrink=4)
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    shrunk = problem._shrunk(images)
    assert shrunk.shape == (2, *problem.input_shape) == (2, 7, 7, 1)
    np.testing.assert_allclose(shrunk[1, 2, 6], images[1, 8:12, 24:28].mean((0, 1)), rtol=1e-5)
    np.testing.assert_array_equal(PROBLEMS["fashion-width-short"]._shrunk(images), images)
