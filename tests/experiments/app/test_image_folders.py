"""Folders of images are read as their owner means them, and one line says how."""

import re
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from experiments.app import data
from experiments.app.data import from_folder, images
from tests.experiments.running import finish


def _fill(folder, classes, count=4, mode="RGB"):
    """Images of one colour each, a different one for every image of a call; return their number."""
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            shade = 40 * index + number
            colour = shade if mode == "L" else (shade, len(str(folder)) % 256, 255 - shade)
            Image.new(mode, (8, 8), colour).save(folder / name / f"{number:03}.png")


def _load(folder, **options):
    return data.load(data.Source(f"folder:{folder}", validation_fraction=0.25, **options))


def _sizes(dataset):
    return dataset.train.size, dataset.validation.size, dataset.test.size


# Folders with 8 images each: the folder of each split, those held out of the training folder aside.
_LAYOUTS = {
    (): {},
    ("train", "test"): {"test": "test/"},
    ("train", "valid"): {"validation": "valid/"},
    ("train", "val", "test"): {"validation": "val/", "test": "test/"},
    ("Training", "DEV", "Evaluation"): {"validation": "DEV/", "test": "Evaluation/"},
}


@pytest.mark.parametrize("names", _LAYOUTS)
def test_each_split_has_the_images_of_its_folder_and_the_line_says_so(tmp_path, names):
    for name in names or (".",):
        _fill(tmp_path / name, ("cat", "dog"))
    dataset = _load(tmp_path)
    words, cut = [], 0
    for split, size in zip(("train", "validation", "test"), _sizes(dataset), strict=True):
        place = _LAYOUTS[names].get(split)
        if place is None:
            assert size >= 1
            cut += size
            place = "held out of train" if split != "train" else f"{names[0]}/" if names else ""
        else:
            assert size == 8
        words.append(f"{split} {size}" + (f" ({place})" if place else ""))
    assert cut == 8
    assert {*dataset.held_out} == {"validation", "test"} - _LAYOUTS[names].keys()
    assert dataset.rule == ("by content" if dataset.held_out else "")
    count = 8 * max(1, len(names))
    assert dataset.about == (
        f"folder:{tmp_path}: 2 classes; {', '.join(words)}; images {count} RGB as 8-bit colour,"
        " 8×8."
    )
    assert dataset.classes == ("cat", "dog")
    for split, folder in _LAYOUTS[names].items():
        assert all(file.startswith(folder) for file in dataset.files[split])


_KNOWN = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@st.composite
def _names(draw):
    """A usual name, in any case, of the training split and maybe of others."""
    chosen = {}
    for split, known in _KNOWN.items():
        if split == "train" or draw(st.booleans()):
            name = draw(st.sampled_from(known))
            upper = draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
            chosen[split] = "".join(
                letter.upper() if big else letter for letter, big in zip(name, upper, strict=True)
            )
    return chosen


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(_names(), st.permutations(["cat", "Dog", "ant"]))
def test_usual_names_of_splits_are_found_in_any_case(names, classes):
    with tempfile.TemporaryDirectory() as folder:
        for name in names.values():
            _fill(Path(folder) / name, classes, count=1)
        found = from_folder.open_splits(Path(folder))
        assert found.classes == ("Dog", "ant", "cat")
        assert {split: source.place for split, source in found.sources.items()} == {
            split: f"{name}/" for split, name in names.items()
        }
        for split, source in found.sources.items():
            assert {path.parents[1].name for path in source.paths} == {names[split]}
            assert [found.classes[label] for label in source.labels] == [
                path.parent.name for path in source.paths
            ]
        assert found.left_out == ()


