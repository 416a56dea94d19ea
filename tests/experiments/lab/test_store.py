"""The file of a study's rows: added to, by several, and after it was cut short."""

import gzip
import json

import pytest

from experiments.lab.store import Store


def _row(seed, **changes):
    row = {"problem": "net", "method": "sgd", "stage": "tune", "learning_rate": 0.1}
    return row | {"seed": seed, "validation_accuracy": [0.5]} | changes


def test_rows_are_read_again_in_the_order_of_training(tmp_path):
    rows = [_row(1), _row(0, test_accuracy=[1 / 3]), _row(0, method="osgd-all")]
    store = Store(tmp_path / "study" / "rows.jsonl.gz")
    store.add(rows[:1])
    store.add(rows[1:])
    memory = Store(None)
    memory.add(rows)
    for found in (store, Store(store.path), memory):
        assert found.of("net", "sgd") == rows[:2]
        assert found.of("net", "osgd-all") == rows[2:]
        assert found.of("other", "sgd") == []
        assert found.all() == rows
    lines = gzip.decompress(store.path.read_bytes()).splitlines()
    assert [json.loads(line) for line in lines[1:]] == rows


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_part_that_was_cut_short_is_written_again(tmp_path, cut):
    path = tmp_path / "rows.jsonl.gz"
    Store(path).add([_row(0)])
    Store(path).add([_row(1), _row(2)])
    path.write_bytes(path.read_bytes()[:-cut])
    resumed = Store(path)
    assert resumed.of("net", "sgd") == [_row(0)]
    resumed.add([_row(1), _row(3)])
    assert Store(path).of("net", "sgd") == [_row(0), _row(1), _row(3)]


def test_first_part_that_was_cut_short_is_written_again(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    Store(path, {"steps": 3}).add([_row(0)])
    path.write_bytes(path.read_bytes()[:-1])
    resumed = Store(path, {"steps": 3})
    resumed.add([_row(1)])
    assert Store(path, {"steps": 3}).all() == [_row(1)]


def test_two_that_write_to_one_file_have_all_rows_and_none_twice(tmp_path):
    first, second = (Store(tmp_path / "rows.jsonl.gz") for _ in range(2))
    first.add([_row(0), _row(1)])
    second.add([_row(1, validation_accuracy=[0.9]), _row(2)])
    first.add([_row(2), _row(3), _row(3)])
    expected = [_row(seed) for seed in range(4)]
    assert first.of("net", "sgd") == Store(first.path).of("net", "sgd") == expected


def test_rows_of_other_settings_are_not_mixed(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    Store(path, {"rates": (0.1, 0.2)}, {"command": "python"}).add([_row(0)])
    assert Store(path, {"rates": [0.1, 0.2]}).all() == [_row(0)]
    assert Store(path).about == {"settings": {"rates": [0.1, 0.2]}, "command": "python"}
    with pytest.raises(ValueError, match=r"must hold rows of the settings \{'rates': \[0.3\]\}"):
        Store(path, {"rates": [0.3]})


@pytest.mark.parametrize(
    "text", [b"no gzip", gzip.compress(b"no JSON", mtime=0), gzip.compress(b"{}\n", mtime=0)]
)
def test_file_that_holds_no_rows_is_named(tmp_path, text):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"rows.jsonl.gz must be rows of a study, got a damaged"):
        Store(path)
