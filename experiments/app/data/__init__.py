"""Data sets: built-in ones, those of `tensorflow_datasets`, image folders; and their batches."""

from experiments.app.data import builtin, text
from experiments.app.data.batches import Batches, epoch_batches
from experiments.app.data.dataset import Dataset, Examples, Images, Split
from experiments.app.data.source import Source
from experiments.app.data.splits import make_image_dataset
from experiments.app.settings import expanded

__all__ = [
    "Batches",
    "Dataset",
    "Examples",
    "Images",
    "Source",
    "Split",
    "epoch_batches",
    "load",
]


def load(source: Source) -> Dataset:
    """Load a data set.

    Raises:
      ValueError: an unknown name, or data that is missing or not as it should be.
    """
    if source.data in builtin.NAMES:
        return builtin.load(source.data, source.train_size)
    kind, _, rest = source.data.partition(":")
    if source.data == "pydoc" or (kind == "text" and rest):
        return text.load(source)
    if kind == "tfds" and rest:
        from experiments.app.data import from_tfds

        folders = (each and expanded(each) for each in (source.data_dir, source.manual_dir))
        found = from_tfds.open_splits(rest, *folders)
    elif kind == "folder" and rest:
        from experiments.app.data import from_folder

        found = from_folder.open_splits(expanded(rest))
    else:
        known = ", ".join(builtin.NAMES)
        raise ValueError(
            f"data={source.data!r} is unknown; use {known}, pydoc, text:PATH,"
            " tfds:NAME or folder:PATH."
        )
    return make_image_dataset(source, found)
