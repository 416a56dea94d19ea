"""Data sets of `tensorflow_datasets`: 16 bits, floats, transparency, and the names of splits."""

import importlib.util
import io
import types

import numpy as np
import pytest
from PIL import Image

from experiments.app.data import from_tfds

tfds = pytest.importorskip("tensorflow_datasets")


def _png(pixels):
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "png")
    return made.getvalue()


def _builder(splits, **image):
    """The part of a builder that the reader uses; its records hold the stored bytes of images."""
    feature = tfds.features.Image(**image)

    def source(split, decoders):
        assert set(decoders) == {"image"}
        return [{"image": encoded, "label": label} for encoded, label in splits[split]]

    features = {"image": feature, "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    info = types.SimpleNamespace(features=features, splits=splits)
    return types.SimpleNamespace(name="made", info=info, as_data_source=source)


_NUMBERS = np.random.default_rng(0).integers(0, 256, (5, 6, 4)).astype(np.uint8)
_DEEP = np.random.default_rng(0).integers(0, 4096, (5, 6)).astype(np.uint16)


@pytest.mark.parametrize(
    ("image", "stored", "shown", "about"),
    [
        ({"shape": (None, None, 1)}, _NUMBERS[..., 0], _NUMBERS[..., :1], "8-bit grey"),
        ({"shape": (None, None, 3)}, _NUMBERS[..., :3], _NUMBERS[..., :3], "8-bit colour"),
        (
            {"shape": (None, None, 3)},
            _NUMBERS[..., 0],
            np.repeat(_NUMBERS[..., :1], 3, -1),
            "8-bit colour",
        ),
        (
            {"shape": (None, None, None)},
            _NUMBERS[..., 0],
            np.repeat(_NUMBERS[..., :1], 3, -1),
            "8-bit colour",
        ),
        (
            {"shape": (None, None, 1), "dtype": np.uint16},
            _DEEP,
            _DEEP[..., None],
            "16-bit grey",
        ),
        (
            {"shape": (None, None, 4), "encoding_format": "png"},
            np.dstack([_NUMBERS[..., :3], np.full((5, 6), 255, np.uint8)]),
            _NUMBERS[..., :3],
            "8-bit colour, transparency on white",
        ),
    ],
)
def test_encoded_images_arrive_as_they_are_shown(image, stored, shown, about):
    found = from_tfds.open_builder(tfds, _builder({"train": [(_png(stored), 1)]}, **image))
    pixels, label = found.sources["train"][0]
    assert label == 1
    assert pixels.dtype == stored.dtype == found.kind.dtype
    np.testing.assert_array_equal(pixels, shown)
    assert found.sources["train"].side(0) == 5
    assert found.about == f"images as {about}"
    assert found.classes == ("cat", "dog")


def test_splits_are_found_by_their_usual_names_and_those_without_labels_are_left_out():
    one, unlabelled = [(_png(_NUMBERS[..., 0]), 0)], [(_png(_NUMBERS[..., 0]), -1)]
    splits = {"train": one, "validation": one, "test": unlabelled, "extra": one}
    found = from_tfds.open_builder(tfds, _builder(splits, shape=(5, 6, 1)))
    assert set(found.sources) == {"train", "validation"}
    assert found.left_out == ("split extra", "split test (without labels)")
    with pytest.raises(ValueError, match=r"made has no split 'train', only extra"):
        from_tfds.open_builder(tfds, _builder({"extra": one}, shape=(5, 6, 1)))


def _prepared(tmp_path, image, feature):
    splits = {
        name: [(index, {"image": image(index), "label": index % 2}) for index in range(4)]
        for name in ("train", "test")
    }
    features = {"image": feature, "label": tfds.features.ClassLabel(num_classes=2)}
    builder = tfds.dataset_builders.AdhocBuilder(
        name="made",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets=splits,
        data_dir=tmp_path,
        file_format="array_record",
    )
    builder.download_and_prepare()
    return builder


@pytest.mark.parametrize("kind", ["uint16", "float32", "array"])
@pytest.mark.filterwarnings("ignore")
def test_a_prepared_set_keeps_its_digits(tmp_path, kind):
    for package in ("tensorflow", "array_record"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}: pip install 'osgd-jax[data]'")
    if kind == "array":
        feature, dtype = tfds.features.Tensor(shape=(5, 6), dtype=np.float64), np.float32
    else:
        feature, dtype = tfds.features.Image(shape=(5, 6, 1), dtype=np.dtype(kind)), kind

    def image(index):
        made = np.random.default_rng(index).uniform(0, 4095, (5, 6)).astype(dtype)
        return made.astype(np.float64) if kind == "array" else made[..., None]

    found = from_tfds.open_builder(tfds, _prepared(tmp_path, image, feature))
    assert found.kind == (1, np.dtype(dtype).name)
    for source in found.sources.values():
        seen = {source[index][0].tobytes(): source[index][1] for index in range(4)}
        assert seen == {image(index).astype(dtype).tobytes(): index % 2 for index in range(4)}
        assert source.side(0) == 5
