"""The study as it is stored: strict, chosen on validation data, and made again."""

import collections
import copy
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.lab.store import Store
from experiments.studies.anytime import tables
from experiments.studies.anytime.candidates import CANDIDATES, METHODS
from experiments.studies.anytime.problems import PROBLEMS, SCREEN
from experiments.studies.anytime.questions import QUESTIONS, TEN, TWO
from experiments.studies.anytime.results import sweep
from tests.experiments.studies import smoke

_ROOT = Path(__file__).parents[3]
_ROWS = _ROOT / "experiments" / "results" / "anytime.jsonl.gz"


@pytest.fixture(scope="module")
def stored():
    return sweep(Store(_ROWS))


def _not_json(constant):
    pytest.fail(f"{constant} is not JSON")


def test_stored_rows_are_strict_json_of_known_problems():
    _, *lines = gzip.decompress(_ROWS.read_bytes()).splitlines()
    for line in lines:
        assert json.loads(line, parse_constant=_not_json)["problem"] in PROBLEMS


def test_test_data_is_looked_at_with_the_chosen_rates_only(stored):
    for problem in PROBLEMS:
        for name in METHODS:
            rows = stored.store.of(problem, name)
            tested = {row["learning_rate"] for row in rows if row["stage"] == "test"}
            complete = [s for s in (TWO, TEN) if rows and not stored.to_tune(problem, name, s)]
            assert tested <= {stored.best_rate(problem, name, seeds) for seeds in complete}


@pytest.mark.slow
def test_corner_of_the_study_is_reproduced():
    before = smoke.stored(_ROWS, "osgd-all")
    assert smoke.differences(before, smoke.again(before, "osgd-all")) == []


def test_smoke_finds_what_differs():
    before = smoke.stored(_ROWS, "sgd")
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
        for pair in [(p, m) for p in question.problems for m in question.methods]:
            assert stored.lacking(question, *pair) == []
            asked[pair] |= {json.dumps(row) for row in stored.answers(question, *pair)}
    runs = {json.dumps(row) for row in stored.store.all() if row["stage"] != "time"}
    assert set().union(*asked.values()) == runs


def test_methods_go_on_from_the_screen_by_their_place_in_it(stored):
    tuned, ranked = {}, {}
    for name in CANDIDATES:
        rate = stored.best_rate(SCREEN.name, name, TWO)
        tuned[name] = stored.mean_scores(SCREEN.name, name, TWO)[rate]
        if name in QUESTIONS["rank"].methods:
            ranks = stored.at(SCREEN.name, name, "rank", rate, TEN)
            ranked[name] = np.mean([row["validation_accuracy"] for row in ranks])
    # OSGD with scope "all" before clipping was thought of when the screen had been ranked.
    best = sorted(tuned.keys() - {"osgd-all-clipped"}, key=tuned.get, reverse=True)[:12]
    assert set(best) <= ranked.keys()
    published = [name for name in ranked if CANDIDATES[name].about == name]
    best = sorted(published, key=ranked.get, reverse=True)[:5]
    assert set(best) == set(QUESTIONS["images-best"].methods[1:])


def test_first_table_of_the_documents_is_that_of_the_study(stored):
    rows = tables.summary(stored).rows
    page = (_ROOT / "docs" / "results.md").read_text()
    for about, gain, _, over_nets, *_, time in rows:
        row = f"| {about} | {gain} {over_nets} | {time}"
        assert row in page.replace(" (the default)", "")
