"""Checks of settings, and their flat fields for JSON."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

# Range of a seed, for `require`: compiled programs take it as an int32, and NumPy none below zero.
SEEDS = MappingProxyType({"at_least": 0, "at_most": 2**31 - 1})


def require(
    config: Any,
    *,
    fields: Sequence[str],
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Raise a ValueError for the first field that is out of range.

    None is always in range. Of a tuple or dict each number must be, and there must be one.

    Args:
      config: a dataclass.
      fields: names of numbers, or of tuples or dicts of numbers.
      at_least: least value.
      above: value that is just too small.
      at_most: largest value.
      below: value that is just too large.
    """
    limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    wanted = " and ".join(f"{name} {each}" for name, each in limits.items() if each is not None)

    def holds(value: float) -> bool:
        # Written so that NaN is out of every range.
        return (
            (at_least is None or value >= at_least)
            and (above is None or value > above)
            and (at_most is None or value <= at_most)
            and (below is None or value < below)
        )

    for field in fields:
        value = getattr(config, field)
        if isinstance(value, tuple | dict):
            numbers = value.values() if isinstance(value, dict) else value
            if not numbers or not all(map(holds, numbers)):
                raise ValueError(f"{field}={value} must be one or more numbers, each {wanted}.")
        elif value is not None and not holds(value):
            raise ValueError(f"{field}={value} must be {wanted}.")


def expanded(path: str | Path) -> Path:
    """Return a path with `~` or `~user` at its beginning replaced by the home directory."""
    return Path(os.path.expanduser(path))


def flat(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass and of the dataclasses in it, flat, for JSON."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= flat(value)
        elif isinstance(value, Path):
            found[field.name] = str(value)
        else:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def from_flat(config_type: Any, fields: Mapping[str, Any]) -> Any:
    """Make a dataclass of settings from `flat` fields.

    Missing fields take their defaults, and unknown ones are ignored, so that files of other
    versions can be read.
    """
    values = {}
    for name, kind in get_type_hints(config_type).items():
        if dataclasses.is_dataclass(kind):
            values[name] = from_flat(kind, fields)
        elif name in fields:
            value = fields[name]
            if value is not None and Path in (kind, *get_args(kind)):
                value = Path(value)
            values[name] = tuple(value) if isinstance(value, list) else value
    return config_type(**values)
