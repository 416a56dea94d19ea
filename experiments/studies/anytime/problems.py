"""Problems of the study: a net of one family on one data set, at sizes that two cores can carry."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import osgd_jax
from experiments.app import data
from experiments.app.data import Dataset, Split
from experiments.app.methods import Method
from experiments.app.nets import Family, Sizes, make_net
from experiments.lab.vectorized import Trainer

_CLASSES = 10
_SHAPES = {"mnist1d": (40, 1), "fashion_mnist": (28, 28, 1), "cifar10_jpeg": (32, 32, 3)}


@dataclasses.dataclass(frozen=True)
class NetProblem:
    """A net, a data set and the length of training.

    Attributes:
      name: of its folder of results.
      net: family.
      data: `"mnist1d"`, `"fashion_mnist"` or `"cifar10_jpeg"`.
      widths: channels of each level of resolution.
      blocks: residual blocks of each level (at the first output, for nested nets); one if None.
      train_size: training examples.
      epochs: passes over them.
      outputs: number of outputs, K.
      batch_size: examples in a step.
      momentum: decay rate of Nesterov momentum, for the methods that use it.
      weight_decay: times the parameters is added to the gradient; decoupled under AdamW.
      shrink: images are averaged over squares of so many pixels, so that more training is carried.
    """

    name: str
    net: Family
    data: str = "mnist1d"
    widths: tuple[int, ...] = (16, 16)
    blocks: tuple[int, ...] | None = None
    train_size: int = 1000
    epochs: int = 40
    outputs: int = 3
    batch_size: int = 100
    momentum: float = 0.9
    weight_decay: float = 0.0
    shrink: int = 1

    @property
    def is_sequence(self) -> bool:
        """Whether the nets are 1-D: many of these train in one `vmap`."""
        return self.data == "mnist1d"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example, channels last."""
        *spatial, channels = _SHAPES[self.data]
        return (*(side // self.shrink for side in spatial), channels)

    def load(self, fashion_mnist: Path | None, cifar10_jpeg: Path | None) -> Dataset:
        """Load the data in memory, standardised.

        Args:
          fashion_mnist: `data_dir` of `tensorflow_datasets` where Fashion-MNIST is prepared; its
            default if None.
          cifar10_jpeg: folder with `train` and `test`, each with a folder for each class.

        Raises:
          ValueError: the data is missing.
        """
        if self.data == "mnist1d":
            return data.load(data.Source("mnist1d", self.train_size))
        if self.data == "fashion_mnist":
            name, folder = "tfds:fashion_mnist", fashion_mnist
        elif cifar10_jpeg is None:
            raise ValueError(f"{self.name} needs --cifar10-jpeg, the folder of the images.")
        else:
            name, folder = f"folder:{cifar10_jpeg}", None
        loaded = data.load(data.Source(name, self.train_size, data_dir=folder))
        splits = {
            part: Split(self._shrunk(loaded.standardise(split.inputs)), split.labels)
            for part in ("train", "validation", "test")
            for split in [getattr(loaded, part)]
        }
        return dataclasses.replace(loaded, name=self.data, input_shape=self.input_shape, **splits)

    def _shrunk(self, images: np.ndarray) -> np.ndarray:
        height, width, channels = self.input_shape
        squares = (-1, height, self.shrink, width, self.shrink, channels)
        return images.reshape(squares).mean((2, 4))

    def make(self, dataset: Dataset, rngs: nnx.Rngs) -> osgd_jax.nets.AnytimeNet:
        """Make the net."""
        sizes = Sizes(self.net, self.outputs, self.widths, self.blocks)
        return make_net(sizes, dataset, rngs)

    def trainer(self, dataset: Dataset, method: Method, group: int = 1) -> Trainer:
        """Return the trainer of its nets, many at a time if possible."""
        make = functools.partial(self.make, dataset)
        length = {"epochs": self.epochs, "batch_size": self.batch_size}
        return Trainer(make, dataset, method, **length, group=group)

    def costs(self) -> list[osgd_jax.OutputCost]:
        """Return the cost of each output, counted without the data."""
        blank = Dataset(self.data, _CLASSES, None, None, None, input_shape=self.input_shape)
        return osgd_jax.cost(self.make(blank, nnx.Rngs(0)), self.input_shape)


SCREEN = NetProblem("mnist1d-width", "width-nested")

FAMILIES = (
    SCREEN,
    NetProblem("mnist1d-depth", "depth-nested", widths=(8, 8)),
    NetProblem("mnist1d-branched", "branched", blocks=(2, 2)),
    NetProblem("mnist1d-both", "nested"),
    NetProblem("mnist1d-width-large", "width-nested", widths=(32, 32, 32), epochs=60),
    NetProblem("mnist1d-branched-small", "branched", widths=(8, 8), blocks=(2, 2)),
)


def _image(name: str, net: Family, widths: tuple[int, ...] = (8, 16), **changes: Any) -> NetProblem:
    data = {"fashion": "fashion_mnist", "cifar": "cifar10_jpeg"}[name.partition("-")[0]]
    return NetProblem(name, net, data, widths, train_size=2000, **changes)


# At full resolution, six epochs are what is carried.
SHORT = (
    _image("fashion-width-short", "width-nested", epochs=6),
    _image("cifar-width-short", "width-nested", epochs=6),
)

IMAGES = tuple(
    problem
    for data in ("fashion", "cifar")
    for problem in (
        _image(f"{data}-width", "width-nested", epochs=20, shrink=2),
        _image(f"{data}-depth", "depth-nested", epochs=20, shrink=2),
        _image(f"{data}-branched", "branched", blocks=(2, 2), epochs=20, shrink=2),
        _image(f"{data}-both", "nested", (4, 8), epochs=20, shrink=2),
    )
)


def _setting(label: str, **changes: Any) -> NetProblem:
    return dataclasses.replace(SCREEN, name=f"{SCREEN.name}-{label}", **changes)


SETTINGS = (
    _setting("no-momentum", momentum=0.0),
    _setting("weight-decay", weight_decay=1e-3),
    _setting("batch-25", batch_size=25, epochs=20),
    _setting("batch-500", batch_size=500, epochs=120),
    _setting("2-outputs", outputs=2),
    _setting("5-outputs", outputs=5, widths=(32, 32)),
    _setting("3000-examples", train_size=3000, epochs=20),
)

# All but the settings.
ALL = (*FAMILIES, *IMAGES, *SHORT)

PROBLEMS = {problem.name: problem for problem in (*ALL, *SETTINGS)}
