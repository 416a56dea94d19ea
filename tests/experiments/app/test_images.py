"""Image folders that are not as they should be, and augmentation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.app import data
from experiments.app.augmentation import Augmentation, prepare
from experiments.app.data import from_folder
from experiments.app.data.splits import make_image_dataset
from tests.experiments.running import finish


@pytest.fixture
def folder(tmp_path):
    """Twelve images of each of two classes, of several sizes and formats, none of them alike."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(12):
            pixels = rng.integers(0, 256, (10 + index, 12, 3), np.uint8)
            ending = ("png", "bmp", "ppm")[index % 3]
            Image.fromarray(pixels).save(tmp_path / name / f"{index:02}.{ending}")
    return tmp_path


def _load(folder, **options):
    return data.load(data.Source(f"folder:{folder}", validation_fraction=0.25, **options))


def test_images_of_any_size_and_format_are_cut_to_one_size(folder):
    dataset = _load(folder, image_size=8)
    assert dataset.train.inputs.shape[1:] == (8, 8, 3)
    assert dataset.train.size + dataset.validation.size + dataset.test.size == 24
    lazy = _load(folder, image_size=8, resident_megabytes=0)
    for part in ("train", "validation", "test"):
        memory = getattr(dataset, part)
        read = getattr(lazy, part).read(np.arange(memory.size))
        np.testing.assert_array_equal(read.inputs, memory.inputs)
        np.testing.assert_array_equal(read.labels, memory.labels)
        assert lazy.files[part] == dataset.files[part]
        for index, file in enumerate(dataset.files[part]):
            image = data.images.read_image(folder / file, dataset.input_shape, dataset.dtype)
            np.testing.assert_array_equal(image, memory.inputs[index])
            assert file.split("/")[0] == dataset.classes[memory.labels[index]]


def test_a_corrupt_image_stops_with_its_name_or_is_left_out(folder, capsys):
    broken = folder / "dog" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"dog/03.png is no readable image.*--skip-corrupt"):
        _load(folder, image_size=8)
    dataset = _load(folder, image_size=8, skip_corrupt=True)
    assert dataset.train.size + dataset.validation.size + dataset.test.size == 23
    for part, files in dataset.files.items():
        assert len(files) == getattr(dataset, part).size
        assert "dog/03.png" not in files
    printed = capsys.readouterr().err
    assert "dog/03.png" in printed
    assert "Left out 1 unreadable images" in printed
    lazy = _load(folder, image_size=8, skip_corrupt=True, resident_megabytes=0)
    for part in (lazy.train, lazy.validation, lazy.test):
        assert part.read(np.arange(part.size)).inputs.shape == (part.size, 8, 8, 3)


def test_a_label_out_of_range_is_refused_with_the_place_of_its_image(folder):
    found = from_folder.open_splits(folder)
    source = found.sources["train"]
    labels = tuple(-1 if path.name == "05.ppm" else 0 for path in source.paths)
    unlabelled = dataclasses.replace(source, labels=labels)
    found = dataclasses.replace(found, sources={"train": unlabelled})

    def read(resident):
        settings = data.Source(validation_fraction=0.25, resident_megabytes=resident)
        made = make_image_dataset(settings, found)
        for split in (made.train, made.validation, made.test):
            split.read(np.arange(split.size))

    for resident in (0, 2000):
        with pytest.raises(ValueError, match=r"05.ppm has label -1, out of range for 2 classes"):
            read(resident)


def test_empty_folders_and_single_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no images"):
        _load(tmp_path)
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "1.png")
    with pytest.raises(ValueError, match="has 1 class"):
        _load(tmp_path)


def test_a_class_that_is_only_tested_is_refused(folder):
    (folder / "train").mkdir()
    (folder / "cat").rename(folder / "train" / "cat")
    (folder / "test").mkdir()
    (folder / "dog").rename(folder / "test" / "dog")
    with pytest.raises(ValueError, match=r"has classes that .* lacks: dog"):
        _load(folder)


