"""Built-in data sets, made or loaded without the network."""

import numpy as np

from experiments.app.data.dataset import SPLIT_SEED, Dataset, Raw, Split

NAMES = ("digits", "mnist1d")

_VALIDATION_SIZES = {"digits": 297, "mnist1d": 1000}


def load(name: str, train_size: int | None = None) -> Dataset:
    """Load a built-in data set, standardised by the training examples' mean and deviation.

    Args:
      name: `"digits"` (scikit-learn's 1,797 grey images of 8×8 pixels: 1,000 for training, 297 for
        validation, 500 for the test) or `"mnist1d"` (package mnist1d, sequences of length 40, made
        on the spot: 3,000, 1,000 and 1,000).
      train_size: keep this many training examples only.

    Raises:
      ValueError: a train_size that the data set does not have.
    """
    if name == "digits":
        (inputs, labels), test = _digits(), np.arange(500)
    else:
        (inputs, labels), test = _mnist1d(), np.arange(1000)
    rest = np.random.default_rng(SPLIT_SEED).permutation(np.arange(len(test), len(labels)))
    validation, train = np.split(rest, [_VALIDATION_SIZES[name]])
    train_size = len(train) if train_size is None else train_size
    if not 1 <= train_size <= len(train):
        raise ValueError(f"train_size={train_size} must be between 1 and {len(train)} for {name}.")
    train = train[:train_size]
    mean, deviation = inputs[train].mean(), inputs[train].std()
    inputs = ((inputs - mean) / deviation).astype(np.float32)
    labels = labels.astype(np.int32)
    splits = [Split(inputs[index], labels[index]) for index in (train, validation, test)]
    # Digits have 0 to 16 where files of images have 0 to 255.
    scale, dtype = (255 / 16, "uint8") if name == "digits" else (1.0, "float32")
    return Dataset(
        name,
        int(labels.max()) + 1,
        *splits,
        input_shape=inputs.shape[1:],
        classes=tuple("0123456789"),
        standardised=Raw(dtype, (scale * float(mean),), (scale * float(deviation),)),
    )


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels, the 500 test examples first."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    return pixels[order].reshape(-1, 8, 8, 1), labels[order]


def _mnist1d() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels, the package's 1,000 test examples first."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    inputs = np.concatenate([made["x_test"], made["x"]])
    return inputs[..., None], np.concatenate([made["y_test"], made["y"]])
