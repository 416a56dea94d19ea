"""The study as it is stored: strict, chosen on validation data, and made again."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from experiments.study import candidates, plan, report
from experiments.study.problems import PROBLEMS
from experiments.study.runs import TEN, TWO, best_rate, to_tune
from experiments.study.store import Store
from tests.experiments.study import smoke

_STORED = Path(__file__).parents[3] / "experiments" / "results" / "study"
_RUNS = _STORED / plan.RUNS


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
        for name, candidate in (candidates.CANDIDATES | candidates.alone(problem)).items():
            runs = stored.of(problem.name, name)
            tested = {run["learning_rate"] for run in runs if run["stage"] == "test"}
            complete = (s for s in (TWO, TEN) if runs and not to_tune(runs, s, candidate.rates))
            assert tested <= {best_rate(runs, seeds) for seeds in complete}


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


def test_best_methods_go_to_images_all_to_some_and_the_first_to_each(stored):
    study, (first, *rest) = plan.Study(stored), plan.finalists(stored)
    assert len(rest) == plan.FINALISTS - 1
    everywhere = {*candidates.COMPARED, first}
    for name in ("fashion-depth", "cifar-both"):
        assert set(study.shortlist(PROBLEMS[name])) == everywhere
    for name in ("fashion-width", "cifar-width"):
        widely = {*everywhere, *rest, *plan.best_fixed(stored)}
        assert set(study.shortlist(PROBLEMS[name])) == widely
