"""The evaluation of a run, and what it computes."""

import json
import shutil

import numpy as np
import pytest

from experiments.app import metrics
from osgd_jax._serving import rules
from tests.experiments.running import finish, refuse, summary


def test_evaluates_a_run(tmp_path, digits_run):
    workdir = tmp_path / "first"
    shutil.copytree(digits_run, workdir)
    printed = finish("evaluate", workdir)
    found = json.loads((workdir / "evaluation.json").read_text())
    accuracy = [output["accuracy"] for output in found["outputs"]]
    assert accuracy == pytest.approx(summary(workdir)["test_accuracy"])
    assert found["examples"] == 500
    assert "area under the anytime curve" in printed
    costs = [output["multiply_adds"] for output in found["outputs"]]
    budgeted = found["budgeted"]
    assert budgeted[0]["average_multiply_adds"] < 1.05 * costs[0]
    assert budgeted[-1]["average_multiply_adds"] > 0.95 * costs[-1]
    assert (workdir / "evaluation.png").stat().st_size > 10_000
    assert "best checkpoint" not in finish("evaluate", workdir, "--checkpoint", "best")


def test_a_folder_without_a_run_is_refused(tmp_path):
    assert "holds no run" in refuse("evaluate", tmp_path)


def _probabilities(predicted, confidence):
    """Return probabilities of two classes."""
    predicted, confidence = np.array(predicted), np.array(confidence)
    return np.where(
        np.arange(2) == predicted[..., None], confidence[..., None], 1 - confidence[..., None]
    )


def test_numbers_of_a_small_example_by_hand():
    labels = np.array([0, 0, 1, 1])
    p = _probabilities(
        [[0, 1, 1, 0], [0, 0, 1, 0]], [[0.9, 0.6, 0.7, 0.8], [0.95, 0.85, 0.75, 0.55]]
    )
    np.testing.assert_allclose(metrics.accuracies(p, labels), [0.5, 0.75])
    # Each example is alone in its bin of width 1/15.
    wanted = [(0.1 + 0.6 + 0.3 + 0.8) / 4, (0.05 + 0.15 + 0.25 + 0.55) / 4]
    np.testing.assert_allclose(metrics.calibration_errors(p, labels), wanted)
    np.testing.assert_allclose(metrics.agreement(p), [[1, 0.75], [0.75, 1]])
    change = metrics.monotonicity(p, labels)
    np.testing.assert_allclose(change.gained, [0.25])
    np.testing.assert_allclose(change.lost, [0])
    assert metrics.area_under_curve(
        np.array([0.5, 0.7, 0.9]), np.array([1, 2, 4])
    ) == pytest.approx((0.5 * 1 + 0.7 * 2) / 3)


@pytest.mark.parametrize("rule", ["confidence", "margin", "entropy"])
def test_scores_are_those_by_which_the_predictor_lets_examples_leave(rule):
    logits = np.random.default_rng(0).normal(0, 2, (3, 50, 4))
    powers = np.exp(logits)
    scores = metrics.exit_scores(powers / powers.sum(-1, keepdims=True), rule)
    for each, output in zip(scores, logits, strict=True):
        np.testing.assert_allclose(each, rules.RULES[rule](output, None), atol=1e-6)


def test_thresholds_send_the_wanted_shares_out():
    rng = np.random.default_rng(0)
    confidence, shares = rng.uniform(size=(3, 1000)), np.array([0.5, 0.3, 0.2])
    thresholds = metrics.exit_thresholds(confidence, shares)
    taken = metrics.exits(confidence, thresholds)
    np.testing.assert_allclose(np.bincount(taken) / 1000, shares)
    # Examples that stop at the first output are the most confident there.
    assert confidence[0][taken == 0].min() > confidence[0][taken != 0].max()
