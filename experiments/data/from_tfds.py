"""Image classification sets of `tensorflow_datasets`, prepared as ArrayRecord files.

TensorFlow takes part in the preparation alone, once; reading does without.
"""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.images import CorruptImageError

_INSTALL = "pip install 'osgd-jax[data]'"


@dataclasses.dataclass(frozen=True)
class Records:
    """Records of one split, one at a time."""

    records: Any
    split: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        try:
            record = self.records[index]
        except (ValueError, OSError) as error:
            name = self.name(index)
            raise CorruptImageError(f"{name} is unreadable ({type(error).__name__}).") from None
        return record["image"], int(record["label"])

    def name(self, index: int) -> str:
        """Its place in the split."""
        return f"record {index} of split {self.split!r}"


def open_splits(
    name: str, data_dir: Path | None, manual_dir: Path | None
) -> tuple[Records, Records, int]:
    """Open a data set, which is prepared first if it is not yet.

    Args:
      name: as in the catalogue of `tensorflow_datasets`.
      data_dir: where prepared data sets are kept; `tensorflow_datasets`' own place if None.
      manual_dir: where archives lie that were downloaded by hand.

    Returns:
      Training records, those of the split "test" or else "validation", and the number of classes.

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
    features, splits = builder.info.features, builder.info.splits
    if features is None or not {"image", "label"} <= set(features):
        raise ValueError(f"tfds:{name} has no features image and label: {list(features or ())}.")
    test_split = "test" if "test" in splits else "validation"
    for split in ("train", test_split):
        if split not in splits:
            raise ValueError(f"tfds:{name} has no split {split!r}, only {', '.join(splits)}.")
    train, test = (
        Records(builder.as_data_source(split=split), split) for split in ("train", test_split)
    )
    return train, test, features["label"].num_classes


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
    except Exception as error:  # each set fails in a way of its own, many with TensorFlow's errors
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"tfds:{name} could not be prepared: {reason} Where there is no network, or the archive"
            " must be downloaded by hand, put it in a folder and give --manual-dir FOLDER."
        ) from None
