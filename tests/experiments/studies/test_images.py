"""The study of images: its runs, and that a stopped one goes on."""

import json

import pytest
from flax import nnx

import osgd_jax
from experiments.app.data import Dataset
from experiments.app.nets import make_net
from experiments.lab.sweep import Run
from experiments.studies import images


def test_nets_have_about_five_million_multiply_adds():
    blank = Dataset("images", 10, None, None, None, input_shape=(32, 32, 3))
    for sizes in images.PROBLEMS.values():
        net = nnx.eval_shape(lambda sizes=sizes: make_net(sizes, blank, nnx.Rngs(0)))
        assert 4.5e6 < osgd_jax.cost(net, (32, 32, 3))[-1].multiply_adds < 5.5e6


def test_runs_differ_in_folder_length_and_weights():
    config = images.Config(epochs=24)
    tune = images.settings_of(config, "branched", "osgd", "tune", Run(0, 0.3))
    test = images.settings_of(config, "branched", "output 2 alone", "test", Run(1000, 0.1))
    assert tune.workdir.name == "branched-osgd-tune-0.3-0"
    assert test.workdir.name == "branched-output-2-alone-test-0.1-1000"
    assert (tune.run.epochs, test.run.epochs) == (8, 24)
    assert (tune.run.loss_weights, test.run.loss_weights) == (None, (0, 1, 0))
    assert (tune.method.optimizer, test.method.clip_norm) == ("osgd", 1)


def test_a_run_trains_and_is_read_the_second_time(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PROBLEMS", {"tiny": images.Sizes("branched", 3, (4,), (3,))})
    output = tmp_path / "rows.jsonl.gz"
    config = images.Config(
        problems=("tiny",), data="digits", epochs=3, batch_size=500, output=output
    )
    of = config, "tiny", "output 2 alone", "tune", Run(0, 0.1)
    row = images._trained(*of)
    log = (tmp_path / "tiny-output-2-alone-tune-0.1-0" / "metrics.jsonl").read_text()
    (last,) = map(json.loads, log.splitlines())
    assert row["accuracy"] == [pytest.approx(last["validation_accuracy"][1], abs=1e-5)]
    assert len(row["multiply_adds"]) == 1
    assert images._trained(*of) == row


def test_a_method_is_tuned_tested_and_drawn_once(tmp_path, monkeypatch):
    def train(config, problem, method, stage, run):
        assert run.seed == 0 if stage == "tune" else run.seed >= 1000
        outputs = 1 if method in images.ALONE else 3
        better = run.learning_rate == 0.3
        return {"accuracy": [0.5 + 0.1 * better] * outputs, "multiply_adds": [1, 2, 3][:outputs]}

    monkeypatch.setattr(images, "_trained", train)
    methods = ("sum", "sum, clipped", "output 2 alone")
    where = {"problems": ("branched",), "output": tmp_path / "rows.jsonl.gz"}
    reported = []
    (table,) = images.work(images.Config(methods=methods, **where), reported.append)
    assert len(reported) == 6
    assert {row[2] for row in table.rows} == {"0.3"}
    assert [row[6:] for row in table.rows] == [("+0.0 ± 0.0", 3), ("", 3), ("", 3)]
    assert table.rows[2][3:6] == ("", "60.0 ± 0.0", "")
    assert images.work(images.Config(methods=methods, **where), reported.append) == [table]
    assert len(reported) == 6
    assert (tmp_path / "images.png").stat().st_size > 5000


def test_a_rate_that_diverges_is_not_chosen(monkeypatch):
    def diverge(*_):
        raise FloatingPointError

    monkeypatch.setattr(images, "train", diverge)
    row = images._trained(images.Config(), "branched", "osgd", "tune", Run(0, 0.9))
    assert row == {"accuracy": [0.0, 0.0, 0.0]}


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"methods={'adam'} are unknown; use some of sum; sum"):
        images.Config(methods=("adam",))
