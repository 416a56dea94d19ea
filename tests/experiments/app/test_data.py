"""The built-in data sets."""

import numpy as np
import pytest

from experiments.app import data


@pytest.mark.parametrize(("name", "shape"), [("digits", (8, 8, 1)), ("mnist1d", (40, 1))])
def test_splits_are_disjoint_standardised_and_the_same_every_time(name, shape):
    first, second = (data.load(data.Source(name)) for _ in range(2))
    assert first.input_shape == shape
    assert first.num_classes == 10
    np.testing.assert_allclose(first.train.inputs.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(first.train.inputs.std(), 1, atol=1e-5)
    seen = set()
    for split, again in zip(
        (first.train, first.validation, first.test),
        (second.train, second.validation, second.test),
        strict=True,
    ):
        np.testing.assert_array_equal(split.inputs, again.inputs)
        np.testing.assert_array_equal(split.labels, again.labels)
        assert set(split.labels.tolist()) == set(range(10))
        examples = {example.tobytes() for example in split.inputs}
        assert not examples & seen
        seen |= examples


def test_train_size_cuts_the_training_examples_only():
    full, cut = data.load(data.Source()), data.load(data.Source(train_size=50))
    np.testing.assert_array_equal(cut.train.labels, full.train.labels[:50])
    np.testing.assert_array_equal(cut.test.labels, full.test.labels)


def test_wrong_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match="data='cifar' is unknown; use digits, mnist1d, pydoc"):
        data.load(data.Source("cifar"))
    with pytest.raises(ValueError, match="train_size=1001 must be between 1 and 1000"):
        data.load(data.Source(train_size=1001))


def test_an_epoch_sees_every_example_once_and_leaves_a_remainder_out():
    batches = data.epoch_batches(10, 3, np.random.default_rng(0))
    assert batches.shape == (3, 3)
    assert len(set(batches.ravel().tolist())) == 9
