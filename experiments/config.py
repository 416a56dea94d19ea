"""The settings of a training run, as given on the command line and kept in config.json."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

# Fields that may differ when a run is resumed: they change no number in its results.
_MAY_CHANGE = frozenset(
    {"workdir", "data_dir", "manual_dir", "workers", "keep_last", "coordinator", "num_processes"}
    | {"process_id", "shard_state"}
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Train an anytime net.

    The same command continues a run that was stopped, from the last checkpoint in its workdir.

    Attributes:
      workdir: folder for config.json, metrics.jsonl, summary.json, checkpoints and event files.
      data: digits, mnist1d, tfds:NAME (tensorflow_datasets) or folder:PATH (images by class).
      train_size: training examples to use; all if not given.
      validation_fraction: share of the training images to validate on, for tfds and folder.
      test_split: tensorflow_datasets split to test on; test, or else validation, if not given.
      image_size: side of the images; that of the data if not given.
      skip_corrupt: leave out images that cannot be read, instead of stopping.
      resident_megabytes: data sets up to this size are read once and live on the device.
      data_dir: where tensorflow_datasets keeps what it has prepared.
      manual_dir: where tensorflow_datasets finds archives downloaded by hand.
      workers: processes that read data ahead; threads do if 0.
      net: family of anytime nets.
      outputs: number of outputs, K.
      widths: channels of each level of resolution; the family's own if not given.
      blocks: residual blocks of each level; one if not given.
      norm: batch or group normalisation.
      stem: cifar, or imagenet for large images.
      precision: of the computation; parameters are always float32.
      optimizer: sgd (on the sum of the losses), osgd, the name of a weighting, or moco, db_mtl,
        excess_mtl or graddrop.
      scope: which parameters are balanced together.
      order: priority of the outputs for osgd: first_to_last, last_to_first, random, or a
        permutation such as 2,0,1.
      epochs: passes over the training examples.
      batch_size: examples in a step, of all devices together.
      learning_rate: highest rate of the schedule.
      schedule: of the learning rate after the warm-up; step divides it by ten at half and at three
        quarters of the run.
      warmup_epochs: epochs in which the rate rises from zero.
      momentum: decay rate of Nesterov momentum.
      weight_decay: times the parameters is added to the gradient.
      clip_norm: the norm to which a longer gradient is scaled down, after balancing; not clipped
        if not given.
      loss_weights: what each output's loss is multiplied with; 1 if not given.
      label_smoothing: share of the targets spread over all classes.
      distillation: share of the earlier outputs' losses that pulls them to the last output.
      temperature: of the predictions in distillation.
      pad_crop: pixels of zeros around an image before a random crop of its size.
      flip: mirror half of the images.
      cutout: side of a square that is set to zero.
      mixup: parameter of the Beta distribution that mixes pairs of images.
      resized_crop: least share of the area in a random crop, for large images.
      seed: of initial parameters, order of the examples and augmentation.
      log_every: steps from one line of metrics.jsonl to the next.
      save_every: steps from one checkpoint to the next; an epoch if not given.
      keep_last: checkpoints kept beside the one with the best validation accuracy.
      steps_per_dispatch: steps in one compiled call; 1 on CPU and 10 elsewhere if not given.
      shard_state: split parameters and optimizer state over the devices, for nets too large for
        one.
      coordinator: HOST:PORT of process 0, or auto to find it on SLURM, Kubernetes or a TPU pod;
        one process alone if not given.
      num_processes: number of processes, with an explicit coordinator.
      process_id: of this process, from 0, with an explicit coordinator.
    """

    workdir: Path
    data: str = "digits"
    train_size: int | None = None
    validation_fraction: float = 0.1
    test_split: str | None = None
    image_size: int | None = None
    skip_corrupt: bool = False
    resident_megabytes: int = 2000
    data_dir: Path | None = None
    manual_dir: Path | None = None
    workers: int = 0

    net: Literal["branched", "msdnet", "width-nested", "depth-nested", "nested"] = "depth-nested"
    outputs: int = 3
    widths: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None
    norm: Literal["batch", "group"] = "batch"
    stem: Literal["cifar", "imagenet"] = "cifar"
    precision: Literal["float32", "bfloat16"] = "float32"

    optimizer: str = "osgd"
    scope: Literal["shared", "all", "leaf", "reach"] = "shared"
    order: str = "first_to_last"
    epochs: int = 30
    batch_size: int = 100
    learning_rate: float = 0.1
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None
    loss_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 3.0

    pad_crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    resized_crop: float = 0.0

    seed: int = 0
    log_every: int = 10
    save_every: int | None = None
    keep_last: int = 2
    steps_per_dispatch: int | None = None
    shard_state: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self):
        for field in ("outputs", "epochs", "batch_size", "log_every", "keep_last"):
            _require(self, field, getattr(self, field) >= 1, "at least 1")
        for field in ("train_size", "image_size", "save_every", "steps_per_dispatch"):
            value = getattr(self, field)
            _require(self, field, value is None or value >= 1, "at least 1")
        for field in ("workers", "resident_megabytes", "seed", "warmup_epochs", "weight_decay"):
            _require(self, field, getattr(self, field) >= 0, "at least 0")
        for field in ("pad_crop", "cutout", "mixup"):
            _require(self, field, getattr(self, field) >= 0, "at least 0")
        for field in ("momentum", "label_smoothing"):
            _require(self, field, 0 <= getattr(self, field) < 1, "at least 0 and below 1")
        for field in ("distillation", "resized_crop"):
            _require(self, field, 0 <= getattr(self, field) <= 1, "between 0 and 1")
        for field in ("learning_rate", "temperature"):
            _require(self, field, getattr(self, field) > 0, "above 0")
        clips = self.clip_norm is None or self.clip_norm > 0
        _require(self, "clip_norm", clips, "above 0")
        inside = 0 < self.validation_fraction < 0.5
        _require(self, "validation_fraction", inside, "between 0 and 0.5")
        weights = self.loss_weights
        if weights is not None and (len(weights) != self.outputs or min(weights) < 0):
            raise ValueError(
                f"loss_weights={weights} must be {self.outputs} numbers of at least 0."
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}."
            )

    def as_json(self) -> dict[str, Any]:
        """The fields as config.json holds them."""
        return {
            name: list(value)
            if isinstance(value, tuple)
            else str(value)
            if isinstance(value, Path)
            else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Config":
        """The inverse of `as_json`."""
        made: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        for name in ("workdir", "data_dir", "manual_dir"):
            made[name] = None if made[name] is None else Path(made[name])
        return cls(**made)


def differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Fields by which two runs differ in a way that changes results, as `name: old → new`."""
    names = (saved.keys() | current.keys()) - _MAY_CHANGE
    return [
        f"{name}: {saved.get(name)} → {current.get(name)}"
        for name in sorted(names)
        if saved.get(name) != current.get(name)
    ]


def _require(config: Config, field: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{field}={getattr(config, field)} must be {wanted}.")
