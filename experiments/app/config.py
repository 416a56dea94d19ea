"""The settings of a training run, as given on the command line and kept in config.json."""

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import tyro

from experiments.app import data, methods, nets
from experiments.app.augmentation import Augmentation
from experiments.app.devices import Hosts
from experiments.app.settings import SEEDS, flat, require

# Fields that may differ when a run is resumed: they change no number in its results.
_MAY_CHANGE = frozenset(
    {"workdir", "data_dir", "manual_dir", "workers", "keep_last", "coordinator", "num_processes"}
    | {"process_id", "shard_state"}
)

# Options that are no more or newer, with the values under which older runs did without them.
_FORMER = types.MappingProxyType(
    {"test_split": None, "distillation": 0.0, "temperature": 3.0, "cutout": 0, "mixup": 0.0}
    | {"update": "sgd", "tau": 0.02, "frequencies": 0, "frequency_scale": 1.0}
)


@dataclasses.dataclass(frozen=True)
class Run:
    """The run.

    Attributes:
      epochs: passes over the training examples.
      batch_size: examples in a step, of all devices together.
      learning_rate: highest rate of the schedule.
      schedule: of the learning rate after the warm-up; step divides it by ten at half and at three
        quarters of the run.
      warmup_epochs: epochs in which the rate rises from zero.
      loss_weights: what each output's loss is multiplied with; 1 if not given.
      start_from: workdir of another run with such a net, whose last checkpoint gives the weights to
        begin with; drawn at random if not given.
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


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclasses.dataclass(frozen=True)
class Config:
    """Train an anytime net.

    The same command continues a run that was stopped, from the last checkpoint in its workdir.

    Attributes:
      workdir: folder for config.json, metrics.jsonl, summary.json, checkpoints and event files.
      dataset: what to train on.
      net: what to train.
      method: how to balance the outputs.
      augmentation: what is done to training examples.
      run: how long and at which rates to train; what is written when.
      hosts: one process or many, and how the state lies on their devices.
    """

    workdir: Path
    dataset: data.Source = dataclasses.field(default_factory=data.Source)
    net: nets.Sizes = dataclasses.field(default_factory=nets.Sizes)
    method: methods.Settings = dataclasses.field(default_factory=methods.Settings)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    run: Run = dataclasses.field(default_factory=Run)
    hosts: Hosts = dataclasses.field(default_factory=Hosts)

    def __post_init__(self):
        weights = self.run.loss_weights
        if weights is not None and len(weights) != self.net.outputs:
            raise ValueError(f"loss_weights={weights} must be {self.net.outputs} numbers.")

    def as_json(self) -> dict[str, Any]:
        """The fields as config.json holds them: flat, and the scope that is used."""
        return flat(self) | {"scope": self.method.chosen_scope}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Config":
        """The inverse of `as_json`; reads what older versions wrote, too."""
        return _made(cls, fields)


def _made(cls: Any, fields: Mapping[str, Any]) -> Any:
    """A dataclass from flat fields; those that are missing have their defaults."""
    values = {}
    for name, kind in get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            values[name] = _made(kind, fields)
        elif name in fields:
            value = fields[name]
            if value is not None and Path in (kind, *get_args(kind)):
                value = Path(value)
            values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Fields by which two runs differ in a way that changes results, as `name: old → new`.

    At a constant rate a run of more epochs only goes on longer.
    """
    names = (saved.keys() | current.keys()) - _MAY_CHANGE
    saved, current = {**_FORMER, **saved}, {**_FORMER, **current}
    constant = saved.get("schedule") == current.get("schedule") == "constant"
    if constant and saved["epochs"] <= current["epochs"]:
        names.discard("epochs")
    return [
        f"{name}: {saved.get(name)} → {current.get(name)}"
        for name in sorted(names)
        if saved.get(name) != current.get(name)
    ]
