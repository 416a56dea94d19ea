"""The main job, run as a user runs it."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import compare
from tests.experiments.running import finish, refuse

_SMALL = ["--epochs", "1", "--widths", "8", "--train-size", "200", "--seeds", "2"]


@pytest.mark.parametrize(("data", "net"), [("digits", "width-nested"), ("mnist1d", "depth-nested")])
def test_compares_methods_from_one_grid_and_writes_table_plot_and_results(tmp_path, data, net):
    printed = finish(
        *["compare", "--data", data, "--net", net, "--output", tmp_path, *_SMALL],
        *["--learning-rates", "0.1", "0.4", "--tuning-seeds", "1"],
    )
    results = json.loads((tmp_path / "results.json").read_text())
    names = [method["method"] for method in results["methods"]]
    alone = ["output 1 alone", "output 2 alone", "output 3 alone"]
    assert names == ["sgd", "sgd clipped", "osgd", *alone]
    for method in results["methods"]:
        by_rate = {
            each["learning_rate"]: np.mean(each["seeds"])
            for each in method["validation_accuracy_by_rate"]
        }
        assert list(by_rate) == [0.1, 0.4]
        assert by_rate[method["learning_rate"]] == max(by_rate.values())
        trained_outputs = 3 if method["output"] is None else 1
        assert np.shape(method["test_accuracy"]) == (2, trained_outputs)
        assert np.all(np.array(method["test_accuracy"]) <= 1)
    costs = [output["multiply_adds"] for output in results["outputs"]]
    assert costs == sorted(costs)
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    for shown in ("osgd", "each alone", "multiply-adds", "±"):
        assert shown in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], "epochs=0 must be at least 1"),
        (
            ["--learning-rates", "-1"],
            "learning_rates=(-1.0,) must be one or more numbers, each above 0",
        ),
        (["--train-size", "9999"], "train_size=9999 must be between 1 and 3000"),
        (["--batch-size", "500", "--train-size", "100"], "batch_size=500 exceeds the 100"),
        (["--seeds", "0"], "seeds=0 must be at least 1"),
        (["--widths", "2"], "widths"),
    ],
)
def test_a_wrong_value_gets_one_sentence(tmp_path, arguments, words):
    shown = refuse("compare", "--output", tmp_path, *arguments)
    assert "error" in shown.lower()
    assert words in shown


def test_an_unknown_choice_is_refused_with_the_choices():
    assert "digits" in refuse("compare", "--data", "cifar11")


def test_what_was_seen_is_said_with_intervals_of_differences_paired_by_seed():
    rng = np.random.default_rng(0)
    accuracies = {name: rng.uniform(0.5, 0.6, (12, 3)) for name in ("sgd", "osgd")}
    accuracies["sgd clipped"] = accuracies["sgd"] + rng.uniform(0.02, 0.03, (12, 1))
    methods = [
        {"method": name, "output": None, "learning_rate": 0.2, "test_accuracy": runs.tolist()}
        for name, runs in accuracies.items()
    ]
    config = {"learning_rates": [0.1, 0.2, 0.4], "seeds": 12}
    (seen,) = compare.sentences({"methods": methods, "config": config})
    means = {name: 100 * runs.mean(1) for name, runs in accuracies.items()}
    for name, base in (("sgd clipped", "sgd"), ("osgd", "sgd"), ("osgd", "sgd clipped")):
        low, high = stats.ttest_rel(means[name], means[base]).confidence_interval(0.95)
        verdict = "above" if low > 0 else "below" if high < 0 else "level with"
        difference = f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f} points"
        assert f"{name} is {verdict} {base}: {difference}" in seen
    assert "sgd clipped is above sgd" in seen
    methods[0]["learning_rate"] = 0.4
    assert (
        "The rate 0.4 of sgd is at the edge"
        in compare.sentences({"methods": methods, "config": config})[1]
    )


def test_series_gathers_single_outputs_and_takes_the_standard_error_over_seeds():
    results = {
        "methods": [
            {"method": "sgd", "output": None, "test_accuracy": [[0.5, 0.6], [0.7, 0.6]]},
            {"method": "output 1 alone", "output": 0, "test_accuracy": [[0.8], [0.9]]},
            {"method": "output 2 alone", "output": 1, "test_accuracy": [[0.9], [1.0]]},
        ]
    }
    series = compare.series(results)
    np.testing.assert_allclose(series["sgd"], [[60, 60], [10, 0]], atol=1e-12)
    np.testing.assert_allclose(series["each alone"], [[85, 95], [5, 5]])
