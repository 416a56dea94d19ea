"""The study of growth: its data, its ways to train, a small run, and its table."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.app.data import Split
from experiments.app.nets import Sizes, make_net
from experiments.lab.store import Store
from experiments.lab.sweep import Run
from experiments.studies import growth

_SIZES = {"train_size": 200, "epochs": 4, "held_out": 50, "tuning_seeds": 1, "test_seeds": 1}


def test_the_grown_net_gets_the_same_data_more_or_new_classes():
    same, more, classes = (growth.load(kind, 50, 20) for kind in growth.DATA)
    assert [each.new.train.size for each in (same, more, classes)] == [50, 200, 50]
    assert [each.old.train.size for each in (same, more, classes)] == [50, 50, 40]
    assert (same.known, classes.known) == (10, 8)
    assert classes.old.train.labels.max() == 7
    np.testing.assert_array_equal(more.old.train.inputs, more.new.train.inputs[:50])
    np.testing.assert_array_equal(same.old.test.inputs, more.new.test.inputs)


def test_losses_are_of_labels_or_of_the_answers_before():
    rng = np.random.default_rng(0)
    logits = tuple(jnp.asarray(each, jnp.float32) for each in rng.normal(size=(5, 4, 3)))
    labels = np.array([0, 2, 1, 1])

    def entropy(k, targets):
        log_chances = np.asarray(logits[k], float)
        log_chances = log_chances - np.log(np.exp(log_chances).sum(-1, keepdims=True))
        return -(targets * log_chances).sum(-1).mean()

    def softmax(k):
        chances = np.exp(np.asarray(logits[k], float))
        return chances / chances.sum(-1, keepdims=True)

    one_hot = np.eye(3)[labels]
    wanted = {
        "frozen": [entropy(2, one_hot)],
        "held": [entropy(k, one_hot) for k in range(3)],
        "joint": [entropy(k, one_hot) for k in range(3)],
        "distilled": [entropy(0, softmax(3)), entropy(1, softmax(4)), entropy(2, one_hot)],
    }
    for way, values in wanted.items():
        found = growth.GrowthObjective(way=way).losses(logits, jnp.asarray(one_hot))
        np.testing.assert_allclose(found, values, rtol=1e-5)


def test_held_losses_are_never_stepped_along():
    grads = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32)}
    balance = growth.method("held").balance
    step, _ = balance.update(grads, balance.init({"w": jnp.zeros(6)}))
    np.testing.assert_allclose(grads["w"][:2] @ step["w"], 0, atol=1e-5)
    assert grads["w"][2] @ step["w"] > 0


@pytest.fixture(scope="module")
def nets():
    """Return a way to make trainers of grown nets, and the nets before."""
    dataset = growth.load("same", 200, 50).new
    former = {
        seed: make_net(Sizes("branched", 2, (4, 4)), dataset, nnx.Rngs(seed)) for seed in (0, 1)
    }

    def make(way):
        sizes = {"epochs": 1, "batch_size": 100, "group": 2}
        return growth.GrowthTrainer(former, way, 8, dataset, growth.method(way), **sizes)

    return make, former


def _arrays(net):
    return [[np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(s))] for s in net.stages]


def _grown(trainer, state, net):
    params, rest = jax.tree.map(lambda leaf: leaf[net], (state.params, state.rest))
    return nnx.merge(trainer.graphdef, params, rest).grown


def _same(one, other):
    return [all(map(np.array_equal, *stages)) for stages in zip(one, other, strict=False)]


@pytest.mark.parametrize("way", ["frozen", "joint"])
def test_frozen_old_stages_keep_every_array(nets, way):
    make, former = nets
    trainer, runs = make(way), [Run(0, 0.5), Run(1, 0.5)]
    begun, _ = trainer.start(runs)
    begun = [_arrays(_grown(trainer, begun, net)) for net in former]
    ended = trainer.train(runs).state
    for net, before in enumerate(begun):
        assert _same(_arrays(former[net]), before) == [True, True]
        after = _arrays(_grown(trainer, ended, net))
        assert _same(before, after) == [way == "frozen"] * 2 + [False]


def test_answers_are_counted_on_the_classes_that_the_old_outputs_know():
    # Two old outputs, the new one, and the old ones before, on four examples.
    answers = np.array([[[0, 1, 9, 9], [0, 0, 8, 8], [0, 1, 2, 8], [0, 0, 0, 0], [0, 0, 8, 0]]])
    split = Split(np.zeros((4, 1)), np.array([0, 1, 2, 9]))
    trainer = types.SimpleNamespace(
        dataset=types.SimpleNamespace(validation=split, test=None),
        group=1,
        known=8,
        answers=lambda state, inputs: answers,
    )
    (row,) = growth.measured(trainer, types.SimpleNamespace(state=None), "tune")
    third = pytest.approx(1 / 3, abs=1e-4)
    assert row["accuracy"] == [pytest.approx(2 / 3, abs=1e-4), third, 0.75]
    assert row["before"] == [third, third]
    assert row["changed"] == [pytest.approx(2 / 3, abs=1e-4), 0]


def test_a_problem_is_tuned_tested_and_drawn_once(tmp_path):
    where = {"problems": ("branched, more",), "output": tmp_path / "rows.jsonl.gz"}
    config = growth.Config(ways=("frozen",), rates=(0.1,), **where, **_SIZES)
    reported = []
    (table,) = growth.work(config, reported.append)
    assert len(reported) == 2
    (row,) = table.rows
    assert row[4:8] == ("+0.0 ± inf", "+0.0 ± inf", "0.0 %", "0.0 %")
    written = config.output.read_bytes()
    assert growth.work(config, reported.append) == [table]
    assert (len(reported), config.output.read_bytes()) == (2, written)
    tested = [r for r in Store(config.output).of("branched, more", "frozen") if r["seed"] >= 1000]
    assert len(tested) == 1
    assert tested[0]["accuracy"][:2] == tested[0]["before"]
    assert (tmp_path / "growth.png").stat().st_size > 5000
    with pytest.raises(ValueError, match=r"ways={'melted'} are unknown; use some of frozen; held"):
        growth.Config(ways=("melted",))
