"""Mistakes of a trained net: confusion matrices, figures of each class, and the wrong examples."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.app.files import write_text

# Classes up to which a matrix is in the JSON file; the .npz file has those of any number.
_MOST_CLASSES = 100

# Wrong examples of an output in the JSON file, the .csv file has all; and pairs of classes.
_MOST_WRONG, _MOST_CONFUSED = 1000, 20

_COLUMNS = ("example", "true", "predicted", "probability")


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """Predictions of K outputs for n examples of C classes, beside the true classes.

    Attributes:
      labels: true class of each example, `[n]`.
      predicted: class of each example by each output, `[K, n]`.
      probability: of that class, `[K, n]`.
      confusion: examples by output, true class and predicted class, `[K, C, C]`.
      classes: names of the classes.
      names: of the examples.
    """

    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    confusion: np.ndarray
    classes: tuple[str, ...]
    names: Sequence[Any]

    @classmethod
    def find(
        cls,
        probabilities: np.ndarray,
        labels: np.ndarray,
        classes: tuple[str, ...],
        names: Sequence[Any],
    ) -> "Mistakes":
        """Find the mistakes in probabilities `[K, n, C]`."""
        from sklearn.metrics import confusion_matrix

        predicted, every = probabilities.argmax(-1), np.arange(len(classes))
        confusion = np.stack([confusion_matrix(labels, each, labels=every) for each in predicted])
        return cls(labels, predicted, probabilities.max(-1), confusion, classes, names)

    def wrong(self, output: int) -> np.ndarray:
        """Return the indices of an output's wrong examples, the most probable mistakes first."""
        wrong = np.flatnonzero(self.predicted[output] != self.labels)
        return wrong[np.argsort(-self.probability[output, wrong], kind="stable")]

    def described(self, output: int) -> dict[str, Any]:
        """Describe an output's mistakes for JSON; figures of no examples are None."""
        confusion = self.confusion[output]
        examples, predicted = confusion.sum(1).tolist(), confusion.sum(0).tolist()
        right, wrong = np.diagonal(confusion).tolist(), self.wrong(output)
        return {
            "classes": [
                {
                    "class": name,
                    "examples": examples[c],
                    "accuracy": right[c] / examples[c] if examples[c] else None,
                    "predicted": predicted[c],
                    "precision": right[c] / predicted[c] if predicted[c] else None,
                }
                for c, name in enumerate(self.classes)
            ],
            "confusion": confusion.tolist() if len(self.classes) <= _MOST_CLASSES else None,
            "most_confused": self._most_confused(confusion),
            "wrong_examples": len(wrong),
            "wrong": [
                dict(zip(_COLUMNS, row, strict=True))
                for row in self._rows(output, wrong[:_MOST_WRONG])
            ],
        }

    def write(self, file: Path) -> None:
        """Write FILE-confusion.npz, the matrices, and FILE-wrong.csv, all wrong examples."""
        counts = self.confusion.astype(np.min_scalar_type(int(self.confusion.max())))
        matrices = file.with_name(f"{file.name}-confusion.npz")
        np.savez_compressed(matrices, confusion=counts, classes=np.array(self.classes))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("output", *_COLUMNS))
        for k in range(len(self.confusion)):
            writer.writerows((k + 1, *row) for row in self._rows(k, self.wrong(k)))
        write_text(file.with_name(f"{file.name}-wrong.csv"), text.getvalue())

    def _most_confused(self, confusion: np.ndarray) -> list[dict[str, Any]]:
        """List the pairs of classes with the most mistakes."""
        confused = confusion.copy()
        np.fill_diagonal(confused, 0)
        most = np.argsort(-confused, axis=None, kind="stable")[:_MOST_CONFUSED]
        rows, columns = np.unravel_index(most, confused.shape)
        return [
            {
                "true": self.classes[i],
                "predicted": self.classes[j],
                "examples": int(confused[i, j]),
            }
            for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
            if confused[i, j]
        ]

    def _rows(self, output: int, indices: np.ndarray) -> list[tuple[Any, str, str, float]]:
        return [
            (
                self.names[index],
                self.classes[self.labels[index]],
                self.classes[self.predicted[output, index]],
                round(float(self.probability[output, index]), 6),
            )
            for index in indices.tolist()
        ]
