"""The study of trades: its nets, a small run, and its tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import osgd_jax
from experiments.lab import sequences
from experiments.lab.store import Store
from experiments.studies import trade

_PROBLEM = "dense, 1,000"


def test_splits_have_no_sequence_in_common_and_a_larger_set_goes_on_from_a_smaller_one():
    before = np.random.get_state()[1].copy()
    small, large = sequences.load(20, 30), sequences.load(40, 30)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    drawn = [sequences.draw(*each).inputs for each in ((20, 0), (40, 0))]
    np.testing.assert_array_equal(drawn[1][:20], drawn[0])
    every = np.concatenate([split.inputs for split in (large.train, large.validation, large.test)])
    assert len(np.unique(every.round(4), axis=0)) == 100
    for dataset in (small, large):
        assert abs(dataset.train.inputs.mean()) < 1e-5
        assert abs(dataset.train.inputs.std() - 1) < 1e-5
    assert np.bincount(large.train.labels).tolist() == [4] * 10


@pytest.mark.parametrize("net", [20, "width-nested"])
def test_a_later_output_sends_gradients_to_earlier_stages_unless_they_are_detached(net):
    dataset = sequences.load(20, 10)
    for detached in (False, True):
        made = trade.make(trade.Problem(net, 20), detached, dataset, nnx.Rngs(0))
        if net == 20:
            # 20, 40 and 80 units after 40 inputs, with a classifier of ten classes each.
            counts = [p.size for p in jax.tree.leaves(nnx.state(made, nnx.Param))]
            assert sum(counts) == 41 * 20 + 21 * 40 + 41 * 80 + 10 * (21 + 41 + 81)
        graphdef, params, rest = nnx.split(made, nnx.Param, ...)

        def losses(params, graphdef=graphdef, rest=rest):
            logits = nnx.merge(graphdef, params, rest, copy=True)(jnp.asarray(dataset.train.inputs))
            return [each.mean() for each in logits]

        reached = jax.tree_util.tree_flatten_with_path(
            osgd_jax.reach(losses)(params), is_leaf=lambda node: isinstance(node, tuple)
        )[0]
        for path, (first, *_) in reached:
            assert first == path[[str(key) for key in path].index("['stages']") + 1].key
        assert any(len(tasks) > 1 for _, tasks in reached) != detached


def test_methods_are_what_their_names_say():
    grads = {"w": jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])}
    weighted = trade.method("first × 10").balance
    direction, _ = weighted.update(grads, weighted.init({"w": jnp.zeros(2)}))
    np.testing.assert_allclose(direction["w"], [11, 3], rtol=1e-6)
    last = trade.method("osgd, last to first").balance
    direction, _ = last.update(grads, last.init({"w": jnp.zeros(2)}))
    np.testing.assert_allclose(direction["w"], [1, 2], rtol=1e-6)
    for name, norm in (("sum", 50.0), ("sum, clipped", 1.0), ("output 2 alone", 1.0)):
        tx = trade.method(name).optimizer(1.0)
        step, _ = tx.update({"w": jnp.array([30.0, 40.0])}, tx.init({"w": jnp.zeros(2)}))
        # The first step of Nesterov momentum of 0.9 is 1.9 times the gradient.
        np.testing.assert_allclose(jnp.linalg.norm(step["w"]), 1.9 * norm, rtol=1e-5)
    assert [trade.method(name).output for name in ("pcd", *trade.ALONE)] == [None, 0, 1, 2]


def test_a_run_is_tuned_tested_and_drawn_once(tmp_path):
    config = trade.Config(
        problems=(_PROBLEM,),
        methods=("sum, clipped", "output 3 alone"),
        rates=(0.1, 0.3),
        tuning_seeds=1,
        test_seeds=2,
        steps=15,
        held_out=50,
        output=tmp_path / "rows.jsonl.gz",
    )
    reported = []
    first = trade.work(config, reported.append)
    assert len(reported) == 4
    store = Store(config.output)
    rows = store.of(_PROBLEM, "sum, clipped")
    tuned = {r["learning_rate"]: np.mean(r["loss"]) for r in rows if r["stage"] == "tune"}
    tests = [row for row in rows if row["stage"] == "test"]
    assert len(tuned) == len(tests) == 2
    assert {row["learning_rate"] for row in tests} == {min(tuned, key=tuned.get)}
    assert np.shape([row["loss"] for row in tests]) == (2, 3)
    assert first[0].rows[1][3:5] == ("", "")
    written = config.output.read_bytes()
    assert [table.rows for table in trade.work(config, reported.append)] == [t.rows for t in first]
    assert (len(reported), config.output.read_bytes()) == (4, written)
    assert (tmp_path / "trade.png").stat().st_size > 5000


def _stored(**methods):
    store = Store(None, {"rates": (0.1,), "tuning_seeds": 1})
    for name, losses in methods.items():
        rows = [{"stage": "test", "seed": 1000 + k, "loss": loss} for k, loss in enumerate(losses)]
        rows.append({"stage": "tune", "seed": 0, "loss": losses[0]})
        keys = {"problem": _PROBLEM, "method": name, "learning_rate": 0.1}
        store.add(keys | row for row in rows)
    return store


def test_differences_are_paired_by_seed():
    store = _stored(
        **{
            "sum, clipped": [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]],
            "pcd": [[1.5, 2.0, 2.0], [2.5, 3.0, 3.0]],
            "output 1 alone": [[0.75], [1.75]],
            "output 2 alone": [[1.0], [2.0]],
            "output 3 alone": [[1.0], [2.0]],
        }
    )
    losses, alone, clipped = [table.rows for table in trade.tables(store)]
    assert losses[0][3:] == ("1.500", "2.500", "3.500", "2.500", 2)
    assert [row[3:] for row in losses[-2:]] == [("", "1.500", "", "", 2), ("", "", "1.500", "", 2)]
    exact = "{} ± 0.000".format
    assert alone[0] == (_PROBLEM, "sum, clipped", *map(exact, ("+0.250", "+1.000", "+2.000")))
    assert [row[1:] for row in clipped] == [
        ("pcd", *map(exact, ("+0.500", "+0.000", "-1.000", "-0.167")))
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("adam",)}, "methods={'adam'} are unknown; use some of sum; sum, clipped"),
        ({"problems": ("sparse",)}, "problems={'sparse'} are unknown; use some of dense"),
        ({"rates": (0.0,)}, "rates=.* must be one or more numbers, each above 0"),
    ],
)
def test_wrong_settings_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        trade.Config(**changes)
