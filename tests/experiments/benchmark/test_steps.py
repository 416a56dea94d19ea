"""The benchmark, as far as it is exact: counted work and memory, never the time."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import osgd_jax
from experiments.benchmark import aggregation, steps, training_steps
from experiments.benchmark.__main__ import NAMES
from experiments.lab import report
from tests.experiments.running import finish, refuse


def dense_problem():
    """Two losses on one shared layer, whose work and rows are known."""

    def losses_of(params, rest, inputs, labels):
        hidden = jnp.tanh(inputs @ params["shared"])
        return tuple(jnp.mean((hidden @ head) ** 2) for head in params["heads"]), rest

    params = {"shared": jnp.eye(64), "heads": [jnp.ones((64, 1))] * 2}
    batch = jnp.ones((128, 64)), jnp.zeros(128, int)
    return training_steps.Problem(losses_of, params, (), batch)


def test_limits_of_two_losses_on_one_layer():
    problem = dense_problem()
    # The layer once forward, and for each loss once backward, towards the kernel only.
    product = 2 * 128 * 64 * 64
    assert 3 * product < training_steps.least_work(problem) < 3.3 * product
    assert training_steps.extra_rows_bytes(problem) == 4 * 64 * 64


def test_steps_reach_the_limit_of_work_and_micro_batches_hold_less():
    methods = ("sgd", "osgd", "jacrev", "micro-batches")
    net = osgd_jax.nets.BranchedResNet(
        num_classes=4, num_outputs=2, widths=(8, 8), blocks=(1, 1), rngs=nnx.Rngs(0)
    )
    problem = training_steps.classification(net, (256, 8, 8, 3))
    rows = {
        row["method"]: row for row in training_steps.compare(problem, methods, "shared", rounds=1)
    }
    assert rows["sgd"]["work_over_sgd"] == rows["sgd"]["memory_over_sgd"] == 1
    # The limit is of programs before compilation, whose result does some elementwise work twice:
    # 4 % more operations in this step of OSGD's, 5 % in SGD's, a little more or less by version.
    assert rows["osgd"]["work_over_sgd"] <= 1.05 * rows["osgd"]["work_limit_over_sgd"]
    assert rows["jacrev"]["work_over_sgd"] > 1.1 * rows["jacrev"]["work_limit_over_sgd"]
    assert rows["micro-batches"]["memory_over_sgd"] < 0.5 * rows["osgd"]["memory_over_sgd"]


@pytest.mark.numerical
@pytest.mark.skipif(
    "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ, reason="the memory of programs made in haste"
)
def test_what_one_pullback_alone_reads_is_freed_before_the_next():
    net = osgd_jax.nets.BranchedResNet(num_classes=10, num_outputs=3, rngs=nnx.Rngs(0))
    problem = training_steps.classification(net, (128, 32, 32, 3))
    made = training_steps.make_steps(problem, ("sgd", "osgd"), "shared")
    limit = made["sgd"].temporary_bytes + training_steps.extra_rows_bytes(problem)
    # 1.20 where the compiler orders the pullbacks.
    assert made["osgd"].temporary_bytes < 1.05 * limit


def test_micro_batches_take_the_same_step():
    problem = dense_problem()
    made = training_steps.make_steps(problem, ("osgd", "micro-batches"), "shared")
    whole, _, _ = made["osgd"].run()
    (in_parts, _), _ = made["micro-batches"].run()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), in_parts, whole)


def test_aggregation_is_held_against_the_bytes_that_it_must_move():
    row = aggregation.against_bandwidth(num_tasks=2, num_parameters=4096, rounds=1)
    seconds = {part: row[part]["ms"]["median"] / 1e3 for part in ("gramian", "aggregate")}
    moved = {"gramian": 2 * 4 * 4096, "aggregate": 5 * 4 * 4096}
    for part, length in moved.items():
        least = length / (1e9 * row["bandwidth_gb_per_s"]["median"])
        np.testing.assert_allclose(row[part]["over_limit"]["median"], seconds[part] / least)


@pytest.mark.parametrize("name", [(), ("steps",)])
def test_the_command_stores_every_figure(tmp_path, name):
    output = tmp_path / "benchmark.jsonl.gz"
    printed = finish(
        *("benchmark", *name, "--nets", "branched", "--outputs", "1", "--batch-sizes", "4"),
        *("--image-size", "8", "--rounds", "1", "--methods", "sgd", "osgd", "--scope", "shared"),
        *("--parameters", "1000", "--output", output),
    )
    (written,) = report.runs(output)
    assert [row["method"] for row in written["rows"]] == ["sgd", "osgd"]
    # One loss alone leaves nothing to balance.
    assert written["rows"][1]["work_over_sgd"] == pytest.approx(1, abs=0.02)
    assert len(written["aggregation"]) == 1
    assert {"date", "device", "versions"} <= written["machine"].keys()
    assert written["command"].startswith("python -m experiments.benchmark steps --nets branched")
    assert str(tmp_path) not in written["command"]
    assert "time/limit" in printed


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--rounds", "0"], "rounds=0 must be at least 1"),
        (["--methods", "osgd"], "must contain sgd, the baseline"),
        (["--methods", "sgd", "micro-batches", "--batch-sizes", "6"], "multiples of 4, got"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(wrong, sentence):
    assert sentence in refuse("benchmark", *wrong)


def test_a_peer_that_is_not_installed_is_refused_with_the_remedy():
    if importlib.util.find_spec("torchjd") is not None:
        pytest.skip("TorchJD is installed here")
    assert "pip install -e '.[experiments,peer]'" in refuse("benchmark", "--peer")


def test_help_lists_the_benchmarks_and_an_unknown_one_is_refused():
    printed = refuse("benchmark", "lap")
    for name in NAMES:
        assert name in printed
        assert f"- {name}" in finish("benchmark", "--help").replace("`", "")


@pytest.mark.skipif(importlib.util.find_spec("torchjd") is not None, reason="the peer is here")
def test_a_peer_that_is_not_installed_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(steps, "_problem", None)
    with pytest.raises(ValueError, match=r"`peer` must be left out .*experiments,peer"):
        steps.measure(steps.Config(peer=True), print)
