"""TorchJD takes the same steps; `make test-peer` runs this."""

import numpy as np
import pytest
from flax import nnx

import osgd_jax
from experiments.benchmark import steps, training_steps

pytest.importorskip("torchjd")


def test_both_libraries_are_timed_on_the_same_gradients():
    from experiments.benchmark import peer

    net = osgd_jax.nets.BranchedResNet(
        num_classes=4, num_outputs=2, widths=(4, 8), blocks=(1, 1), rngs=nnx.Rngs(0)
    )
    problem = training_steps.classification(net, (4, 8, 8, 3))
    result = peer.against_torchjd(problem, rounds=1)
    assert result["largest_gradient_difference"] < 1e-4
    assert [len(result[library]) for library in ("osgd_jax", "torchjd")] == [3, 4]
    table = steps.tables({"rows": [], "peer": [result]})[-1]
    assert len(table.rows) == 8


def test_gradients_of_two_libraries_are_compared_loss_by_loss():
    from experiments.benchmark import peer

    ours = [[np.ones(4), np.ones(5)], [np.full(4, 100.0), np.zeros(5)]]
    assert peer.largest_difference(ours, ours) == 0
    # Small beside all gradients, large beside those of its loss.
    theirs = [[np.zeros(4), np.ones(5)], ours[1]]
    assert peer.largest_difference(ours, theirs) == pytest.approx(2 / 3)
