"""The study's runs: how they are trained, looked at, timed and kept."""

import dataclasses
import functools

import numpy as np
import optax
import pytest

from experiments.app.methods import Method
from experiments.study import times, why
from experiments.study.candidates import CANDIDATES, Candidate
from experiments.study.looks import Observer
from experiments.study.problems import PROBLEMS, SCREEN
from experiments.study.questions import FIRST, TWO, Question
from experiments.study.runs import answer, lengthened
from experiments.study.selection import best_rate
from experiments.study.store import Store
from experiments.lab.sweep import Run
from tests.experiments.study.storing import store

_SMALL = dataclasses.replace(SCREEN, name="small", widths=(8, 8), train_size=200, epochs=2)


@pytest.fixture(scope="module")
def dataset():
    return _SMALL.load(None, None)


def test_runs_are_kept_and_not_done_again(tmp_path, dataset):
    question = Question("", (_SMALL,), ("sgd",), TWO, FIRST[:3])
    store = Store(tmp_path / "runs.jsonl")
    answer(question, store, lambda problem: dataset)
    kept = store.of("small", "sgd")
    rate = best_rate(kept, TWO)
    tests = [(run["learning_rate"], run["seed"]) for run in kept if run["stage"] == "test"]
    assert tests == [(rate, 100), (rate, 101), (rate, 102)]
    for run in kept:
        assert ("test_accuracy" in run) == ("looks" in run) == (run["stage"] == "test")

    def no_data(problem):
        raise AssertionError("a run was done again")

    answer(question, Store(store.path), no_data)
    with pytest.raises(AssertionError):
        answer(question._replace(seeds=FIRST[:4]), Store(store.path), no_data)


def test_grid_goes_on_beyond_its_end(tmp_path, dataset, monkeypatch):
    def make(problem):
        return Method("sgd", functools.partial(optax.sgd))

    rates = (1e-6, 2e-6, 4e-6, 8e-6, 16e-6)
    monkeypatch.setitem(CANDIDATES, "slow", Candidate(make, "slow", rates))
    store = Store(tmp_path / "runs.jsonl")
    answer(Question("", (_SMALL,), ("slow",), TWO, range(0)), store, lambda problem: dataset)
    kept = store.of("small", "slow")
    tried = sorted({run["learning_rate"] for run in kept})
    best = best_rate([run for run in kept if run["learning_rate"] in rates], TWO)
    assert (len(tried) == 10) == (best in (rates[0], rates[-1]))


def test_conflict_of_each_stage_is_looked_at_and_shown(tmp_path, dataset):
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
    stored = store(tmp_path, (SCREEN, "sgd", [run]))
    first, later = looks[:, 1, 1, 2]
    assert f" | {first:+.2f} → {later:+.2f} | 1 |" in why.conflict(stored)


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
    assert all(found[name]["quarter"] > 0 for name in times.TIMED)


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
