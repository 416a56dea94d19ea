"""The study of language models: the nets that it makes for itself, a small run, and its tables."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.app.data import Split
from experiments.lab.store import Store
from experiments.studies.language import ngrams, tables
from experiments.studies.language.__main__ import Config, work
from experiments.studies.language.ways import MatFormer
from tests.nets.small_nets import randomise


def test_outputs_of_matformer_are_nets_without_the_later_units():
    sizes = {"vocab_size": 5, "width": 8, "num_heads": 2, "depth": 1, "mlp_ratio": 2}
    net = randomise(MatFormer((0.25, 1.0), **sizes, rngs=nnx.Rngs(0)))
    x = jnp.asarray([[0, 3, 1, 4]])
    run = nnx.jit(lambda net, x: net(x))
    small, whole = run(net, x)
    (plain,) = nnx.jit(lambda net, x: net(x))(net.net, x)
    np.testing.assert_allclose(whole, plain, rtol=1e-5, atol=1e-5)
    assert not np.allclose(small, whole)
    for layer in net.net.stages[0].layers:
        layer.mlp.out.kernel[...] = layer.mlp.out.kernel[...].at[4:].set(0)
    np.testing.assert_allclose(run(net, x), [small, small], rtol=1e-5, atol=1e-5)


def test_a_way_is_tuned_tested_and_drawn_once(tmp_path):
    config = Config(
        ways=("branched",),
        length=8,
        batch_size=4,
        train_size=8,
        tuning_seeds=1,
        test_seeds=2,
        looks=2,
        output=tmp_path / "rows.jsonl.gz",
    )
    reported = []
    shown = work(config, reported.append)
    assert reported == ["pydoc branched tune", "pydoc branched test"]
    store = Store(config.output)
    rows = store.of("pydoc", "branched")
    validation = {r["learning_rate"]: np.mean(r["validation"]) for r in rows if "validation" in r}
    assert len(validation) == 3
    (look,) = tables.rows_of(store)
    assert look["learning_rate"] == min(validation, key=validation.__getitem__)
    assert np.shape(look["bits"]) == (2, 3)
    assert np.shape(look["cosines"]) == (2, 3, 3)
    np.testing.assert_allclose(np.asarray(look["cosines"])[:, range(3), range(3)], 1, rtol=1e-5)
    assert -1 <= look["least_cosine"] <= 1
    assert look["multiply_adds"] == sorted(look["multiply_adds"])
    (counted,) = store.of("pydoc", "n-grams")
    assert len(counted["bits"]) == 5
    # Everything is read the second time.
    written = config.output.read_bytes()
    assert [table.rows for table in work(config, reported.append)] == [t.rows for t in shown]
    assert (len(reported), config.output.read_bytes()) == (2, written)
    assert (tmp_path / "language_bits.png").stat().st_size > 10_000


def test_balances_are_held_against_the_sum_with_the_same_optimizer():
    def row(way, bits):
        seen = {"alignment": -0.25, "least_cosine": -0.5, "opposed": 0.75}
        costs = {"multiply_adds": [1e3, 2e3, 3e3], "parameters": [1e3] * 3, "gflop": 0.5}
        return {"way": way, "bits": bits, "learning_rate": 0.1, **seen, **costs}

    rows = [
        row("width", [[3.0, 2.0, 1.0], [4.0, 3.0, 2.0]]),
        row("width, pcd, adamw", [[2.5, 2.0, 1.5], [3.5, 3.0, 2.5]]),
        row("width, sum, sgd", [[5.0] * 3] * 2),
        row("width, pcd, sgd", [[6.0] * 3] * 2),
        # Of equal multiply-adds as output 2, within 3 %, and not.
        row("branched, output 2 alone", [[2.5], [2.5]]) | {"multiply_adds": [2.03e3]},
        row("width, output 3 alone", [[2.5], [2.5]]) | {"multiply_adds": [3.1e3]},
    ]
    builders = (tables.bits_table, tables.alone_table, tables.balances_table, tables.conflict_table)
    made = [*(build(rows) for build in builders), tables.ngrams_table([2.0, 1.5])]
    bits, alone, balances, conflict, counted = [
        [list(map(str, row)) for row in table.rows] for table in made
    ]
    assert bits[0][2] == "1 2 3"
    assert bits[2][3] == "5.000 ± 0.000, 5.000 ± 0.000, 5.000 ± 0.000"
    assert [row[:3] for row in alone] == [["width", "2", "branched, output 2 alone"]]
    assert alone[0][3].startswith("+0.000 ± ")
    assert counted == [["2.000", "1.500"]]
    assert balances == [
        ["pcd", "adamw", *["+0.000 ± 0.000", "-0.500 ± 0.000", "+0.000 ± 0.000", "+0.500 ± 0.000"]],
        ["pcd", "sgd", *["+1.000 ± 0.000"] * 4],
    ]
    seen = ["-0.25", "-0.50", "75%"]
    assert conflict == [["width", *seen], ["width, sum, sgd", *seen]]


def test_ngrams_are_mixed_with_shorter_ones():
    # Four tokens, of which 0 is followed by 1 and 2, and 1 by 0; 3 is never seen.
    train = Split(np.array([[0, 1, 0], [1, 0, 0]]), np.array([[1, 0, 1], [0, 2, 2]]))
    test = Split(np.array([[0], [3]]), np.array([[1], [2]]))
    found = ngrams.bits(train, test, vocab_size=4, order=3)
    single = {token: (count + 3 / 4) / (6 + 3) for token, count in {0: 2, 1: 2, 2: 2}.items()}
    # Of what follows 0: 1 twice, 2 twice. Nothing is known of what follows 3.
    pairs = [(2 + 2 * single[1]) / (4 + 2), single[2]]
    wanted = [-np.mean(np.log2([single[1], single[2]])), -np.mean(np.log2(pairs))]
    np.testing.assert_allclose(found, [*wanted, wanted[1]], rtol=1e-12)


def test_chances_of_an_ngram_add_up_to_one():
    text = np.random.default_rng(0).integers(0, 5, (2, 20))
    train = Split(text[:, :-1], text[:, 1:])
    for before in range(5):
        tests = [Split(np.array([[before]]), np.array([[token]])) for token in range(5)]
        spent = [ngrams.bits(train, test, vocab_size=5, order=2) for test in tests]
        np.testing.assert_allclose(np.sum(2.0 ** -np.array(spent), axis=0), 1)