_CLUTTER = (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", ".git", "._cat")
_CLUTTER_FILES = (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png", ".hidden.png")


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.sets(st.sampled_from(_CLUTTER)),
    st.sets(st.sampled_from(_CLUTTER_FILES)),
    st.booleans(),
)
def test_what_is_hidden_or_of_the_system_changes_nothing_and_is_said(folders, files, with_splits):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        top = root / "train" if with_splits else root
        _fill(top, ("cat", "dog"))
        clean = from_folder.open_splits(root)
        for place in {root, top, top / "cat"}:
            for each in folders:
                (place / each).mkdir()
                Image.new("L", (8, 8)).save(place / each / "000.png")
            for each in files:
                (place / each).write_bytes(b"nothing")
        found = from_folder.open_splits(root)
        assert (found.sources, found.classes, found.about) == (
            clean.sources,
            clean.classes,
            clean.about,
        )
        assert bool(found.left_out) == bool(folders or files)
        said = {"._*" if each.startswith("._") else each for each in folders | files}
        if said:
            assert found.left_out[0].startswith("hidden or of the system: ")
            assert ("more" in found.left_out[0]) == (len(said) > 3)
            for each in sorted(said)[:3]:
                assert each in found.left_out[0]


def test_what_is_left_out_is_said(tmp_path):
    _fill(tmp_path / "train", ("cat", "dog"))
    _fill(tmp_path / "test", ("cat",))
    (tmp_path / "train" / "bird").mkdir()
    (tmp_path / "test" / "bird").mkdir()
    (tmp_path / "train" / "cat" / "more").mkdir()
    (tmp_path / "notes").mkdir()
    for name in ("README.md", "train/labels.csv", "train/stray.png"):
        (tmp_path / name).write_text("x")
    for name in ("list.txt", "paper.pdf", "no_ending", "table.h5"):
        (tmp_path / "train" / "cat" / name).write_text("x")
    dataset = _load(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.about.endswith(
        "; images 12 RGB as 8-bit colour, 8×8; left out: not images that Pillow can read: 1 .txt"
        " (train/cat/list.txt), 1 without an ending (train/cat/no_ending), 1 .pdf"
        " (train/cat/paper.pdf), 1 .h5 (train/cat/table.h5); files outside class folders: 3; class"
        " folders without images: test/bird/, train/bird/;"
        " folders: notes/, train/cat/more/."
    )


def test_a_test_folder_without_labels_is_left_out(tmp_path):
    _fill(tmp_path / "train", ("cat", "dog"))
    (tmp_path / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "1.png")
    dataset = _load(tmp_path)
    assert sum(_sizes(dataset)) == 8
    assert dataset.about.endswith("left out: folders: test/.")


def test_a_class_may_be_called_train(tmp_path):
    _fill(tmp_path, ("bus", "train", "car"))
    dataset = _load(tmp_path)
    assert dataset.classes == ("bus", "car", "train")
    assert sum(_sizes(dataset)) == 12


def test_endings_of_files_that_are_no_images_are_counted(tmp_path):
    _fill(tmp_path, ("cat", "dog"))
    for number in range(5):
        (tmp_path / "cat" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    for number in range(3):
        (tmp_path / "dog" / f"{number}.cr2").write_bytes(b"II*\0\x10\0\0\0CR\2\0")
    if ".heic" not in images._endings():
        assert _load(tmp_path).about.endswith(
            "left out: not images that Pillow can read: 5 .heic (cat/IMG_0.HEIC), 3 .cr2"
            " (dog/0.cr2); pip install pillow-heif reads .heic."
        )
        for file in tmp_path.rglob("*.png"):
            file.unlink()
        with pytest.raises(ValueError, match=r"has no images; .* 5 .heic \(cat/IMG_0.HEIC\), 3"):
            _load(tmp_path)
        (tmp_path / "cat" / "IMG_0.HEIC").rename(tmp_path / "cat" / "IMG_0.jpg")
        with pytest.raises(ValueError, match=r"none of the images can be read"):
            _load(tmp_path)
        with pytest.raises(images.CorruptImageError, match="; pip install pillow-heif"):
            images.header(tmp_path / "cat" / "IMG_0.jpg", "IMG_0.jpg")


@pytest.mark.parametrize(
    ("written", "name", "is_image"),
    [
        ("png", "no_ending", True),
        ("tiff", "no_ending", True),
        ("jpeg", "x.jpg_large", True),
        ("webp", "x.1", True),
        ("png", "x.JPG", True),
        ("tiff", "x.nef", False),  # Pillow would read the thumbnail of a camera's raw file
        (None, "no_ending", False),
        (None, "BM.notes", False),
    ],
)
def test_files_without_a_known_ending_are_told_by_their_content(tmp_path, written, name, is_image):
    path = tmp_path / name
    if written is None:
        path.write_text("BM P5 and other words")
    else:
        Image.new("RGB", (8, 8)).save(path, written)
    assert images.is_image(path) == is_image


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    pytest.importorskip("pillow_heif")
    for name, shade in (("cat", 0), ("dog", 200)):
        (tmp_path / name).mkdir()
        for number in range(6):
            colour = (shade, 8 * number, 90)
            Image.new("RGB", (16, 12), colour).save(tmp_path / name / f"{number}.heic")
    (tmp_path / "cat" / "0.heic").rename(tmp_path / "cat" / "no_ending")
    dataset = _load(tmp_path)
    assert sum(_sizes(dataset)) == 12
    assert "left out" not in dataset.about
    shown = dataset.train.inputs[..., 0].mean((1, 2))
    np.testing.assert_allclose(shown, 200 * dataset.train.labels, atol=8)


@pytest.mark.parametrize(
    ("folders", "error"),
    [
        (("test/cat", "test/dog"), r"has test and no train folder beside it"),
        (("train/cat", "train/dog", "val/cat", "valid/cat"), r"val and valid both are names"),
        (("train/cat", "train/dog", "Train/cat"), r"Train and train both are names"),
        (("train/cat", "test/cat", "test/dog"), r"test has classes that .*train lacks: dog"),
        (("train/cat", "train/dog", "val/Dog"), r"val has classes that .*train lacks: Dog"),
        (("train", "test"), r"train has no images; expected one folder"),
        (("train/cat",), r"has 1 class; classification needs at least two"),
    ],
)
def test_folders_that_cannot_be_meant_are_refused(tmp_path, folders, error):
    for name in folders:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            Image.new("L", (8, 8)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(ValueError, match=error):
        _load(tmp_path)


def test_one_grey_file_that_sorts_first_does_not_make_colours_grey(tmp_path):
    _fill(tmp_path, ("cat", "dog"))
    Image.new("L", (8, 8), 100).save(tmp_path / "cat" / "000.png")
    dataset = _load(tmp_path)
    assert dataset.input_shape == (8, 8, 3)
    assert "images 7 RGB, 1 L as 8-bit colour" in dataset.about
    inputs = np.concatenate([each.inputs for each in (dataset.train, dataset.validation)])
    assert (inputs[..., 0] != inputs[..., 2]).any()


def test_a_grey_training_folder_with_colour_to_test_on_is_read_in_colour(tmp_path):
    _fill(tmp_path / "train", ("cat", "dog"), mode="L")
    _fill(tmp_path / "test", ("cat", "dog"))
    assert _load(tmp_path).input_shape == (8, 8, 3)


def test_transparency_and_16_bit_colour_are_said(tmp_path):
    _fill(tmp_path, ("cat", "dog"))
    Image.new("RGBA", (8, 8)).save(tmp_path / "cat" / "1.png")
    shallow = Image.new("RGB", (8, 8))
    shallow.save(tmp_path / "cat" / "2.png")
    _write_deep_png(tmp_path / "cat" / "3.png")
    assert (
        "images 10 RGB, 1 RGBA as 8-bit colour, 1 with transparency on white,"
        " 1 of 16-bit colour by their upper 8 bits, 8×8"
    ) in _load(tmp_path).about


def _write_deep_png(path):
    """A black PNG of 8 by 8 pixels with 16 bits a channel, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(8 * (1 + 8 * 6)))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


_MAKERS = {
    "uint8": lambda rng, shape: rng.integers(0, 256, shape).astype(np.uint8),
    "uint16": lambda rng, shape: rng.integers(0, 4096, shape).astype(np.uint16),
    "int32": lambda rng, shape: rng.integers(-(2**20), 2**20, shape).astype(np.int32),
    "float32": lambda rng, shape: rng.uniform(0, 1, shape).astype(np.float32),
}


@pytest.mark.parametrize("dtype", _MAKERS)
@pytest.mark.parametrize("resident", [0, 2000])
def test_inputs_keep_their_digits_and_are_standardised_by_the_training_split(
    tmp_path, dtype, resident
):
    rng, written = np.random.default_rng(0), {}
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(24):
            pixels = _MAKERS[dtype](rng, (8, 8))
            Image.fromarray(pixels).save(tmp_path / name / f"{number:02}.tiff")
            written[pixels.tobytes()] = name
    dataset = _load(tmp_path, resident_megabytes=resident)
    assert (dataset.dtype, dataset.input_shape) == (dtype, (8, 8, 1))
    for part in (dataset.train, dataset.validation, dataset.test):
        split = part.read(np.arange(part.size))
        assert split.inputs.dtype == dtype
        names = [written.pop(image.tobytes()) for image in split.inputs]
        assert [dataset.classes[label] for label in split.labels] == names
    assert not written
    train = dataset.train.read(np.arange(dataset.train.size)).inputs.astype(np.float64)
    np.testing.assert_allclose(dataset.mean, train.mean(), rtol=1e-9)
    np.testing.assert_allclose(dataset.deviation, train.std(), rtol=1e-9)
    standard = dataset.standardise(dataset.train.read(np.arange(dataset.train.size)).inputs)
    assert standard.dtype == np.float32
    np.testing.assert_allclose(standard.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std(), 1, atol=1e-5)


@pytest.mark.parametrize("dtype", _MAKERS)
def test_images_that_do_not_vary_are_standardised_to_zero(tmp_path, dtype):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            image = Image.fromarray(np.full((8, 8), 3, dtype))
            image.save(tmp_path / name / f"{number}.tiff", description=f"{name} {number}")
    dataset = _load(tmp_path)
    np.testing.assert_array_equal(dataset.standardise(dataset.train.inputs), 0)


def test_the_side_is_the_usual_one_and_not_that_of_one_image(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(15):
            side = 5 if number % 5 == 0 else 10
            Image.new("L", (side, side + 3), number).save(tmp_path / name / f"{number:02}.png")
    dataset = _load(tmp_path)
    assert dataset.input_shape == (10, 10, 1)
    assert dataset.about.endswith("images 30 L as 8-bit grey, 10×10.")


def test_train_size_keeps_as_many_validation_images_of_all_classes(tmp_path):
    for name in ("train", "val"):
        _fill(tmp_path / name, ("cat", "dog"), count=20)
    dataset = _load(tmp_path, train_size=16)
    assert _sizes(dataset)[:2] == (16, 16)
    assert set(dataset.validation.labels.tolist()) == {0, 1}


def test_one_image_is_read_as_those_of_the_data_set(tmp_path):
    _fill(tmp_path, ("cat", "dog"))
    dataset = _load(tmp_path, image_size=6)
    by_file = {
        images.read_image(path, dataset.input_shape, dataset.dtype).tobytes()
        for path in tmp_path.rglob("*.png")
    }
    parts = (dataset.train, dataset.validation, dataset.test)
    assert by_file == {each.tobytes() for part in parts for each in part.inputs}


def test_links_that_lead_round_in_circles_end(tmp_path):
    _fill(tmp_path, ("cat", "dog"))
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat" / "self")
    dataset = _load(tmp_path)
    assert sum(_sizes(dataset)) == 8
    assert "folders: cat/up/" in dataset.about


def test_training_and_evaluation_print_the_line(tmp_path):
    _fill(tmp_path / "data", ("cat", "dog"), count=20)
    (tmp_path / "data" / ".DS_Store").write_bytes(b"x")
    small = ("--net", "width-nested", "--outputs", 2, "--widths", 4, "--batch-size", 10)
    printed = finish(
        *("train", "--data", f"folder:{tmp_path / 'data'}", "--workdir", tmp_path / "run"),
        *(*small, "--epochs", 1),
    )
    again = finish("evaluate", tmp_path / "run")
    for text in (printed, again):
        line = re.sub(r"\s+", " ", text)
        assert re.search(r"2 classes; train \d+, validation \d+ \(held out of train\)", line)
        assert "left out: hidden or of the system: .DS_Store." in line
