import json

import pytest

from experiments.serve import load, picture, ways
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
        output=tmp_path_factory.mktemp("load"),
    )
    return config, load.measure(config)


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


def test_what_is_stored_can_be_shown_again(measured, tmp_path):
    _, results = measured
    stored = json.loads(json.dumps(results))
    picture.draw(stored, tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 10_000
    assert load.table(stored).markdown.count("\n") == 2 + 12


def test_nets_are_trained_once(measured):
    config, _ = measured
    before = (config.output / "nets.pickle").stat().st_mtime_ns
    ways.trained_nets(config, ways.load(config))
    assert (config.output / "nets.pickle").stat().st_mtime_ns == before
