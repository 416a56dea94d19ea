"""The study as it is stored: strict, chosen on validation data, and made again."""

import collections
import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.study import candidates, report, tables
from experiments.study.candidates import CANDIDATES
from experiments.study.problems import PROBLEMS, SCREEN
from experiments.study.questions import QUESTIONS, TEN, TWO
from experiments.study.selection import answers, at, best_rate, by_rate, lacking, to_tune
from experiments.study.store import Store
from tests.experiments.study import smoke

_STORED = Path(__file__).parents[3] / "experiments" / "results" / "study"
_RUNS = _STORED / report.RUNS


@pytest.fixture(scope="module")
def stored():
    return Store(_RUNS)


def _not_json(constant):
    pytest.fail(f"{constant} is not JSON")


def test_stored_study_is_what_its_runs_say(tmp_path):
    shutil.copytree(_STORED, tmp_path / "study")
    written = report.write(tmp_path / "study")
    assert written.read_text() == (_STORED.parent / "STUDY.md").read_text()


def test_stored_runs_are_strict_json_of_known_problems():
    for line in _RUNS.read_text().splitlines():
        assert json.loads(line, parse_constant=_not_json)["problem"] in PROBLEMS


def test_test_data_is_looked_at_with_the_chosen_rates_only(stored):
    for problem in PROBLEMS.values():
        for name, candidate in candidates.named(problem, [*CANDIDATES, "alone"]).items():
            runs = stored.of(problem.name, name)
            tested = {run["learning_rate"] for run in runs if run["stage"] == "test"}
            complete = [s for s in (TWO, TEN) if runs and not to_tune(runs, s, candidate.rates)]
            assert tested <= {best_rate(runs, seeds) for seeds in complete}


@pytest.mark.slow
def test_corner_of_the_study_is_reproduced():
    before = smoke.stored(_RUNS, "osgd-all")
    assert smoke.differences(before, smoke.again(before, "osgd-all")) == []


def test_smoke_finds_what_differs():
    before = smoke.stored(_RUNS, "sgd")
    now = copy.deepcopy(before)
    for run in now:
        run["looks"] = [{field: looks[0] for field, looks in run["looks"].items()}]
    assert smoke.differences(before, now) == []
    now[0]["looks"][0]["shared_norm"] *= 1.1
    for run in now:
        run["validation_accuracy"] = [0.5, 0.5, 0.5]
    assert len(smoke.differences(before, now)) == 2


def test_all_questions_are_answered_and_every_run_answers_one(stored):
    asked = collections.defaultdict(set)
    for question in QUESTIONS.values():
        for problem in question.problems:
            for name, candidate in candidates.named(problem, question.methods).items():
                runs = stored.of(problem.name, name)
                assert lacking(question, runs, candidate.rates) == []
                answering = answers(question, runs)
                asked[problem.name, name] |= {json.dumps(run) for run in answering}
    lines = {json.dumps(json.loads(line)) for line in _RUNS.read_text().splitlines()}
    assert set().union(*asked.values()) == lines


def test_methods_go_on_from_the_screen_by_their_place_in_it(stored):
    tuned, ranked = {}, {}
    for name in CANDIDATES:
        runs = stored.of(SCREEN.name, name)
        rate = best_rate(runs, TWO)
        tuned[name] = by_rate(runs, TWO)[rate]
        if name in QUESTIONS["rank"].methods:
            ranks = at(runs, "rank", rate, TEN)
            ranked[name] = np.mean([run["validation_accuracy"] for run in ranks])
    # OSGD with scope "all" before clipping was thought of when the screen had been ranked.
    best = sorted(tuned.keys() - {"osgd-all-clipped"}, key=tuned.get, reverse=True)[:12]
    assert set(best) <= ranked.keys()
    published = [name for name in ranked if CANDIDATES[name].about == name]
    best = sorted(published, key=ranked.get, reverse=True)[:5]
    assert set(best) == set(QUESTIONS["images-best"].methods[1:])


def test_first_table_of_the_documents_is_that_of_the_study(stored):
    rows = [line[2:].split(" | ") for line in tables.summary(stored).splitlines()[2:]]
    page = (_STORED.parents[2] / "docs" / "results.md").read_text()
    for about, gain, _, over_nets, *_, time in rows:
        row = f"| {about} | {gain} {over_nets} | {time}"
        assert row in page.replace(" (the default)", "")
