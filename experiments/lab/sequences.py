"""Fresh sequences of MNIST-1D, as many as a study needs."""

import functools

import numpy as np

from experiments.app.data import Dataset, Split

# Seeds of the splits; any other seed gives sequences that are in none of them.
_TRAIN, _VALIDATION, _TEST = 0, 1, 2


def load(train_size: int, held_out: int = 5000) -> Dataset:
    """Make a data set, standardised by the training examples' mean and deviation.

    The sequences of a smaller training set are the first ones of a larger one.

    Args:
      train_size: training examples.
      held_out: validation examples, and as many test examples.
    """
    drawn = draw(train_size, _TRAIN), draw(held_out, _VALIDATION), draw(held_out, _TEST)
    splits = [standardised(split, train_size) for split in drawn]
    return Dataset("mnist1d", 10, *splits, input_shape=(40, 1))


def standardised(split: Split, train_size: int) -> Split:
    """Return drawn examples, scaled by the mean and deviation of this many training examples."""
    train = draw(train_size, _TRAIN).inputs
    return Split((split.inputs - train.mean()) / train.std(), split.labels)


@functools.lru_cache(8)
def draw(count: int, seed: int) -> Split:
    """Draw sequences from the package's generator, the classes in turn.

    Args:
      count: number of sequences.
      seed: of NumPy's global generator, which the package uses.
    """
    from mnist1d.data import get_dataset_args, get_templates
    from mnist1d.transform import transform

    templates, settings = get_templates(), get_dataset_args()
    before = np.random.get_state()
    np.random.seed(seed)
    labels = np.arange(count, dtype=np.int32) % 10
    drawn = [transform(templates["x"][k], templates["t"], settings)[0] for k in labels]
    np.random.set_state(before)
    return Split(np.stack(drawn)[..., None].astype(np.float32), labels)
