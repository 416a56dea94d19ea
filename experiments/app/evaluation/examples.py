"""Choose the examples that an evaluation reports, without any that the run was trained on."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.app.data import Dataset, Examples, Source
from experiments.app.data.dataset import SPLITS
from experiments.app.data_record import (
    changes,
    check_rule,
    fingerprints,
    load_as,
    read_data,
    read_fingerprints,
)


class Chosen(NamedTuple):
    """The data that an evaluation reports.

    Attributes:
      dataset: standardised as in the run's training.
      tested: for each split that is reported, which of its examples are.
      validation: which validation examples may set thresholds; None where all of them are
        reported.
      name: of the files that the evaluation writes, without an ending.
      about: what was read, and how it differs from the run's data; a sentence each.
    """

    dataset: Dataset
    tested: dict[str, np.ndarray]
    validation: np.ndarray | None
    name: str
    about: tuple[str, ...]


def choose(workdir: Path, source: Source, other: str | None) -> Chosen:
    """Choose the test data of a run: its own, or all or the test part of other data.

    Data is the run's own where it is read from the same place, or has moved: it then has at least
    half of the training images. Images are told by their content.

    Args:
      workdir: of the run.
      source: of the run's data.
      other: where the data is now, or other data; None for the run's own.

    Raises:
      ValueError: the data is missing, does not fit the run, or cannot be told from training data.
    """
    known, trained = read_data(workdir), read_fingerprints(workdir)
    same_place = other in (None, source.data)
    if not same_place:
        source = dataclasses.replace(source, data=other, image_size=None)
    option = f"data={source.data}"
    whole = source if same_place else dataclasses.replace(source, train_size=None)
    dataset = load_as(known, whole, option)
    here = fingerprints(dataset)
    is_own = same_place or _share(trained, here) >= 0.5
    if is_own and whole != source:
        dataset = load_as(known, source, option)
        here = fingerprints(dataset)
    if "test" in dataset.held_out:
        check_rule(workdir, dataset)
    changed = changes(workdir, dataset, here) if is_own else []
    if changed and not here:
        raise ValueError(
            f"{dataset.name} is not what the run in {workdir} was trained on"
            f" ({'; '.join(changed)}); give --data with examples that it was not trained on."
        )
    all_of_it = not (is_own or dataset.is_text) and "test" in dataset.held_out
    unseen = {split: _unseen(dataset, split, here, trained) for split in SPLITS}
    tested = unseen if all_of_it else {"test": unseen["test"]}
    if not any(mask.any() for mask in tested.values()):
        raise ValueError(f"{dataset.name} has no images that the run was not trained on.")
    about = [dataset.about or dataset.name]
    if changed:
        about.append(f"The data has changed since the training: {'; '.join(changed)}.")
    if all_of_it:
        about.append("All of it is evaluated, because it has no test data apart.")
    if here and not trained:
        about.append("The run has no list of its training images, so none could be left out.")
    if left_out := sum(int((~mask).sum()) for mask in tested.values()):
        about.append(f"Left out, because the run was trained on them: {left_out} images.")
    has_validation = not all_of_it and (trained or not changed)
    is_result = other is None or (is_own and not changed)
    return Chosen(
        dataset,
        tested,
        unseen["validation"] if has_validation else None,
        "evaluation" if is_result else f"evaluation-{_slug(source.data)}",
        tuple(about),
    )


def _share(trained: Mapping[str, np.ndarray], here: Mapping[str, np.ndarray]) -> float:
    """Return the share of a run's training images that is in a data set."""
    if not trained or not here:
        return 0.0
    return float(np.isin(trained["train"], np.concatenate([*here.values()])).mean())


def _unseen(
    dataset: Dataset,
    split: str,
    here: Mapping[str, np.ndarray],
    trained: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Tell for each example of a split whether neither the run nor an earlier one has seen it."""
    if not trained or split not in here:
        return np.ones(getattr(dataset, split).size, bool)
    return ~np.isin(here[split], np.concatenate([trained["train"], trained["earlier"]]))


class Tested:
    """Predictions for the examples that are evaluated.

    Attributes:
      probabilities: of each output, `[K, n, classes]`.
      labels: true classes, as the net numbers them, `[n]`.
      names: of the examples: the file, or the index in the test data.

    Args:
      chosen: the examples.
      order: the net's number of each class of the data set.
      predict: from examples to probabilities `[K, n, classes]` and labels `[n]`.
    """

    def __init__(
        self,
        chosen: Chosen,
        order: np.ndarray,
        predict: Callable[[Examples], tuple[np.ndarray, np.ndarray]],
    ):
        self._dataset = chosen.dataset
        self._places = [
            (split, index)
            for split, mask in chosen.tested.items()
            for index in np.flatnonzero(mask).tolist()
        ]
        probabilities, labels = [], []
        for split, mask in chosen.tested.items():
            found, classes = predict(getattr(chosen.dataset, split))
            probabilities.append(found[:, mask])
            labels.append(order[classes[mask]])
        self.probabilities = np.concatenate(probabilities, axis=1)
        self.labels = np.concatenate(labels)
        files = chosen.dataset.files
        self.names = [files[split][index] if files else index for split, index in self._places]

    def read(self, example: int) -> np.ndarray:
        """Read the input of an example."""
        split, index = self._places[example]
        return getattr(self._dataset, split).read(np.array([index])).inputs[0]


def _slug(spec: str) -> str:
    """Turn the name of a data set into a part of a file's name; of a long one keep the end."""
    return re.sub(r"[^\w.-]+", "-", spec).strip("-.")[-100:]
