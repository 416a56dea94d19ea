"""Settings of a training run, as given on the command line and kept in config.json."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.app import data, methods, nets, recipes
from experiments.app.augmentation import Augmentation
from experiments.app.devices import Hosts
from experiments.app.settings import SEEDS, flat, from_flat, require


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The run.

    Attributes:
      epochs: passes over the training examples.
      batch_size: examples in a step, of all devices together.
      learning_rate: highest rate of the schedule.
      schedule: of the learning rate after the warm-up; step divides it by ten at half and at three
        quarters of the run.
      warmup_epochs: epochs in which the rate rises from zero.
      loss_weights: factor of each output's loss; 1 if not given.
      start_from: workdir of another run with such a net, whose last checkpoint gives the weights to
        begin with; drawn at random if not given.
      grow_from: workdir of another run, whose net gets more outputs: as many as `outputs` in all.
        Its other sizes are taken over.
      keep: training of a grown net. frozen trains the new outputs alone, and the old ones do not
        change; held takes steps orthogonal to the gradients of the old losses, by osgd; joint
        trains all outputs.
      seed: of initial parameters, order of the examples and augmentation.
      log_every: steps from one line of metrics.jsonl to the next.
      save_every: steps from one checkpoint to the next; an epoch if not given.
      keep_last: checkpoints kept beside the one with the best validation accuracy.
      steps_per_dispatch: steps in one compiled call; 1 on CPU and 10 elsewhere if not given.
    """

    epochs: int = 30
    batch_size: int = 100
    learning_rate: float = 0.1
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    loss_weights: tuple[float, ...] | None = None
    start_from: Path | None = None
    grow_from: Path | None = None
    keep: Literal["frozen", "held", "joint"] | None = None
    seed: int = 0
    log_every: int = 10
    save_every: int | None = None
    keep_last: int = 2
    steps_per_dispatch: int | None = None

    def __post_init__(self):
        counts = ("epochs", "batch_size", "log_every", "save_every", "keep_last")
        require(self, fields=(*counts, "steps_per_dispatch"), at_least=1)
        require(self, fields=("seed",), **SEEDS)
        require(self, fields=("loss_weights",), at_least=0)
        require(self, fields=("learning_rate",), above=0)
        require(self, fields=("warmup_epochs",), at_least=0, below=self.epochs)
        if (self.grow_from is None) != (self.keep is None):
            raise ValueError(
                f"keep={self.keep} and grow_from={self.grow_from} go together; give both, with keep"
                " frozen, held or joint, or neither."
            )
        if self.grow_from is not None and self.start_from is not None:
            raise ValueError(
                f"start_from={self.start_from} cannot be given with grow_from={self.grow_from},"
                " which gives the weights too; leave it out."
            )


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train an anytime net.

    The same command continues a run that was stopped, from the last checkpoint in its workdir.

    Attributes:
      workdir: folder for config.json, metrics.jsonl, summary.json, checkpoints and event files.
      recipe: name of a recipe, whose settings replace the defaults of the other options; an unknown
        name lists them all.
      dataset: data to train on.
      net: net to train.
      method: balance of the outputs, and optimizer.
      augmentation: random changes of training examples.
      run: length and rates of the training, and intervals of its files.
      hosts: processes, and placement of the state on their devices.
    """

    workdir: Path
    recipe: str | None = None
    dataset: data.Source = dataclasses.field(default_factory=data.Source)
    net: nets.Sizes = dataclasses.field(default_factory=nets.Sizes)
    method: methods.Settings = dataclasses.field(default_factory=methods.Settings)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    run: RunSettings = dataclasses.field(default_factory=RunSettings)
    hosts: Hosts = dataclasses.field(default_factory=Hosts)

    def __post_init__(self):
        weights = self.run.loss_weights
        if weights is not None and len(weights) != self.net.outputs:
            raise ValueError(f"loss_weights={weights} must be {self.net.outputs} numbers.")
        if self.run.keep == "held" and self.method.optimizer != "osgd":
            raise ValueError(
                f"optimizer={self.method.optimizer} cannot hold outputs; give --optimizer osgd, or"
                " another --keep."
            )
        if self.run.keep == "held" and self.method.weight_decay:
            raise ValueError(
                f"weight_decay={self.method.weight_decay:g} would move the outputs that are held;"
                " leave it out, or give another --keep."
            )

    @property
    def frozen(self) -> int:
        """Number of outputs that are not trained, the first ones."""
        return self.net.grown_from[-1] if self.run.keep == "frozen" else 0

    @property
    def held(self) -> tuple[int, ...]:
        """Outputs whose losses are held."""
        return tuple(range(self.net.grown_from[-1])) if self.run.keep == "held" else ()

    def as_json(self) -> dict[str, Any]:
        """Return the fields as config.json holds them: flat, with the scope that is used."""
        return flat(self) | {"scope": self.method.chosen_scope}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """Invert `as_json`; settings of other versions are read too."""
        return from_flat(cls, fields)

    @classmethod
    def from_recipe(cls, recipe: str) -> "TrainConfig":
        """Return the settings of a recipe, which lack a workdir.

        Raises:
          ValueError: the recipe is unknown.
        """
        config = cls.from_json(recipes.settings(recipe) | {"recipe": recipe, "workdir": ""})
        return dataclasses.replace(config, workdir=tyro.MISSING)
