"""Recipes: the settings of published protocols, one TOML file each.

A recipe's settings replace the defaults of `experiments.train`. Its `published` tables hold test
accuracies in percent from the literature, by data set and by net.
"""

import tomllib
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """List the recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def settings(recipe: str) -> dict[str, Any]:
    """Return a recipe's settings, flat, as config.json holds them.

    Raises:
      ValueError: the recipe is unknown.
    """
    return {name: value for name, value in _read(recipe).items() if name != "published"}


def published(recipe: str, data: str) -> dict[str, list[float]]:
    """Return the published accuracies on a data set, in percent: by net, `[K]`.

    Raises:
      ValueError: the recipe is unknown.
    """
    return _read(recipe).get("published", {}).get(data, {})


def _read(recipe: str) -> dict[str, Any]:
    if recipe not in names():
        raise ValueError(f"`recipe` must be one of {', '.join(names())}, got {recipe}.")
    return tomllib.loads((_FOLDER / f"{recipe}.toml").read_text())