def test_batches_see_every_example_once_an_epoch_wherever_they_begin_and_whoever_reads():
    split = data.Split(np.arange(12.0)[:, None], np.arange(12, dtype=np.int32))
    whole = [batch.labels for batch in data.Batches(3, 4, 6).examples(split)]
    for epoch in (whole[:3], whole[3:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(12))
    assert not np.array_equal(whole[:3], whole[3:])
    later = [batch.labels for batch in data.Batches(3, 4, 6).examples(split, start=2)]
    np.testing.assert_array_equal(later, whole[2:])
    np.testing.assert_array_equal(list(data.Batches(3, 4, 6).indices(12)), whole)
    parts = [list(data.Batches(3, 4, 6, (index, 2)).indices(12)) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_a_slow_source_does_not_stall_until_what_was_read_ahead_is_used_up():
    import time

    class Slow(data.Split):
        def read(self, indices):
            time.sleep(0.05)
            return super().read(indices)

    order = data.Batches(0, 2, 40)
    batches = order.examples(Slow(np.zeros((4, 1)), np.zeros(4, np.int32)))
    next(batches)
    time.sleep(0.3)  # read-ahead fills up
    before = order.waited
    for _ in range(4):
        next(batches)
    assert order.waited - before < 0.05
    for _ in range(30):
        next(batches)
    assert order.waited - before > 0.05


# On a busy machine grain may still hold a batch when the process ends, and says so then.
@pytest.mark.slow
def test_workers_leave_no_shared_memory_behind(folder, tmp_path):
    options = ("--net", "width-nested", "--outputs", "2", "--widths", "4", "--batch-size", "5")
    options += ("--data", f"folder:{folder}", "--resident-megabytes", "0", "--workers", "2")
    options += ("--image-size", "8", "--epochs", "2", "--validation-fraction", "0.25")
    printed = finish("train", *options, "--workdir", tmp_path / "run")
    assert "leaked" not in printed
    assert "Warning" not in printed


def _augment(images, **options):
    dataset = data.Dataset("x", 4, None, None, None, images.shape[1:])
    split = data.Split(images, np.arange(len(images), dtype=np.int32) % 4)
    return jax.jit(lambda key: prepare(dataset, Augmentation(**options), split, key))


_IMAGES = np.random.default_rng(0).normal(1, 1, (64, 6, 6, 2)).astype(np.float32)


def test_flip_mirrors_about_half_of_the_images():
    out = np.asarray(_augment(_IMAGES, flip=True)(jax.random.key(0)).inputs)
    mirrored = (out == _IMAGES[:, :, ::-1]).all((1, 2, 3))
    same = (out == _IMAGES).all((1, 2, 3))
    assert (mirrored ^ same).all()
    assert 16 < mirrored.sum() < 48


def test_pad_crop_shows_every_shift_of_the_padded_image():
    out = np.asarray(_augment(_IMAGES, pad_crop=1)(jax.random.key(0)).inputs)
    padded = np.pad(_IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [
        [np.array_equal(each, pad[y : y + 6, x : x + 6]) for y in range(3) for x in range(3)]
        for each, pad in zip(out, padded, strict=True)
    ]
    assert (np.sum(shifts, axis=1) == 1).all()
    assert (np.sum(shifts, axis=0) > 0).all()


def test_label_smoothing_spreads_a_share_over_all_classes():
    batch = _augment(_IMAGES, label_smoothing=0.2)(jax.random.key(1))
    np.testing.assert_array_equal(batch.inputs, _IMAGES)
    labels = np.arange(len(_IMAGES)) % 4
    np.testing.assert_allclose(batch.targets, 0.8 * np.eye(4)[labels] + 0.05, rtol=1e-6)


def test_resized_crop_of_the_whole_area_keeps_a_constant_image_and_others_in_range():
    constant = np.full((8, 6, 6, 2), 2.0, np.float32)
    out = _augment(constant, resized_crop=0.3)(jax.random.key(0)).inputs
    np.testing.assert_allclose(out, 2.0, rtol=1e-5)
    ramp = np.broadcast_to(np.arange(6.0, dtype=np.float32)[None, :, None, None], (8, 6, 6, 1))
    out = np.asarray(_augment(ramp, resized_crop=0.3)(jax.random.key(0)).inputs)
    assert out.min() >= -1e-5
    assert out.max() <= 5 + 1e-5
    slopes = jnp.diff(out, axis=1)[:, 2, 0, 0]
    assert (slopes > 0.2).all()
    assert (slopes <= 1.001).all()
