"""Data sets: three splits of labelled examples, in memory or read on demand."""

import dataclasses
import sys
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from experiments.app.data.images import CorruptImageError, Kind, cut_square

# One fixed cut of each data set, so that every run of every experiment is tested on the same
# examples and none of them is ever trained on.
SPLIT_SEED = 0

SPLITS = ("train", "validation", "test")


class Split(NamedTuple):
    """Examples `[n, *spatial, channels]`, as read, and their labels `[n]`, int32."""

    inputs: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def read(self, indices: np.ndarray) -> "Split":
        """Return the examples at `indices`."""
        return Split(self.inputs[indices], self.labels[indices])


class Examples(Protocol):
    """Labelled examples of which any can be read: a `Split`, in memory, or `Images`."""

    @property
    def size(self) -> int:
        """Number of examples."""
        ...

    def read(self, indices: np.ndarray) -> Split:
        """Return the examples at `indices`."""
        ...


class ImageSource(Protocol):
    """Images with their labels, one at a time, all of one kind."""

    @property
    def place(self) -> str:
        """Place of the images within the data set; empty if it has only one."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]: ...

    def side(self, index: int) -> int:
        """Return the shorter side of an image, in pixels."""
        ...

    def name(self, index: int) -> str:
        """Return the name of an example for messages."""
        ...

    def file(self, index: int) -> str | None:
        """Return an image's file, relative to the data folder; None if images are not files."""
        ...

    def hold_out(self, parts: Collection[str], fraction: float) -> dict[str, np.ndarray]:
        """Return indices of `"train"` and of each of `parts`, which gets that share of images."""
        ...


@dataclasses.dataclass(frozen=True)
class Found:
    """Images of a data set, before they are cut into splits.

    Attributes:
      sources: images of `"train"`, and of `"validation"` and `"test"` where these are told apart.
      classes: names, in the order of the labels.
      kind: of the images as they are read.
      about: which images were found, in words.
      left_out: what was found and is not used, in words.
      rule: `Dataset.rule` if images are held out.
    """

    sources: Mapping[str, ImageSource]
    classes: tuple[str, ...]
    kind: Kind
    about: str
    left_out: tuple[str, ...]
    rule: str = ""


class Raw(NamedTuple):
    """Numbers of the inputs in files, and their standardization.

    Attributes:
      dtype: uint8, uint16, int32 or float32.
      mean: for each channel; it is taken off.
      deviation: what is left is divided by it.
    """

    dtype: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set; for text the classes are the tokens.

    Attributes:
      name: as on the command line.
      num_classes: number of classes.
      train: to train on.
      validation: to choose by.
      test: to report.
      input_shape: shape of one example as the net gets it, channels last.
      mean: of the training inputs, for each channel; `standardise` takes it off.
      deviation: of the training inputs.
      dtype: of the inputs as they are stored.
      classes: names of the classes, where they have any.
      about: what was found and what was left out, in one line; empty for a built-in data set.
      standardised: the inputs as they were before they were put into the splits; None where
        `standardise` alone changes them.
      files: for each split the file of each example, relative to the data folder, with `/` between
        its parts; None where examples are not files. A file that is read while training and cannot
        be is named here, although the next one takes its place.
      rule: how splits were drawn that the data does not name. A run of an older version, which drew
        them differently, has another.
      held_out: splits that the data does not name, which are held out of the training examples.
    """

    name: str
    num_classes: int
    train: Any
    validation: Any
    test: Any
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    dtype: str = "float32"
    classes: tuple[str, ...] = ()
    about: str = ""
    standardised: Raw | None = None
    files: Mapping[str, tuple[str, ...]] | None = None
    rule: str = ""
    held_out: tuple[str, ...] = ()

    @property
    def raw(self) -> Raw:
        """The inputs as they are in files."""
        return self.standardised or Raw(self.dtype, self.mean, self.deviation)

    @property
    def is_text(self) -> bool:
        """True if examples are tokens `[length]`, and labels the tokens that follow each."""
        return len(self.input_shape) == 1

    def standardise(self, inputs: Any) -> Any:
        """Return inputs in float32 with mean 0 and deviation 1, or tokens; NumPy or JAX arrays."""
        if self.is_text:
            return inputs
        mean, deviation = np.array([self.mean, self.deviation], np.float32)
        return (inputs.astype(np.float32) - mean) / deviation


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of a source at some indices, cut to squares of one size, read when asked for."""

    source: ImageSource
    indices: np.ndarray
    side: int
    num_classes: int
    skip_corrupt: bool

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.indices)

    def read(self, indices: np.ndarray) -> Split:
        """Return the examples at `indices`; an unreadable one is replaced by the next or raises.

        Raises:
          ValueError: an image that cannot be read, unless `skip_corrupt`; a label out of range.
        """
        read = [self._read_or_next(int(index)) for index in indices]
        images, labels = zip(*read, strict=True)
        return Split(np.stack(images), np.array(labels, np.int32))

    @property
    def files(self) -> tuple[str, ...] | None:
        """The file of each example, relative to the data folder; None where there are no files."""
        files = [self.source.file(int(index)) for index in self.indices]
        return None if None in files else tuple(file for file in files if file is not None)

    def in_memory(self) -> tuple[Split, "Images"]:
        """Read all examples, and tell which; unreadable ones are left out, or stop the run."""
        chunks = np.array_split(np.arange(self.size), max(1, self.size // 256))

        def read(chunk: np.ndarray) -> list[tuple[np.ndarray, int] | None]:
            return [self._read(int(index)) for index in chunk]

        with ThreadPoolExecutor() as pool:  # decoders release the interpreter lock
            found = [each for part in pool.map(read, chunks) for each in part]
        readable = [each for each in found if each is not None]
        if len(readable) < self.size:
            print(f"Left out {self.size - len(readable)} unreadable images.", file=sys.stderr)
        if not readable:
            raise ValueError("none of the images can be read.")
        images, labels = zip(*readable, strict=True)
        kept = self.indices[[each is not None for each in found]]
        split = Split(np.stack(images), np.array(labels, np.int32))
        return split, dataclasses.replace(self, indices=kept)

    def _read_or_next(self, index: int) -> tuple[np.ndarray, int]:
        for offset in range(self.size):
            found = self._read((index + offset) % self.size)
            if found is not None:
                return found
        raise ValueError("none of the images can be read.")

    def _read(self, index: int) -> tuple[np.ndarray, int] | None:
        index = int(self.indices[index])
        try:
            image, label = self.source[index]
        except CorruptImageError as error:
            if not self.skip_corrupt:
                raise ValueError(f"{error} Use --skip-corrupt to go on without it.") from None
            print(f"Skipped: {error}", file=sys.stderr)
            return None
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"{self.source.name(index)} has label {label}, out of range for"
                f" {self.num_classes} classes; is its split one with labels?"
            )
        return cut_square(image, self.side), label
