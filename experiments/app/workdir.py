"""Workdir of a run: config.json, compared with the current settings; of `train` and of `pinn`."""

from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import jax

from experiments.app.config import TrainConfig
from experiments.app.files import open_folder, read_json, write_json
from experiments.app.machine import versions
from experiments.app.settings import from_flat

_PACKAGES = ("osgd-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

# The programs that train, each with a setting that it alone has.
_PROGRAMS = MappingProxyType({"experiments.train": "data", "experiments.pinn": "problem"})

# What they write at the end.
_RESULTS = ("summary.json", "results.json")

# Settings that may differ when a run is resumed: they change no number in its results.
_MAY_CHANGE = frozenset(
    {"workdir", "recipe", "data_dir", "manual_dir", "workers", "keep_last", "coordinator"}
    | {"num_processes", "process_id", "shard_state"}
)


class Configuration(Protocol):
    """Settings of a run, of either program: a dataclass."""

    def as_json(self) -> dict[str, Any]:
        """Return all settings, flat: the workdir, and the one that tells the program."""
        ...


_AnyConfiguration = TypeVar("_AnyConfiguration", bound=Configuration)


def open_workdir(config: Configuration) -> dict[str, Any]:
    """Write config.json, or check that the run in the workdir has the same configuration.

    A run that has not saved anything yet takes the new configuration.

    Returns:
      The contents of config.json: all settings and the versions.

    Raises:
      ValueError: the workdir cannot be written, or holds a run of another configuration (the
        message lists the differences) or of another program.
    """
    settings = config.as_json()
    workdir = Path(settings["workdir"])
    open_folder(workdir, "workdir")
    about = {**settings, "versions": versions(*_PACKAGES)}
    if has_results(workdir) or _config_file(workdir).exists():
        (program,) = (name for name, field in _PROGRAMS.items() if field in settings)
        saved = read_settings(workdir, program)
        if has_results(workdir):
            _check_same(workdir, saved, config)
    if jax.process_index() == 0:
        write_json(_config_file(workdir), about)
    return about


def read_settings(workdir: Path, program: str = "experiments.train") -> dict[str, Any]:
    """Read config.json of a run of `program`, without the versions.

    Raises:
      ValueError: there is no run in the folder, its file is damaged, or it is another program's.
    """
    file = _config_file(workdir)
    if not file.exists():
        raise ValueError(f"{workdir} holds no run: {file} does not exist.")
    saved = read_json(file)
    found = [name for name, field in _PROGRAMS.items() if field in saved]
    if not found:
        raise ValueError(f"{file} is damaged (it lacks {_PROGRAMS[program]}); restore it.")
    if program not in found:
        raise ValueError(f"{workdir} holds a run of {found[0]}; give a workdir of {program}.")
    saved.pop("versions", None)
    return saved


def read_config(workdir: Path) -> TrainConfig:
    """Read the configuration of a run of `experiments.train`.

    Raises:
      ValueError: as `read_settings`.
    """
    return _configuration(TrainConfig, workdir, read_settings(workdir) | {"workdir": str(workdir)})


def has_results(workdir: Path) -> bool:
    """Tell whether a run has saved a checkpoint or come to its end."""
    checkpoints = workdir / "checkpoints"
    saved = checkpoints.is_dir() and any(each.name.isdigit() for each in checkpoints.iterdir())
    return saved or any((workdir / name).exists() for name in _RESULTS)


def _configuration(
    config_type: type[_AnyConfiguration], workdir: Path, saved: dict[str, Any]
) -> _AnyConfiguration:
    """Make settings of what config.json holds.

    Raises:
      ValueError: a value is out of range.
    """
    try:
        return from_flat(config_type, saved)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_config_file(workdir)} is damaged ({error}); restore it or remove it."
        ) from None


def _check_same(workdir: Path, saved: dict[str, Any], config: Configuration) -> None:
    """Raise a ValueError if a run was trained with other settings."""
    changed = _differences(workdir, saved, config)
    if not changed:
        return
    remedy = "give the same options to continue, or another --workdir"
    if "start_from" in config.as_json():
        remedy += f", with --start-from {workdir} to begin with its weights"
    if any(each.startswith("epochs: ") for each in changed):
        remedy += "; more epochs go on with it under --schedule constant alone"
    raise ValueError(
        f"{workdir} holds a run of another configuration ({'; '.join(changed)}); {remedy}."
    )


def _differences(workdir: Path, saved: dict[str, Any], config: Configuration) -> list[str]:
    """List the settings that change results and differ from a run's, as `name: old → new`.

    An option that is newer than the run had its default there. At a constant rate a run of more
    epochs only goes on longer.
    """
    current, known = config.as_json(), _configuration(type(config), workdir, saved).as_json()
    # Folders may have been moved: their contents are compared when they have been read.
    if all(str(each.get("data")).startswith("folder:") for each in (known, current)):
        known["data"] = current["data"]
    for name in ("start_from", "grow_from"):
        if _name(known.get(name)) == _name(current.get(name)):
            known[name] = current.get(name)
    names = current.keys() - _MAY_CHANGE
    constant = known.get("schedule") == current.get("schedule") == "constant"
    if constant and known["epochs"] <= current["epochs"]:
        names.discard("epochs")
    removed = [name for name in sorted(saved.keys() - current.keys()) if saved[name]]
    return [
        *(
            f"{name}: {known[name]} → {current[name]}"
            for name in sorted(names)
            if known[name] != current[name]
        ),
        *(f"{name}: {saved[name]}, an option that was removed" for name in removed),
    ]


def _name(path: str | None) -> str | None:
    return path and Path(path).name


def _config_file(workdir: Path) -> Path:
    return workdir / "config.json"
