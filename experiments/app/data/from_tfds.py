"""Image classification sets of `tensorflow_datasets`, prepared as ArrayRecord files.

TensorFlow takes part in the preparation alone, once; reading does without.
"""

import dataclasses
import importlib.util
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.app.data import images, splits
from experiments.app.data.dataset import Found

_INSTALL = "pip install 'osgd-jax[data]'"


@dataclasses.dataclass(frozen=True)
class Records:
    """Records of one split, one at a time."""

    records: Any
    place: str
    kind: images.Kind

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        record = self._record(index)
        image = record["image"]
        if isinstance(image, bytes):
            image = images.read(io.BytesIO(image), self.kind, self.name(index))
        else:
            image = np.asarray(image, self.kind.dtype)
            image = image[..., None] if image.ndim == 2 else image
        return image, int(record["label"])

    def label(self, index: int) -> int:
        """Negative where the record has none."""
        return int(self._record(index)["label"])

    def side(self, index: int) -> int:
        """Return the shorter side, in pixels."""
        image = self._record(index)["image"]
        if isinstance(image, bytes):
            return images.header(io.BytesIO(image), self.name(index)).side
        return min(image.shape[:2])

    def name(self, index: int) -> str:
        """Its place in the split."""
        return f"record {index} of split {self.place!r}"

    def file(self, index: int) -> None:
        """Return None, because records are not files."""

    def hold_out(self, parts: Collection[str], fraction: float) -> dict[str, np.ndarray]:
        """Hold out images at random: a version of a data set never changes."""
        return splits.hold_out_at_random(len(self), parts, fraction)

    def _record(self, index: int) -> Any:
        try:
            return self.records[index]
        except (ValueError, OSError) as error:
            name = self.name(index)
            raise images.CorruptImageError(
                f"{name} is unreadable ({type(error).__name__})."
            ) from None


def open_splits(name: str, data_dir: Path | None, manual_dir: Path | None) -> Found:
    """Open a data set, which is prepared first if it is not yet.

    Args:
      name: as in the catalogue of `tensorflow_datasets`.
      data_dir: where prepared data sets are kept; `tensorflow_datasets`' own place if None.
      manual_dir: where archives lie that were downloaded by hand.

    Raises:
      ValueError: packages or archives are missing, the name is unknown, or the set is not one of
        labelled images.
    """
    try:
        import array_record  # noqa: F401 - read by tensorflow_datasets, which finds it missing late
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(f"data=tfds:{name} needs tensorflow_datasets: {_INSTALL}.") from None
    builder = _builder(tfds, name, data_dir)
    if not builder.data_path.exists():
        _prepare(tfds, builder, name, manual_dir)
    features = builder.info.features
    if features is None or not {"image", "label"} <= set(features):
        raise ValueError(f"tfds:{name} has no features image and label: {list(features or ())}.")
    if not isinstance(features["label"], tfds.features.ClassLabel):
        raise ValueError(f"tfds:{name} has labels that are no classes: {features['label']}.")
    return open_builder(tfds, builder)


def open_builder(tfds: Any, builder: Any) -> Found:
    """Find the splits of a prepared data set; splits without labels are left out.

    Raises:
      ValueError: it has no training split.
    """
    features, names = builder.info.features, list(builder.info.splits)
    used = splits.find(names)
    if "train" not in used:
        raise ValueError(f"tfds:{builder.name} has no split 'train', only {', '.join(names)}.")
    kind, decoders, about = _kind(tfds, features["image"])
    sources = {
        split: Records(builder.as_data_source(split=name, decoders=decoders), name, kind)
        for split, name in used.items()
    }
    unlabelled = {split for split, source in sources.items() if len(source) and source.label(0) < 0}
    left_out = [f"split {name}" for name in names if name not in used.values()]
    left_out += [f"split {used[split]} (without labels)" for split in sorted(unlabelled)]
    return Found(
        sources={split: each for split, each in sources.items() if split not in unlabelled},
        classes=tuple(features["label"].names),
        kind=kind,
        about=about,
        left_out=tuple(left_out),
    )


def _kind(tfds: Any, feature: Any) -> tuple[images.Kind, Any, str]:
    """Return the kind of a set's images, the decoder for `tensorflow_datasets`, and both in words.

    Encoded integers are decoded by `images.read`, as those of files are.
    """
    dtype, channels = np.dtype(feature.np_dtype).name, feature.shape[-1]
    if not isinstance(feature, tfds.features.Image) or dtype == "float32":
        known = dtype if dtype in ("uint8", "uint16", "int32") else "float32"
        kind = images.Kind(1 if len(feature.shape) == 2 else channels, known)
        return kind, None, f"images as {kind}"
    # Pillow reads 16-bit colour by its upper 8 bits.
    kind = images.Kind(1, dtype) if channels in (1, 2) else images.Kind(3, "uint8")
    about = f"images as {kind}"
    if channels in (2, 4):
        about += ", transparency on white"
    if channels not in (1, 2) and dtype != "uint8":
        about += ", 16 bits by their upper 8"
    return kind, {"image": tfds.decode.SkipDecoding()}, about


def _builder(tfds: Any, name: str, data_dir: Path | None) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        raise ValueError(
            f"tensorflow_datasets knows no data set {name!r}; its catalogue is at"
            " https://www.tensorflow.org/datasets/catalog/overview."
        ) from None


def _prepare(tfds: Any, builder: Any, name: str, manual_dir: Path | None) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"tfds:{name} is not prepared in {builder.data_dir}, which TensorFlow does once:"
            f" {_INSTALL}, then start again."
        )
    settings = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=settings)
    except Exception as error:  # each set fails differently, many with TensorFlow's errors
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"tfds:{name} could not be prepared: {reason} Where there is no network, or the archive"
            " must be downloaded by hand, put it in a folder and give --manual-dir FOLDER."
        ) from None
