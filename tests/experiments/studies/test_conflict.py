"""The study of conflict: its Gramians, a small run of each kind, and its table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lab.store import Store
from experiments.lab.sweep import Run
from experiments.pinn.problems import PROBLEMS as EQUATIONS
from experiments.pinn.training import Solver, SolverSettings
from experiments.studies import conflict
from experiments.studies.anytime.problems import NetProblem

_TINY = NetProblem(
    "tiny", "branched", widths=(4, 4), train_size=40, batch_size=20, epochs=2, outputs=2
)


@pytest.fixture(scope="module")
def runs():
    """Return nets on few sequences, and on fresh ones, in a group of two."""
    config = conflict.Config(seeds=2, fresh=40)
    return conflict._net(_TINY, config), conflict._fresh(_TINY, config)


def _rows(trainer, state, split, net):
    """Return the gradients of each batch by the first stage's parameters, flat, in float64."""
    params, rest = (
        jax.tree.map(lambda leaf: leaf[net], each) for each in (state.params, state.rest)
    )
    losses = jax.jit(jax.jacrev(lambda p, batch: jnp.stack(trainer.losses(p, rest, batch))))
    rows = []
    for start in range(0, split.size, trainer.batch_size):
        batch = trainer.batch(*split.read(np.arange(start, start + trainer.batch_size)))
        leaves = jax.tree.leaves(losses(params, batch)["stages"][0])
        rows.append(np.concatenate([np.reshape(leaf, (2, -1)) for leaf in leaves], axis=1))
    return np.array(rows, float)


@pytest.mark.parametrize("fresh", [False, True])
def test_gramians_are_of_single_batches_and_of_true_gradients(runs, fresh):
    of = runs[fresh]
    state, _ = of.trainer.start([Run(0, 0.1), Run(1, 0.1)])
    seen = of._look(state)
    first, second = of._fresh or (of.trainer.dataset.train, of.trainer.dataset.train)
    for net in range(2):
        one, other = (_rows(of.trainer, state, split, net) for split in (first, second))
        same = np.mean([rows @ rows.T for rows in one], axis=0)
        np.testing.assert_allclose(seen.same[net], same, rtol=1e-4, atol=1e-5)
        cross = one.mean(axis=0) @ other.mean(axis=0).T
        np.testing.assert_allclose(seen.cross[net], (cross + cross.T) / 2, rtol=1e-4, atol=1e-5)


def test_gramians_of_an_equation_are_of_two_sets_of_points():
    sizes = {"width": 4, "layers": 1, "points": 10, "edge_points": 4, "steps": 40}
    solver = Solver(EQUATIONS["helmholtz"], SolverSettings(**sizes))
    ((group, looks),) = conflict.EquationRuns(solver, draws=3)([Run(0, 1e-2), Run(1, 1e-2)])
    assert len(group) == 2
    assert [look.same.shape for look in looks] == [(2, 2, 2)] * 3
    # Noise adds to the squared norms of single batches.
    for look in looks:
        assert (
            np.trace(look.same, axis1=1, axis2=2) > np.trace(look.cross, axis1=1, axis2=2)
        ).all()
    # The steps between looks are those of a training in one piece.
    whole = jax.jit(functools.partial(solver.advance, first=0, count=40))(
        solver.start(1, 1e-2), 1e-2
    )
    keys = jax.random.split(jax.random.key(0), (2, 3))
    alone = conflict.EquationRuns(solver, draws=3)
    state = jax.tree.map(lambda leaf: leaf[None], whole)
    again = conflict.look(alone._gradients, state, *keys)
    np.testing.assert_allclose(again.cross[0], looks[-1].cross[1], rtol=1e-2, atol=1e-4)


def test_a_problem_is_trained_and_drawn_once(tmp_path, monkeypatch):
    problems = {"few": (functools.partial(conflict._net, _TINY), "sgd")}
    monkeypatch.setattr(conflict, "PROBLEMS", problems)
    config = conflict.Config(seeds=2, output=tmp_path / "rows.jsonl.gz")
    reported = []
    (table,) = conflict.work(config, reported.append)
    assert reported == ["few sgd test"]
    assert [row[1] for row in table.rows] == ["beginning", "middle", "end"]
    rows = Store(config.output).of("few", "sgd")
    assert np.shape([row["cross"] for row in rows]) == (2, 3, 2, 2)
    written = config.output.read_bytes()
    assert conflict.work(config, reported.append) == [table]
    assert (len(reported), config.output.read_bytes()) == (1, written)
    assert (tmp_path / "unbiased_cosines.png").stat().st_size > 5000


def test_the_table_shows_medians_and_what_is_decided(monkeypatch):
    monkeypatch.setattr(conflict, "PROBLEMS", {"few": (None, "sgd")})
    cosines, store = [-0.5, -0.4, -0.6, -0.5, -0.45, -0.55], Store(None)
    for seed, cosine in enumerate(cosines):
        same = [[[4.0, 2.0], [2.0, 4.0]]] * 3
        cross = [[[1.0, cosine], [cosine, 1.0]]] * 2 + [[[-1.0, 0.5], [0.5, 1.0]]]
        key = {"problem": "few", "method": "sgd", "stage": "test", "learning_rate": 0.2}
        store.add([key | {"seed": seed, "same": same, "cross": cross}])
    (table,) = conflict.tables(store)
    seen = ["few", "beginning", 6, "+0.50", "-0.50", "0, 1, 0", "4 to 4"]
    assert list(table.rows[0]) == seen
    # A squared norm below zero is no length.
    assert table.rows[2][4:6] == ("–", "0, 0, 1")


def test_unknown_problems_and_missing_images_are_named():
    with pytest.raises(ValueError, match=r"problems={'mnist'} are unknown; use some of mnist1d-w"):
        conflict.Config(problems=("mnist",))
    with pytest.raises(ValueError, match="cifar-width needs --cifar10-jpeg"):
        conflict.PROBLEMS["cifar-width"][0](conflict.Config())
