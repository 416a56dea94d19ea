"""Training on text: what examples are, and a run."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.app import data, methods
from experiments.app.nets import Sizes, make_net
from tests.experiments.running import finish, finish_apart, metrics, parameters, refuse

RUN = ("--net", "width-nested-transformer", "--outputs", "2", "--width", "16", "--heads", "2")
RUN += ("--depth", "1", "--text-length", "16", "--batch-size", "8", "--log-every", "20")


def load(name, **kwargs):
    return data.load(data.Source(name, **kwargs))


def test_labels_are_the_tokens_that_follow_and_parts_share_none(tmp_path):
    text = bytes(range(32, 232)) + b"end"
    files = text[:100], text[100:]
    for name, content in zip(("a.txt", "b.txt"), files, strict=True):
        (tmp_path / name).write_bytes(content)
    found = load(f"text:{tmp_path}", text_length=5, validation_fraction=0.2)
    # Each file is cut: 60 or 63 bytes, 20 and 20.
    parts = (
        (found.train, files[0][:60] + b"\n\n" + files[1][:63]),
        (found.validation, files[0][60:80] + b"\n\n" + files[1][63:83]),
        (found.test, files[0][80:] + b"\n\n" + files[1][83:]),
    )
    for split, part in parts:
        assert split.size == (len(part) - 1) // 5
        assert bytes(split.inputs.astype(np.uint8)) == part[: 5 * split.size]
        assert bytes(split.labels.astype(np.uint8)) == part[1 : 5 * split.size + 1]
    digest = hashlib.sha256(b"".join(part for _, part in parts)).hexdigest()
    assert digest[:16] in found.about
    assert found.num_classes == 256


@pytest.mark.parametrize("suffix", ["npy", "bin"])
def test_ids_of_a_tokenizer(tmp_path, suffix):
    ids = np.random.default_rng(0).integers(0, 500, 300).astype(np.uint16)
    ids[7] = 499
    path = tmp_path / f"ids.{suffix}"
    np.save(path, ids) if suffix == "npy" else ids.tofile(path)
    found = load(f"text:{path}", text_length=10)
    assert found.num_classes == 500
    np.testing.assert_array_equal(found.train.inputs.ravel(), ids[: found.train.inputs.size])


def test_pythons_help_is_large_enough():
    found = load("pydoc")
    assert found.train.inputs.size > 300_000
    assert b"statement" in bytes(found.train.inputs.astype(np.uint8))


def test_wrong_texts_are_named(tmp_path):
    with pytest.raises(ValueError, match="must be a file or folder that is there"):
        load(f"text:{tmp_path / 'none'}")
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ValueError, match="has 9 tokens, too few for three parts of 129 each"):
        load(f"text:{tmp_path / 'short.txt'}")
    np.save(tmp_path / "floats.npy", np.zeros(4))
    with pytest.raises(ValueError, match="must hold token ids, integers"):
        load(f"text:{tmp_path / 'floats.npy'}")


def test_nets_and_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="net=depth-nested does not take pydoc; use one of branch"):
        make_net(Sizes(), load("pydoc"), nnx.Rngs(0))
    with pytest.raises(ValueError, match="net=nested-transformer does not take digits"):
        make_net(Sizes("nested-transformer"), load("digits"), nnx.Rngs(0))
    with pytest.raises(ValueError, match="net=nested has no width; its sizes are widths, blocks"):
        Sizes("nested", width=8)
    with pytest.raises(ValueError, match="net=nested-transformer has no widths; its sizes are wid"):
        Sizes("nested-transformer", widths=(8,))


def test_adamw_decays_matrices_but_no_norms_and_embeddings():
    settings = methods.Settings("sgd", update="adamw", weight_decay=0.5)
    step = methods.method(settings).optimizer(0.1)
    params = {
        "embedding": {"table": jnp.ones((2, 2))},
        "norm": jnp.ones(2),
        "out": jnp.ones((2, 2)),
    }
    updates, _ = step.update(jax.tree.map(jnp.zeros_like, params), step.init(params), params)
    for name, expected in (("norm", 0), ("embedding", 0), ("out", -0.05)):
        for leaf in jax.tree.leaves(updates[name]):
            np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def options(folder, epochs):
    path = folder / "text.txt"
    path.write_text("the cat sat on the mat and " * 300)
    chosen = ("--data", f"text:{path}", *RUN, "--optimizer", "sgd", "--update", "adamw")
    return (*chosen, "--learning-rate", "0.01", "--schedule", "constant", "--epochs", epochs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with the workdir `run` of 150 steps on one device, without a stop."""
    folder = tmp_path_factory.mktemp("text")
    printed = finish("train", *options(folder, 3), "--workdir", folder / "run")
    assert "SHA-256" in printed
    assert "output 2 writes: 'the cat sat " in printed
    return folder


def test_a_run_on_text(trained):
    summary = json.loads((trained / "run" / "summary.json").read_text())
    records = metrics(trained / "run")
    assert max(summary["test_bits_per_token"]) < 1.5  # of 8, and 3.3 for single letters
    validated = records[-1]["validation_losses"]
    np.testing.assert_allclose(summary["test_bits_per_token"], np.array(validated) / np.log(2), 0.1)
    assert "a net for text" in refuse("export", trained / "run")


def test_evaluation_of_a_text_is_by_deadlines(trained):
    finish("evaluate", trained / "run", "--texts", "3")
    found = json.loads((trained / "run" / "evaluation.json").read_text())
    bits = [output["bits_per_token"] for output in found["outputs"]]
    tested = json.loads((trained / "run" / "summary.json").read_text())["test_bits_per_token"]
    np.testing.assert_allclose(bits, tested, 1e-5)
    for row in found["deadlines"]:
        np.testing.assert_allclose(sum(row["exit_shares"]), 1)
        assert min(bits) <= row["bits_per_token"] <= max(bits)
    assert (trained / "run" / "evaluation.png").stat().st_size > 10_000


def test_a_run_on_text_goes_on_where_it_stopped(trained):
    for epochs in (1, 3):
        finish("train", *options(trained, epochs), "--workdir", trained / "again")
    assert metrics(trained / "again") == metrics(trained / "run")
    for found, wanted in zip(
        parameters(trained / "again"), parameters(trained / "run"), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_eight_devices_give_what_one_gives_on_text(trained):
    flags = "--xla_force_host_platform_device_count=8"
    workdir = trained / "eight"
    finish_apart("train", *options(trained, 1), "--workdir", workdir, XLA_FLAGS=flags)
    together = metrics(workdir)
    assert [record["step"] for record in together] == [20, 40, 50]
    alone = metrics(trained / "run")
    for found, wanted in zip(together, alone, strict=False):
        np.testing.assert_allclose(found["losses"], wanted["losses"], rtol=2e-3)
        np.testing.assert_allclose(found["task_cosines"], wanted["task_cosines"], atol=2e-3)
