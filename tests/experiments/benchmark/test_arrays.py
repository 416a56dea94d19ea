"""Compile times of many arrays are held against those of clipped SGD."""

import pytest

from experiments.benchmark import arrays


def test_many_arrays_are_measured_beside_clipped_sgd():
    config = arrays.Config((2,), ("orthogonalize", "mean"), 3, (2,), (64,), rounds=1)
    results = arrays.measure(config, lambda _: None)
    assert [row["method"] for row in results["compile"]] == ["clipped SGD", *config.methods]
    for row in results["compile"]:
        over = row["seconds"] / results["compile"][0]["seconds"]
        assert row["over_sgd"] == pytest.approx(over)
    _, grads = arrays.arrays(4, 3)
    assert [leaf.tasks for leaf in grads] == [(1, 2), *[(0, 1, 2)] * 3]
    assert len(arrays.tables(results)) == 2
