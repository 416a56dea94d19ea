"""The file of a study's runs: added to, by several, and after it was cut short."""

import pytest

from experiments.study.store import Store


def _run(seed, **changes):
    run = {"problem": "net", "candidate": "sgd", "stage": "tune", "learning_rate": 0.1}
    return run | {"seed": seed, "validation_accuracy": [0.5]} | changes


def test_runs_are_there_again_in_the_order_of_training(tmp_path):
    runs = [_run(1), _run(0, test_accuracy=[1 / 3]), _run(0, candidate="osgd-all")]
    store = Store(tmp_path / "study" / "runs.jsonl")
    store.add(runs[:1])
    store.add(runs[1:])
    for found in (store, Store(store.path)):
        assert found.of("net", "sgd") == runs[:2]
        assert found.of("net", "osgd-all") == runs[2:]
        assert list(found.of("other", "sgd")) == []


def test_line_that_was_cut_short_is_done_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    Store(path).add([_run(0), _run(1)])
    path.write_bytes(path.read_bytes()[:-10])
    resumed = Store(path)
    assert resumed.of("net", "sgd") == [_run(0)]
    resumed.add([_run(1), _run(2)])
    assert Store(path).of("net", "sgd") == [_run(0), _run(1), _run(2)]


def test_two_that_write_to_one_file_have_all_runs_and_none_twice(tmp_path):
    first, second = (Store(tmp_path / "runs.jsonl") for _ in range(2))
    first.add([_run(0), _run(1)])
    second.add([_run(1, validation_accuracy=[0.9]), _run(2)])
    first.add([_run(2), _run(3), _run(3)])
    expected = [_run(seed) for seed in range(4)]
    assert first.of("net", "sgd") == Store(first.path).of("net", "sgd") == expected


@pytest.mark.parametrize("line", ['{"stage": "tune"}', "no JSON"])
def test_line_that_is_no_run_is_named(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=f"runs.jsonl holds a line that is no run: b'{line}'"):
        Store(path)
