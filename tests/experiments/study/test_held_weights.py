"""The direction of given weights by one backward pass, and the trial that uses it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import osgd_jax
from experiments.study import held_weights


def losses_of(params):
    shared = jnp.tanh(inputs() @ params["shared"])
    losses = tuple(jnp.mean((shared @ head - k) ** 2) for k, head in enumerate(params["heads"]))
    return losses, jnp.float32(3)


def inputs():
    return np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)


def parameters():
    rng = np.random.default_rng(1)
    heads = [rng.normal(size=(8, 2)).astype(np.float32) for _ in range(3)]
    shared = rng.normal(size=(4, 8)).astype(np.float32)
    # An array that no loss reaches, too.
    return {"shared": shared, "heads": heads, "unused": np.ones(3, np.float32)}


def own_weights(params):
    grads, _ = osgd_jax.task_grads(losses_of, has_aux=True)(params)
    gramian = osgd_jax.gramian({"shared": grads["shared"]})
    return grads, osgd_jax.weightings.orthogonal().weigh(gramian, ())[0]


def test_with_the_weights_of_the_batch_it_is_the_direction_of_osgd():
    params = parameters()
    grads, weights = own_weights(params)
    tx = osgd_jax.orthogonalize(scope="shared")
    expected, _ = tx.update(grads, tx.init(params), params)
    direction, aux = held_weights.one_pass(losses_of, params, weights, jnp.inf)
    assert aux == 3
    assert abs(weights[0] - 1) > 0.1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), direction, expected
    )


def test_a_weight_of_zero_leaves_the_heads_their_gradient():
    params = parameters()
    grads, _ = own_weights(params)
    direction, _ = held_weights.one_pass(losses_of, params, jnp.array([0.0, 1, 1]), jnp.inf)
    np.testing.assert_allclose(direction["heads"][0], grads["heads"][0].rows[0], rtol=1e-4)


def test_only_the_shared_part_is_scaled_down_to_the_longest():
    params = parameters()
    weights = jnp.array([0.5, -0.5, 1])
    free, _ = held_weights.one_pass(losses_of, params, weights, jnp.inf)
    length = optax.tree.norm(free["shared"])
    clipped, _ = held_weights.one_pass(losses_of, params, weights, length / 3)
    np.testing.assert_allclose(clipped["shared"], free["shared"] / 3, rtol=1e-5)
    np.testing.assert_array_equal(clipped["heads"][0], free["heads"][0])
    same, _ = held_weights.one_pass(losses_of, params, weights, 2 * length)
    np.testing.assert_array_equal(same["shared"], free["shared"])


@pytest.mark.parametrize("name", ["held_weights", "held_weights_second"])
def test_stored_tables_are_those_of_the_stored_figures(name):
    figures = Path(__file__).parents[3] / "experiments" / "results" / "study" / f"{name}.json"
    written = json.loads(figures.read_text())
    assert figures.with_suffix(".md").read_text() == held_weights.table(written)


@pytest.mark.slow
def test_the_command_trains_every_variant(tmp_path):
    output = tmp_path / "held.json"
    command = [sys.executable, "-m", "experiments.study.held_weights", "--data", "mnist1d"]
    command += ["--train-size", "100"]
    command += ["--epochs", "1", "--seeds", "1", "--learning-rates", "0.1", "--widths", "8", "8"]
    ran = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(output.read_text())["rows"]
    work = {row["weights"]: row["work_over_sgd"] for row in rows}
    assert len(rows) == len(held_weights.VARIANTS) + 1
    assert work["all 1 (SGD)"] == 1 < work["held 10 steps"] < 1.06 < work["each batch's own"]
    # The first step's weights are those of its batch, however long they are held.
    accuracy = {row["weights"]: row["test_accuracy"] for row in rows}
    assert accuracy["held 10 steps"] == accuracy["each batch's own"] == accuracy["held 2 steps"]
    assert len(output.with_suffix(".md").read_text().splitlines()) == 6 + len(rows)
