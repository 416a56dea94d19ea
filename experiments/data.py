"""Data sets, as arrays split into training, validation and test examples."""

import dataclasses
from typing import NamedTuple

import numpy as np

DATA_SETS = ("digits", "mnist1d")

_VALIDATION_SIZES = {"digits": 297, "mnist1d": 1000}

# One fixed cut of each data set, so that every run of every experiment is tested on the same
# examples and none of them is ever trained on.
_SPLIT_SEED = 0


class Split(NamedTuple):
    """Examples `[n, *spatial, channels]`, float32, and their labels `[n]`, int32."""

    inputs: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set, standardised by the training examples' mean and deviation."""

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example, channels last."""
        return self.train.inputs.shape[1:]


def load(name: str, train_size: int | None = None) -> Dataset:
    """Load a built-in data set; none of them needs the network.

    Args:
      name: `"digits"` (scikit-learn's 1,797 grey images of 8×8 pixels: 1,000 for training, 297 for
        validation, 500 for the test) or `"mnist1d"` (package mnist1d, sequences of length 40, made
        on the spot: 3,000, 1,000 and 1,000).
      train_size: keep this many training examples only.

    Raises:
      ValueError: an unknown name, or a train_size that the data set does not have.
    """
    if name == "digits":
        (inputs, labels), test = _digits(), np.arange(500)
    elif name == "mnist1d":
        (inputs, labels), test = _mnist1d(), np.arange(1000)
    else:
        raise ValueError(f"data={name!r} is unknown; use one of {', '.join(DATA_SETS)}.")
    rest = np.random.default_rng(_SPLIT_SEED).permutation(np.arange(len(test), len(labels)))
    validation, train = np.split(rest, [_VALIDATION_SIZES[name]])
    train_size = len(train) if train_size is None else train_size
    if not 1 <= train_size <= len(train):
        raise ValueError(f"train_size={train_size} must be between 1 and {len(train)} for {name}.")
    train = train[:train_size]
    mean, deviation = inputs[train].mean(), inputs[train].std()
    inputs = ((inputs - mean) / deviation).astype(np.float32)
    labels = labels.astype(np.int32)
    splits = [Split(inputs[index], labels[index]) for index in (train, validation, test)]
    return Dataset(name, int(labels.max()) + 1, *splits)


def epoch_batches(num_examples: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of one epoch's batches, `[batches, batch_size]`; a last, smaller one is left out."""
    count = num_examples // batch_size
    return rng.permutation(num_examples)[: count * batch_size].reshape(count, batch_size)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, the 500 test examples first."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    return pixels[order].reshape(-1, 8, 8, 1), labels[order]


def _mnist1d() -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, the package's 1,000 test examples first."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    inputs = np.concatenate([made["x_test"], made["x"]])
    return inputs[..., None], np.concatenate([made["y_test"], made["y"]])
