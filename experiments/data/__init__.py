"""Data sets: built-in ones, those of `tensorflow_datasets`, image folders; and their batches."""

from pathlib import Path

from experiments.data.batches import Batches, epoch_batches
from experiments.data.builtin import BUILT_IN, load
from experiments.data.dataset import Dataset, Examples, Images, Split, make_image_dataset

__all__ = [
    "BUILT_IN",
    "Batches",
    "Dataset",
    "Examples",
    "Images",
    "Split",
    "epoch_batches",
    "load",
    "load_named",
]


def load_named(
    name: str,
    *,
    train_size: int | None = None,
    validation_fraction: float = 0.1,
    image_size: int | None = None,
    resident_megabytes: int = 2000,
    skip_corrupt: bool = False,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    test_split: str | None = None,
) -> Dataset:
    """Load a data set by the name that the command line takes.

    Args:
      name: `"digits"`, `"mnist1d"`, `"tfds:NAME"` or `"folder:PATH"`.
      train_size: keep this many training examples only.
      validation_fraction: share of the training examples to validate on, where the data set has
        no cut of its own.
      image_size: side to which images are cut; that of the data set if None.
      resident_megabytes: larger data sets are read while training, smaller ones once.
      skip_corrupt: leave out images that cannot be read, instead of stopping.
      data_dir: where `tensorflow_datasets` keeps what it has prepared.
      manual_dir: where `tensorflow_datasets` finds archives that were downloaded by hand.
      test_split: `tensorflow_datasets` split to test on.

    Raises:
      ValueError: an unknown name, or data that is missing or not as it should be.
    """
    if name in BUILT_IN:
        return load(name, train_size)
    kind, _, rest = name.partition(":")
    if kind == "tfds" and rest:
        from experiments.data import from_tfds

        parts = from_tfds.open_splits(rest, data_dir, manual_dir, test_split)
    elif kind == "folder" and rest:
        from experiments.data import from_folder

        parts = from_folder.open_splits(Path(rest))
    else:
        raise ValueError(
            f"data={name!r} is unknown; use {', '.join(BUILT_IN)}, tfds:NAME or folder:PATH."
        )
    return make_image_dataset(
        name,
        *parts,
        train_size=train_size,
        validation_fraction=validation_fraction,
        image_size=image_size,
        resident_megabytes=resident_megabytes,
        skip_corrupt=skip_corrupt,
    )
