"""Fashion-MNIST through tensorflow_datasets and CIFAR-10 (JPEG) as a folder, cut down."""

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from experiments.app import data
from tests.experiments.running import environment, finish, refuse, summary

_DATA = Path(__file__).parents[4] / "shared" / "data"
_SMALL = ("--net", "width-nested", "--outputs", "2", "--widths", "4", "--batch-size", "50")
_SMALL += ("--train-size", "400", "--epochs", "2")


def _skip_without_packages():
    for package in ("tensorflow", "tensorflow_datasets", "array_record"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}: pip install 'osgd-jax[data]'")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder of 60 training and 20 test images of each class."""
    archive = _DATA / "cifar10_jpeg" / "cifar10_jpeg.tar.xz"
    if not archive.exists():
        pytest.skip(f"needs {archive}")
    folder, counts = tmp_path_factory.mktemp("cifar"), {}
    with tarfile.open(archive) as files:
        for member in files:
            kind = str(Path(member.name).parent)
            counts[kind] = counts.get(kind, 0) + member.isfile()
            if member.isfile() and counts[kind] <= (60 if kind.startswith("train") else 20):
                files.extract(member, folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """Where Fashion-MNIST is prepared."""
    if not (_DATA / "fashion_mnist").is_dir():
        pytest.skip(f"needs {_DATA / 'fashion_mnist'}")
    _skip_without_packages()
    folder = tmp_path_factory.mktemp("tfds")
    options = ("--data", "tfds:fashion_mnist", "--data-dir", folder)
    options += ("--manual-dir", _DATA / "fashion_mnist", "--workdir", folder / "run")
    finish("train", *_SMALL, *options, "--pad-crop", 2)
    return folder


# Reading in a process in which TensorFlow cannot be found.
_WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] != "tensorflow":
            return PathFinder.find_spec(name, path, target)
sys.meta_path = [Finder if each is PathFinder else each for each in sys.meta_path]
from experiments import train
train.main()
"""


@pytest.mark.slow
def test_fashion_mnist_is_prepared_and_read_without_tensorflow(fashion):
    assert (fashion / "run" / "summary.json").exists()
    options = ("--data", "tfds:fashion_mnist", "--data-dir", fashion, "--resident-megabytes", "0")
    command = [sys.executable, "-c", _WITHOUT_TENSORFLOW, *_SMALL, *options, "--pad-crop", "2"]
    ran = subprocess.run(
        [*map(str, command), "--workdir", str(fashion / "streamed")],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    # Read while training or once, without TensorFlow or with it: the same numbers.
    assert summary(fashion / "streamed") == summary(fashion / "run")


@pytest.mark.slow
def test_what_is_not_prepared_needs_tensorflow_and_says_so(fashion):
    options = ("--data", "tfds:mnist", "--data-dir", str(fashion), "--workdir", str(fashion / "x"))
    ran = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TENSORFLOW, *_SMALL, *options],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert ran.returncode != 0
    assert "pip install 'osgd-jax[data]'" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_an_archive_that_must_be_downloaded_by_hand_is_asked_for(tmp_path):
    _skip_without_packages()
    printed = refuse(
        *("train", *_SMALL, "--data", "tfds:imagenet2012", "--workdir", tmp_path / "run"),
        *("--data-dir", tmp_path / "data", "--manual-dir", tmp_path),
    )
    assert f"tfds:imagenet2012 could not be prepared: {tmp_path}/ILSVRC2012_img_val.tar" in printed
    assert "give --manual-dir FOLDER" in printed


@pytest.mark.slow
def test_an_unknown_name_is_refused(fashion):
    printed = refuse(
        *("train", *_SMALL, "--data", "tfds:no_such_set", "--workdir", fashion / "x2"),
        *("--data-dir", fashion),
    )
    assert "knows no data set 'no_such_set'" in printed


def test_a_folder_streamed_by_workers_gives_what_one_in_memory_gives(tmp_path, cifar):
    options = (*_SMALL, "--data", f"folder:{cifar}", "--pad-crop", 4, "--flip")
    finish("train", *options, "--workdir", tmp_path / "memory")
    for name, workers in (("threads", 0), ("processes", 1)):
        reading = ("--resident-megabytes", 0, "--workers", workers)
        finish("train", *options, *reading, "--workdir", tmp_path / name)
        first, second = summary(tmp_path / name), summary(tmp_path / "memory")
        np.testing.assert_allclose(first["final_losses"], second["final_losses"], rtol=1e-4)
        assert first["multiply_adds"] == second["multiply_adds"]


@pytest.mark.slow
def test_a_recipe_is_rehearsed_on_real_images(tmp_path, cifar):
    # 450 images are one in a hundred of the recipe's.
    rehearsal = ("--train-size", 450, "--epochs", 2, "--workdir", tmp_path)
    printed = finish("train", "--recipe", "cifar_branched", "--data", f"folder:{cifar}", *rehearsal)
    assert f"cifar_branched on folder:{cifar}" in " ".join(printed.split())
    found = summary(tmp_path)
    assert found["steps"] == 2 * (450 // 64)
    assert all(0 <= accuracy <= 1 for accuracy in found["test_accuracy"])


def test_a_folder_is_cut_into_disjoint_splits_and_standardised(cifar):
    dataset = data.load(data.Source(f"folder:{cifar}"))
    assert (dataset.train.size + dataset.validation.size, dataset.test.size) == (600, 200)
    assert 30 < dataset.validation.size < 90
    assert dataset.input_shape == (32, 32, 3)
    assert dataset.num_classes == 10
    inputs = dataset.standardise(dataset.train.inputs)
    np.testing.assert_allclose(inputs.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(inputs.std((0, 1, 2)), 1, atol=1e-3)
    seen = [
        {image.tobytes() for image in split.inputs}
        for split in (dataset.train, dataset.validation, dataset.test)
    ]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    again = data.load(data.Source(f"folder:{cifar}"))
    np.testing.assert_array_equal(dataset.validation.labels, again.validation.labels)
