"""Which data to load, and how."""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.app.settings import require


@dataclasses.dataclass(frozen=True)
class Source:
    """The data.

    Attributes:
      data: digits, mnist1d, tfds:NAME (tensorflow_datasets), folder:PATH (images by class), pydoc
        (Python's own help as text) or text:PATH (a file or folder of text, or of token ids in .bin
        or .npy files; train, val and test files or folders in it are the splits).
      train_size: training examples to use; all if not given.
      validation_fraction: share of a text, or of the images of tfds and folder, that is held out to
        validate on, and another to test on, where there are no images for that.
      text_length: tokens of an example of text; 128 if not given.
      token_dtype: of the ids in .bin files; found from the numbers if not given.
      image_size: side to which images are cut; their usual one if not given.
      skip_corrupt: leave out images that cannot be read, instead of stopping.
      resident_megabytes: data sets up to this size are read once and live on the device; larger
        ones are read while training.
      data_dir: where tensorflow_datasets keeps what it has prepared.
      manual_dir: where tensorflow_datasets finds archives downloaded by hand.
      workers: processes that read ahead; threads do if 0.
    """

    data: str = "digits"
    train_size: int | None = None
    validation_fraction: float = 0.1
    text_length: int | None = None
    token_dtype: Literal["uint8", "uint16", "uint32", "int64"] | None = None
    image_size: int | None = None
    skip_corrupt: bool = False
    resident_megabytes: int = 2000
    data_dir: Path | None = None
    manual_dir: Path | None = None
    workers: int = 0

    def __post_init__(self):
        require(self, fields=("train_size", "text_length", "image_size"), at_least=1)
        require(self, fields=("workers", "resident_megabytes"), at_least=0)
        require(self, fields=("validation_fraction",), above=0, below=0.5)
