"""Checks of where a predictor is written to or read from."""

import os
from pathlib import Path
from typing import Any


def check_target(path: Any) -> Path:
    """Give `path` as one to which a file can be written.

    Raises:
      ValueError: it is no path to a file, or its folder does not exist.
    """
    target = as_path(path)
    if not target.parent.is_dir():
        raise ValueError(
            f"path={str(path)!r} must be in a folder that exists; make {str(target.parent)!r}"
            " first."
        )
    return target


def as_path(path: Any) -> Path:
    """Give `path` as a `Path`.

    Raises:
      ValueError: it is something else, or a folder.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path={path!r} must be a path, a str or pathlib.Path.")
    if Path(path).is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; add the name of a file in it.")
    return Path(path)


def as_folder(path: Any) -> Path:
    """Give `path` as a `Path` to a folder that is there or can be made.

    Raises:
      ValueError: it is something else.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"folder={path!r} must be a path, a str or pathlib.Path.")
    if Path(path).is_file():
        raise ValueError(f"folder={str(path)!r} is a file; name a folder.")
    return Path(path)
