"""A step does what its method says, alone or among others; a stopped run goes on."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import osgd_jax
from experiments.pinn.problems import PROBLEMS
from experiments.pinn.training import Solver, SolverSettings
from tests.experiments.running import finish, metrics, parameters, refuse

_TINY = {"steps": 10, "width": 6, "layers": 2, "points": 20, "edge_points": 6, "resample": False}


def _trainer(problem="klein_gordon", **changes):
    return Solver(PROBLEMS[problem], SolverSettings(**_TINY | changes))


def _start(trainer, seed=0, rate=1e-2):
    return jax.jit(trainer.start)(seed, rate)


def _advance(trainer, state, count, first=0, rate=1e-2):
    return jax.jit(trainer.advance, static_argnums=3)(state, rate, first, count)


def _gradients(trainer, state):
    """Losses and their gradients one by one, without task gradients."""
    points = trainer.problem.sample(state.key, 20, 6)

    def losses_of(params):
        return trainer.problem.losses(trainer.field(params, state.rest), points)

    return jax.jit(lambda params: (losses_of(params), jax.jacrev(losses_of)(params)))(state.params)


def _after_adam(trainer, state, gradient, rate):
    adam = optax.adam(optax.cosine_decay_schedule(rate, 10))
    updates, _ = adam.update(gradient, adam.init(state.params), state.params)
    return optax.apply_updates(state.params, updates)


def _assert_params(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, {"bc": 1, "ic": 1, "pde": 1}),
        ({"weights": (3.0, 5.0, 0.0)}, {"bc": 3, "ic": 5, "pde": 0}),
        ({"weights": {"pde": 0.0, "bc": 3.0}}, {"bc": 3, "ic": 1, "pde": 0}),
    ],
)
def test_the_sum_is_of_weighted_losses(changes, weights):
    trainer = _trainer(**changes)
    state = _start(trainer)
    _, gradients = _gradients(trainer, state)
    summed = jax.tree.map(
        lambda *each: sum(w * g for w, g in zip(weights.values(), each, strict=True)),
        *[gradients[name] for name in weights],
    )
    found = _advance(trainer, state, 1)
    _assert_params(found.params, _after_adam(trainer, state, summed, 1e-2))


def test_osgd_keeps_the_order_of_names():
    trainer = _trainer(method="osgd", order="ic,pde,bc")
    state = _start(trainer)
    _, gradients = _gradients(trainer, state)
    rows = [
        jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients[name])])
        for name in ("ic", "pde", "bc")
    ]
    orthogonal = []
    for row in rows:
        for other in orthogonal:
            row = row - row @ other / (other @ other) * other
        orthogonal.append(row)
    _, unravel = jax.flatten_util.ravel_pytree(state.params)
    found = _advance(trainer, state, 1)
    _assert_params(found.params, _after_adam(trainer, state, unravel(sum(orthogonal)), 1e-2))


def test_pcd_follows_the_first_of_the_order_and_promises_the_others_tau():
    trainer = _trainer(method="pcd", order="ic,bc,pde", tau=0.3)
    state = _start(trainer)
    _, gradients = _gradients(trainer, state)
    rows = [jax.flatten_util.ravel_pytree(gradients[name])[0] for name in ("bc", "ic", "pde")]
    _, unravel = jax.flatten_util.ravel_pytree(state.params)
    weighting = osgd_jax.weightings.pcd(3, tau=0.3, primary=1)
    weights, _ = weighting.weigh(jnp.stack(rows) @ jnp.stack(rows).T, weighting.init())
    direction = unravel(weights @ jnp.stack(rows))
    found = _advance(trainer, state, 1)
    _assert_params(found.params, _after_adam(trainer, state, direction, 1e-2))


def test_one_loss_a_step_takes_them_in_turn():
    trainer = _trainer(method="m_config")
    state = _start(trainer)
    tx = osgd_jax.m_config(optax.cosine_decay_schedule(1e-2, 10), 3)
    params, moments = state.params, tx.init(state.params)
    for turn, name in enumerate(("bc", "ic", "pde", "bc")):
        _, gradients = _gradients(trainer, state._replace(params=params))
        updates, moments = tx.update(gradients[name], moments, params, task=turn % 3)
        params = optax.apply_updates(params, updates)
    _assert_params(_advance(trainer, state, 4).params, params)


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "m_config"}, {"method": "upgrad"}, {"method": "relobralo", "frequencies": 3}],
)
def test_many_nets_train_as_each_alone(changes):
    trainer = _trainer(resample=True, **changes)
    seeds, rates = jnp.arange(3), jnp.array([1e-2, 1e-3, 3e-3])
    together = jax.jit(jax.vmap(trainer.start))(seeds, rates)
    advance = functools.partial(trainer.advance, first=0, count=5)
    together = jax.jit(jax.vmap(advance))(together, rates)
    alone = jax.jit(advance)(_start(trainer, 2, 3e-3), 3e-3)
    third = jax.tree.map(lambda leaf: leaf[2], together.params)
    _assert_params(third, alone.params)
    assert together.step.tolist() == [5, 5, 5]


def test_random_frequencies_take_the_place_of_the_coordinates_and_stay():
    trainer = _trainer(frequencies=4, frequency_scale=3.0)
    state = _start(trainer, 5)
    field = trainer.field(state.params, state.rest)
    drawn = np.asarray(field.frequencies[...])
    assert drawn.shape == (2, 4)
    assert 1 < np.std(drawn) < 6
    points = np.random.default_rng(0).uniform(size=(7, 2))
    phases = np.pi * (2 * points - 1) @ drawn
    hidden = np.concatenate([np.cos(phases), np.sin(phases)], axis=1)
    for layer in field.layers[:-1]:
        hidden = np.tanh(hidden @ layer.kernel[...] + layer.bias[...])
    last = field.layers[-1]
    values = hidden @ last.kernel[...] + last.bias[...]
    np.testing.assert_allclose(field(jnp.asarray(points)), values[:, 0], rtol=1e-4, atol=1e-5)
    after = _advance(trainer, state, 2)
    np.testing.assert_array_equal(
        trainer.field(after.params, after.rest).frequencies[...], field.frequencies[...]
    )


def test_a_look_sees_losses_conflict_and_error():
    trainer = _trainer("helmholtz")
    state = _start(trainer, 3)
    losses, gradients = _gradients(trainer, state)
    seen = jax.jit(trainer.look)(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), seen.losses, losses)
    rows = np.stack(
        [
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients[name])])
            for name in ("bc", "pde")
        ]
    )
    np.testing.assert_allclose(seen.gramian, rows @ rows.T, rtol=1e-3)
    wanted = trainer.problem.solution()
    error = np.linalg.norm(trainer.values(state) - wanted) / np.linalg.norm(wanted)
    assert float(seen.error) == pytest.approx(error, rel=1e-4)


def test_new_points_are_drawn_for_each_step_if_asked():
    def after_two(resample, first):
        trainer = _trainer(resample=resample)
        return _advance(trainer, _start(trainer), 2, first).params

    same = [jax.tree.leaves(after_two(False, first)) for first in (0, 1)]
    other = [jax.tree.leaves(after_two(True, first)) for first in (0, 1)]
    assert all(map(np.array_equal, *same))
    assert not any(map(np.array_equal, *other))


_RUN = ("--problem", "klein_gordon", "--method", "pcd", "--steps", "12", "--width", "8")
_RUN = (*_RUN, "--log-every", "2", "--save-every", "4", "--points", "40")


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    printed = finish("pinn", *_RUN, "--workdir", whole)
    assert "relative L2 error" in printed
    assert "Most opposed" in printed
    results = json.loads((whole / "results.json").read_text())
    assert results["diagnosis"]["tasks"] == ["bc", "ic", "pde"]
    assert (whole / "solution.png").stat().st_size > 10_000
    # As a kill leaves it after step 10: a checkpoint of step 8, logs beyond it, half a line.
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / "12")
    (killed / "results.json").unlink()
    lines = (killed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    assert "Continuing after step 8 of 12" in finish("pinn", *_RUN, "--workdir", killed)
    assert metrics(killed) == metrics(whole)
    for found, wanted in zip(parameters(killed), parameters(whole), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert "holds a run of another configuration (seed: 0 → 1)" in refuse(
        "pinn", *_RUN, "--seed", "1", "--workdir", whole
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "adam"}, "method='adam' is unknown; use one of sum, m_config, aligned_mtl"),
        ({"method": "m_config", "clip_norm": 1.0}, "clip_norm=1.0 must not be given with m_config"),
        ({"weights": (1.0, 2.0)}, r"weights=\(1.0, 2.0\) must be 3 numbers, for bc, ic, pde"),
        ({"weights": (1.0, -2.0, 1.0)}, "weights=.* must be one or more numbers, each at least 0"),
        ({"weights": {"bc": -2.0}}, "weights=.* must be one or more numbers, each at least 0"),
        ({"weights": {"data": 2.0}}, "by the names of the losses, bc, ic, pde; got data"),
        ({"frequencies": -1}, "frequencies=-1 must be at least 0"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"method": "osgd", "order": "a,b,c"}, "order=.* must name each of the losses 'bc', 'ic'"),
        ({"method": "osgd", "order": "upwards"}, "order='upwards' is unknown"),
        ({"method": "pcd", "order": "random"}, "order='random' must be first_to_last, last_to"),
        ({"tau": 1.5}, "tau=1.5 must be at least 0 and at most 1"),
    ],
)
def test_wrong_settings_are_named(changes, words):
    def take_a_step():
        trainer = _trainer(**changes)
        jax.eval_shape(lambda: trainer.advance(trainer.start(0, 1e-3), 1e-3, 0, 1))

    with pytest.raises(ValueError, match=words):
        take_a_step()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    printed = refuse("pinn", *_RUN, "--learning-rate", "1e30", "--workdir", tmp_path)
    assert "is not finite at step 2; the last checkpoint" in printed
