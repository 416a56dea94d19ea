"""What a data set is: three splits of labelled examples, in memory or read when asked for."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from experiments.data.images import CorruptImageError, Kind, cut_square
from experiments.data.source import Source

# One fixed cut of each data set, so that every run of every experiment is tested on the same
# examples and none of them is ever trained on.
SPLIT_SEED = 0

# Images that mean and deviation are measured on.
_MEASURED = 2000

# Images whose sizes are looked at to choose one for all.
_SIDES = 100


class Split(NamedTuple):
    """Examples `[n, *spatial, channels]`, as read, and their labels `[n]`, int32."""

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
    """Images with their labels, one at a time, all of one kind."""

    @property
    def place(self) -> str:
        """Where the images are within the data set; empty where it has one place."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]: ...

    def side(self, index: int) -> int:
        """The shorter side of an image, in pixels."""
        ...

    def name(self, index: int) -> str:
        """Names an example in a message."""
        ...


@dataclasses.dataclass(frozen=True)
class Found:
    """Images that were found, before they are cut into splits.

    Attributes:
      sources: images of `"train"`, and of `"validation"` and `"test"` where these are told apart.
      classes: names, in the order of the labels.
      kind: of the images as they are read.
      about: which images were found, in words.
      left_out: what was found and is not used, in words.
    """

    sources: Mapping[str, ImageSource]
    classes: tuple[str, ...]
    kind: Kind
    about: str
    left_out: tuple[str, ...]


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
      dtype: of the inputs as they are stored.
      classes: names of the classes, where they have any.
      about: what was found and what was left out, in one line; empty for a built-in data set.
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


def make_image_dataset(source: Source, found: Found) -> Dataset:
    """Cut images into splits and read them into memory if they are small.

    Args:
      source: its settings. Of the validation images no more than `train_size` are kept, too.
      found: the images. Where they have no validation or no test part of their own, it is held out
        of the training images.

    Raises:
      ValueError: fewer than two classes, or sizes that leave a split without examples.
    """
    num_classes = len(found.classes)
    if num_classes < 2:
        raise ValueError(
            f"{source.data} has {num_classes} class; classification needs at least two."
        )
    train, train_size = found.sources["train"], source.train_size
    indices = _cut(found.sources, train_size, source.validation_fraction)
    for split, chosen in indices.items():
        if len(chosen) == 0 or (split == "train" and train_size not in (None, len(chosen))):
            raise ValueError(
                f"{source.data} has too few images ({len(train)} to train and validate on) for"
                f" train_size={train_size} and validation_fraction={source.validation_fraction}."
            )
    side = source.image_size or _usual_side(train, indices["train"], source.skip_corrupt)
    shape = (side, side, found.kind.channels)
    splits: dict[str, Any] = {
        split: Images(
            found.sources.get(split, train), chosen, side, num_classes, source.skip_corrupt
        )
        for split, chosen in indices.items()
    }
    item_bytes = math.prod(shape) * np.dtype(found.kind.dtype).itemsize
    if sum(each.size for each in splits.values()) * item_bytes <= source.resident_megabytes * 1e6:
        splits = {split: each.in_memory() for split, each in splits.items()}
    mean, deviation = _mean_and_deviation(splits["train"], found.kind.dtype)
    return Dataset(
        source.data,
        num_classes,
        **splits,
        input_shape=shape,
        mean=mean,
        deviation=deviation,
        dtype=found.kind.dtype,
        classes=found.classes,
        about=_about(source.data, found, splits, side),
    )


def _cut(
    sources: Mapping[str, ImageSource], train_size: int | None, validation_fraction: float
) -> dict[str, np.ndarray]:
    """Indices of each split into its source; into the training images where it has none."""
    rng = np.random.default_rng(SPLIT_SEED)
    rest = rng.permutation(len(sources["train"]))
    held_out = round(validation_fraction * len(rest))
    cut = {"train": rest}
    for split in ("validation", "test"):
        if split in sources:
            cut[split] = rng.permutation(len(sources[split]))
        else:
            cut[split], rest = rest[:held_out], rest[held_out:]
    cut["train"], cut["validation"] = rest[:train_size], cut["validation"][:train_size]
    if "test" in sources:
        cut["test"].sort()
    return cut


def _usual_side(source: ImageSource, indices: np.ndarray, skip_corrupt: bool) -> int:
    """The median of the shorter sides of some images."""
    sides = []
    for index in indices[:_SIDES]:
        try:
            sides.append(source.side(int(index)))
        except CorruptImageError as error:
            if not skip_corrupt:
                raise ValueError(f"{error} Use --skip-corrupt to go on without it.") from None
    if not sides:
        raise ValueError("none of the images can be read.")
    return sorted(sides)[len(sides) // 2]


def _mean_and_deviation(train: Any, dtype: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the first training examples, for each channel, in the units of the pixels."""
    means, variances = [], []
    for start in range(0, min(_MEASURED, train.size), 32):
        inputs = train.read(np.arange(start, min(start + 32, train.size))).inputs
        means.append(inputs.mean((1, 2), np.float64))
        variances.append(inputs.var((1, 2), np.float64))
    means, variances = np.concatenate(means), np.concatenate(variances)
    mean, deviation = means.mean(0), np.sqrt(variances.mean(0) + means.var(0))
    # What hardly varies is not blown up: a quarter of a step of integers, rounding of floats.
    least = 0.25 if np.issubdtype(dtype, np.integer) else 1e-6 * np.abs(mean)
    deviation = np.maximum(deviation, least)
    return tuple(mean.tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist())


def _about(name: str, found: Found, splits: Mapping[str, Any], side: int) -> str:
    parts = []
    for split, examples in splits.items():
        source = found.sources.get(split)
        place = "held out of train" if source is None else source.place
        parts.append(f"{split} {examples.size:,}" + (f" ({place})" if place else ""))
    line = f"{name}: {len(found.classes):,} classes; {', '.join(parts)}; {found.about},"
    left_out = f"; left out: {'; '.join(found.left_out)}" if found.left_out else ""
    return f"{line} {side}×{side}{left_out}."
