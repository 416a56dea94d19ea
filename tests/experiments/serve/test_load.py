import dataclasses
import json

import numpy as np
import pytest

from experiments.serve import load, ways
from experiments.serve.load import Config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    config = Config(
        epochs=1,
        widths=(4,),
        blocks=(1,),
        max_batch=2,
        loads=(0.05, 0.1),
        seconds=0.3,
        repetitions=2,
        deadline=5.0,
        output=tmp_path_factory.mktemp("load") / "load.json",
    )
    return config, load.measure(config, lambda line: None)


def test_all_ways_are_measured_at_all_loads(measured):
    config, results = measured
    runs = results["runs"]
    assert len(runs) == 6 * 2 * 2
    assert len({(run["way"], run["load"], run["repetition"]) for run in runs}) == len(runs)
    for run in runs:
        assert run["in_time"] == 1.0  # hardly any load, and seconds of time
        assert run["refused"] == 0.0
        assert run["goodput"] == pytest.approx(run["accuracy"])
        assert sum(run["outputs"]) == pytest.approx(1)
        assert 0 < run["p50"] <= run["p99"] < config.deadline
    outputs = {run["way"]: run["outputs"] for run in runs}
    assert outputs["anytime"] == outputs["last output"] == (0.0, 0.0, 1.0)
    assert outputs["output 0"] == (1.0, 0.0, 0.0)


def test_results_are_strict_json_and_shown_again(measured):
    config, results = measured
    stored = json.loads(json.dumps(results, allow_nan=False))
    shown, spent = load.tables(stored)
    assert len(shown.rows) == 12
    assert len(spent.rows) == 1
    assert config.output.with_suffix(".png").stat().st_size > 10_000


def test_a_run_without_an_answer_has_no_accuracy():
    arrivals, ends = np.arange(3.0), np.full(3, np.inf)
    outcome = load._outcome(arrivals, ends, [None] * 3, np.zeros(3), Config())
    assert (outcome.in_time, outcome.goodput, outcome.refused) == (0, 0, 1)
    assert outcome.accuracy is outcome.p50 is outcome.p99 is None


def test_nets_are_trained_once(measured):
    config, _ = measured
    before = config.output.with_name("nets.pickle").stat().st_mtime_ns
    ways.trained_nets(config, ways.load(config))
    assert config.output.with_name("nets.pickle").stat().st_mtime_ns == before


def test_nets_of_other_settings_are_refused(measured):
    config, _ = measured
    other = dataclasses.replace(config, epochs=2)
    with pytest.raises(ValueError, match=r"nets of other settings.*name another --output"):
        ways.trained_nets(other, ways.load(other))
