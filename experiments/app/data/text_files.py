"""Find the files of a text by split: `train`, `val` and `test` files or folders, or all files."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from experiments.app.data import splits, tokens
from experiments.app.data.listing import entries, few, walk

# Programs such as train.py and test.py are no splits.
_PROGRAMS = {".py", ".ipynb", ".sh", ".js", ".ts"}


@dataclasses.dataclass
class TextFiles:
    """Tokens of a text and their sources.

    Attributes:
      parts: for `"train"`, and for `"validation"` and `"test"` where these are told apart, the name
        and the tokens of each file.
      places: for each part the file or folder that holds it; empty where nothing is told apart.
      left_out: files that are not used, by reason.
    """

    parts: dict[str, list[tuple[str, np.ndarray]]] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, list[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )

    @property
    def files(self) -> list[tuple[str, np.ndarray]]:
        """Name and tokens of each file of any part."""
        return [file for part in self.parts.values() for file in part]


def find(path: Path, token_dtype: str | None) -> TextFiles:
    """Read a file, or the files of a folder.

    Args:
      path: a file or folder.
      token_dtype: as for `tokens.read`.

    Raises:
      ValueError: nothing is there, a file is damaged, a split has no training text beside it, or
        text and token ids are mixed.
    """
    if not path.exists():
        raise ValueError(f"data=text:{path} must be a file or folder that is there.")
    found = TextFiles()
    if not path.is_dir():
        found.parts["train"] = [(path.name, tokens.read(path, token_dtype))]
        return found
    hidden: set[str] = set()
    folders, files = entries(path, hidden)
    places = _splits(path, folders, files)
    for split, chosen in (places or {"train": [path]}).items():
        found.parts[split] = [
            (file.relative_to(path).as_posix(), each)
            for place in chosen
            for file, each in _read(path, place, token_dtype, hidden, found.left_out)
        ]
        if not found.parts[split]:
            left_out = f"; left out: {'; '.join(reasons(found))}" if reasons(found) else ""
            raise ValueError(f"{few(map(str, chosen))} has no text{left_out}.")
    if places:
        found.places = {split: few(map(_shown, chosen)) for split, chosen in places.items()}
        used = {place for chosen in places.values() for place in chosen}
        found.left_out["beside the splits"] += [
            _shown(each) for each in sorted([*folders, *files]) if each not in used
        ]
    found.left_out["hidden or of the system"] += sorted(hidden)
    kinds = {each.dtype == np.uint8 for _, each in found.files}
    if len(kinds) > 1:
        raise ValueError(f"{path} mixes text and token ids in its splits; use one of them.")
    return found


def reasons(found: TextFiles) -> list[str]:
    """Describe the files that are left out."""
    return [f"{reason}: {few(names)}" for reason, names in found.left_out.items() if names]


def _splits(path: Path, folders: list[Path], files: list[Path]) -> dict[str, list[Path]]:
    """Return the files or folders of each split, token files first; none if there is no `train`.

    Names are `train.txt`, `val.bin`, `test/`, or with other words: `wiki.train.tokens`.
    """
    ids = list(filter(tokens.holds_ids, files))
    texts = [file for file in files if file not in ids and file.suffix.lower() not in _PROGRAMS]
    groups, alone = (ids, [*folders, *texts]), []
    for by_what in (_by_name, _by_words):
        for candidates in groups:
            named = by_what(candidates)
            if "train" in named:
                return named
            alone += named.values()
    if alone:
        raise ValueError(
            f"{path} has {_shown(alone[0][0])} and no train file or folder beside it; rename one."
        )
    return {}


def _by_name(candidates: Iterable[Path]) -> dict[str, list[Path]]:
    paths = {each.name: each for each in candidates}
    named = splits.find(paths, key=lambda name: name.split(".")[0])
    return {split: [paths[name]] for split, name in named.items()}


def _by_words(candidates: Iterable[Path]) -> dict[str, list[Path]]:
    named = collections.defaultdict(list)
    for each in candidates:
        words = re.split(r"[\W_]+", each.name)
        split, *others = {split for word in words for split in splits.find([word])} or [""]
        if split and not others:
            named[split].append(each)
    return dict(named) if "train" in named and len(named) > 1 else {}


def _read(
    path: Path,
    place: Path,
    token_dtype: str | None,
    hidden: set[str],
    left_out: dict[str, list[str]],
) -> Iterator[tuple[Path, np.ndarray]]:
    """Read a file, or the texts below a folder, or its token files where it has no text."""
    if not place.is_dir():
        yield place, tokens.read(place, token_dtype)
        return
    files = walk(place, hidden)
    ids = list(filter(tokens.holds_ids, files))
    has_text = False
    for file in itertools.filterfalse(tokens.holds_ids, files):
        if not file.is_file():
            left_out["links to nothing and devices"].append(file.relative_to(path).as_posix())
            continue
        try:
            read = tokens.read(file, None)
        except tokens.NotTextError as error:
            left_out[error.reason].append(file.relative_to(path).as_posix())
        else:
            has_text = True
            yield file, read
    if has_text:
        left_out["token files beside text"] += [file.relative_to(path).as_posix() for file in ids]
        return
    for file in ids:
        yield file, tokens.read(file, token_dtype)


def _shown(place: Path) -> str:
    return f"{place.name}/" if place.is_dir() else place.name
