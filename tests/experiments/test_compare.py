"""The main job, run as a user runs it."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import compare
from tests.experiments.running import finish, refuse

_SMALL = ["--epochs", "1", "--widths", "8", "--blocks", "1", "--train-size", "200", "--seeds", "2"]


@pytest.mark.parametrize(("data", "net"), [("digits", "width-nested"), ("mnist1d", "depth-nested")])
def test_compares_methods_from_one_grid_and_writes_table_plots_and_results(tmp_path, data, net):
    printed = finish(
        *["compare", "--data", data, "--net", net, "--output", tmp_path, *_SMALL],
        *["--learning-rates", "0.1", "0.4", "--tuning-seeds", "1"],
    )
    results = json.loads((tmp_path / "results.json").read_text())
    names = [method["method"] for method in results["methods"]]
    assert names == ["sgd", "sgd clipped", "osgd"]
    for method in results["methods"]:
        by_rate = {
            each["learning_rate"]: np.mean(each["seeds"])
            for each in method["validation_accuracy_by_rate"]
        }
        assert list(by_rate) == [0.1, 0.4]
        assert by_rate[method["learning_rate"]] == max(by_rate.values())
        assert np.shape(method["test_accuracy"]) == (2, 3)
        assert np.all(np.array(method["test_accuracy"]) <= 1)
    costs = [output["multiply_adds"] for output in results["outputs"]]
    assert costs == sorted(costs)
    for picture in ("comparison.png", "anytime.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    for shown in ("osgd", "multiply-adds", "±", "deadline"):
        assert shown in printed

    limits = [answers["deadline"] for answers in results["deadlines"]]
    assert limits == sorted(limits)
    # An accuracy by several outputs lies between the accuracies of these outputs.
    best = max(
        results["methods"],
        key=lambda each: max(np.mean(v["seeds"]) for v in each["validation_accuracy_by_rate"]),
    )
    accuracies = best["test_accuracy"][0]
    for answers in results["deadlines"]:
        np.testing.assert_allclose(sum(answers["outputs"]), 1)
        used = [a for a, share in zip(accuracies, answers["outputs"], strict=True) if share > 0]
        assert min(used) - 0.05 <= answers["accuracy"] <= max(used) + 0.05


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
        {"method": name, "learning_rate": 0.2, "test_accuracy": runs.tolist()}
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


def test_series_takes_mean_and_standard_error_over_seeds():
    results = {"methods": [{"method": "sgd", "test_accuracy": [[0.5, 0.6], [0.7, 0.6]]}]}
    np.testing.assert_allclose(compare.series(results)["sgd"], [[60, 60], [10, 0]], atol=1e-12)
