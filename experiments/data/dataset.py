"""What a data set is: three splits of labelled examples, in memory or read when asked for."""

import dataclasses
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from experiments.data.images import CorruptImageError, cut_square
from experiments.data.source import Source

# One fixed cut of each data set, so that every run of every experiment is tested on the same
# examples and none of them is ever trained on.
SPLIT_SEED = 0

# Images that mean and deviation are measured on.
_MEASURED = 2000


class Split(NamedTuple):
    """Examples `[n, *spatial, channels]`, float32 or uint8, and their labels `[n]`, int32."""

    inputs: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def read(self, indices: np.ndarray) -> "Split":
        """The examples at `indices`."""
        return Split(self.inputs[indices], self.labels[indices])


class Examples(Protocol):
    """Labelled examples of which any can be read: a `Split`, in memory, or `Images`."""

    @property
    def size(self) -> int:
        """Number of examples."""
        ...

    def read(self, indices: np.ndarray) -> Split:
        """The examples at `indices`."""
        ...


class ImageSource(Protocol):
    """Images with their labels, one at a time; `name(i)` is for messages."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]: ...

    def name(self, index: int) -> str:
        """Names an example in a message."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set.

    Attributes:
      name: as on the command line.
      num_classes: number of classes.
      train: to train on.
      validation: to choose by.
      test: to report.
      input_shape: shape of one example as the net gets it, channels last.
      mean: of the training inputs, for each channel; `standardise` takes it off.
      deviation: of the training inputs.
    """

    name: str
    num_classes: int
    train: Any
    validation: Any
    test: Any
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)

    def standardise(self, inputs: Any) -> Any:
        """Inputs in float32 with mean 0 and deviation 1; works on NumPy and JAX arrays."""
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
        """The examples at `indices`; an unreadable one is replaced by the next, or stops the run.

        Raises:
          ValueError: an image that cannot be read, unless `skip_corrupt`; a label out of range.
        """
        read = [self._read_or_next(int(index)) for index in indices]
        images, labels = zip(*read, strict=True)
        return Split(np.stack(images), np.array(labels, np.int32))

    def in_memory(self) -> Split:
        """All examples; unreadable ones are left out, or stop the run."""
        chunks = np.array_split(np.arange(self.size), max(1, self.size // 256))

        def read(chunk: np.ndarray) -> list[tuple[np.ndarray, int] | None]:
            return [self._read(int(index)) for index in chunk]

        with ThreadPoolExecutor() as pool:  # decoders release the interpreter lock
            found = [each for part in pool.map(read, chunks) for each in part if each is not None]
        if len(found) < self.size:
            print(f"Left out {self.size - len(found)} unreadable images.", file=sys.stderr)
        if not found:
            raise ValueError("none of the images can be read.")
        images, labels = zip(*found, strict=True)
        return Split(np.stack(images), np.array(labels, np.int32))

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


def make_image_dataset(
    source: Source,
    train_source: ImageSource,
    test_source: ImageSource | None,
    num_classes: int,
) -> Dataset:
    """Cut image sources into splits and read them into memory if they are small.

    Args:
      source: its settings.
      train_source: training images.
      test_source: test images; where None, as many as for validation are cut from the others.
      num_classes: number of classes.

    Raises:
      ValueError: fewer than two classes, or sizes that leave a split without examples.
    """
    if num_classes < 2:
        raise ValueError(
            f"{source.data} has {num_classes} class; classification needs at least two."
        )
    train_size = source.train_size
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train_source))
    cut = round(source.validation_fraction * len(order))
    validation, rest = order[:cut], order[cut:]
    test_indices = np.arange(len(test_source)) if test_source is not None else rest[:cut]
    train = rest if test_source is not None else rest[cut:]
    train = train if train_size is None else train[:train_size]
    for part, indices in (("train", train), ("validation", validation), ("test", test_indices)):
        if len(indices) == 0 or (part == "train" and train_size not in (None, len(indices))):
            raise ValueError(
                f"{source.data} has too few images ({len(order)} to train and validate on) for"
                f" train_size={train_size} and validation_fraction={source.validation_fraction}."
            )
    side, channels = _side_and_channels(source, train_source, train)
    if train_size is not None and len(validation) > train_size:
        validation = validation[:train_size]

    def examples(images: ImageSource, indices: np.ndarray) -> Images:
        return Images(images, indices, side, num_classes, source.skip_corrupt)

    lazy = [
        examples(train_source, train),
        examples(train_source, validation),
        examples(test_source or train_source, test_indices),
    ]
    megabytes = sum(each.size for each in lazy) * side * side * channels / 1e6
    splits: Sequence[Any] = lazy
    if megabytes <= source.resident_megabytes:
        splits = [each.in_memory() for each in lazy]
    measured = splits[0].read(np.arange(min(_MEASURED, splits[0].size))).inputs / 255.0
    mean, deviation = measured.mean((0, 1, 2)), np.maximum(measured.std((0, 1, 2)), 1e-3)
    return Dataset(
        source.data,
        num_classes,
        *splits,
        input_shape=(side, side, channels),
        mean=tuple((255 * mean).tolist()),
        deviation=tuple((255 * deviation).tolist()),
    )


def _side_and_channels(source: Source, images: ImageSource, indices: np.ndarray) -> tuple[int, int]:
    for index in indices:
        try:
            height, width, channels = images[int(index)][0].shape
        except CorruptImageError as error:
            if not source.skip_corrupt:
                raise ValueError(f"{error} Use --skip-corrupt to go on without it.") from None
            continue
        return source.image_size or min(height, width), channels
    raise ValueError("none of the images can be read.")
