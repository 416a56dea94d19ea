"""Images in folders named by class: `PATH/train/CLASS`, `PATH/test/CLASS`, …, or `PATH/CLASS`."""

import collections
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from experiments.data import images, splits
from experiments.data.dataset import Found

# What systems put into folders, in lower case; names that begin with a dot are hidden.
_SYSTEM = {
    *("__macosx", "__pycache__", "thumbs.db", "desktop.ini", "@eadir", "#recycle"),
    *("lost+found", "$recycle.bin", "system volume information"),
}


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files and their labels, one at a time."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    kind: images.Kind
    place: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path = self.paths[index]
        return images.read(path, self.kind, str(path)), self.labels[index]

    def side(self, index: int) -> int:
        """The shorter side, in pixels."""
        return images.header(self.paths[index], self.name(index)).side

    def name(self, index: int) -> str:
        """The file."""
        return str(self.paths[index])


@dataclasses.dataclass
class _LeftOut:
    """What is in the folders and is not used."""

    hidden: set[str] = dataclasses.field(default_factory=set)
    empty: list[str] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)
    stray: int = 0
    others: int = 0

    def parts(self) -> list[str]:
        """Each kind that there is, in words."""
        found = [
            (self.others, f"files that are no images: {self.others:,}"),
            (self.stray, f"files outside class folders: {self.stray:,}"),
            (self.empty, f"class folders without images: {_few(self.empty)}"),
            (self.folders, f"folders: {_few(self.folders)}"),
            (self.hidden, f"hidden or of the system: {_few(sorted(self.hidden))}"),
        ]
        return [text for present, text in found if present]


def open_splits(path: Path) -> Found:
    """Find the images below a folder.

    Raises:
      ValueError: no folder, no images, a split that has no training data beside it or a class that
        the training data lacks, or images that cannot be put on one scale.
    """
    if not path.is_dir():
        raise ValueError(f"data folder {path} does not exist; give --data folder:PATH.")
    left_out = _LeftOut()
    places = _split_folders(path, left_out)
    files = {
        split: _class_files(folder, _relative(path, folder), left_out)
        for split, folder in places.items()
    }
    classes = tuple(name for name, found in files["train"].items() if found)
    for split, by_class in files.items():
        folder = places[split]
        missing = sorted(name for name, found in by_class.items() if found and name not in classes)
        if missing:
            raise ValueError(
                f"{folder} has classes that {places['train']} lacks: {', '.join(missing)}."
            )
        if not any(by_class.values()):
            raise ValueError(
                f"{folder} has no images; expected one folder of images for each class in it."
            )
    listed = {
        split: [(file, label) for label, name in enumerate(classes) for file in found.get(name, ())]
        for split, found in files.items()
    }
    kind, about = _scan([file for found in listed.values() for file, _ in found])
    return Found(
        sources={
            split: ImageFiles(
                tuple(file for file, _ in found),
                tuple(label for _, label in found),
                kind,
                _relative(path, places[split]),
            )
            for split, found in listed.items()
        },
        classes=classes,
        kind=kind,
        about=about,
        left_out=tuple(left_out.parts()),
    )


def _split_folders(path: Path, left_out: _LeftOut) -> dict[str, Path]:
    """The folder of each split; all is training data where the folder has no splits."""
    below, files = _entries(path, left_out)
    named = splits.find(folder.name for folder in below)
    nested = {name for name in named.values() if _entries(path / name, _LeftOut())[0]}
    train = named.get("train")
    if train is None and nested:
        raise ValueError(f"{path} has {', '.join(named.values())} and no train folder beside it.")
    # A class may be called train, too.
    if train is None or (len(named) == 1 and train not in nested):
        return {"train": path}
    used = {
        split: path / name for split, name in named.items() if split == "train" or name in nested
    }
    left_out.folders += [f"{folder.name}/" for folder in below if folder not in used.values()]
    left_out.stray += len(files)
    return used


def _class_files(folder: Path, prefix: str, left_out: _LeftOut) -> dict[str, list[Path]]:
    """The image files of each class folder, both in the order of their names."""
    classes, stray = _entries(folder, left_out)
    left_out.stray += len(stray)
    endings, found = images.endings(), {}
    for each in classes:
        below, files = _entries(each, left_out)
        left_out.folders += [f"{prefix}{each.name}/{nested.name}/" for nested in below]
        found[each.name] = [file for file in files if file.suffix.lower() in endings]
        left_out.others += len(files) - len(found[each.name])
        if not found[each.name]:
            left_out.empty.append(f"{prefix}{each.name}/")
    return found


def _entries(folder: Path, left_out: _LeftOut) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, sorted, without those hidden or of the system."""
    folders, files = [], []
    with os.scandir(folder) as found:
        for each in sorted(found, key=lambda entry: entry.name):
            if each.name.startswith(".") or each.name.casefold() in _SYSTEM:
                left_out.hidden.add("._*" if each.name.startswith("._") else each.name)
            elif each.is_dir(follow_symlinks=False) or (
                each.is_symlink() and os.path.isdir(each.path)
            ):
                folders.append(folder / each.name)
            else:
                files.append(folder / each.name)
    return folders, files


def _scan(files: list[Path]) -> tuple[images.Kind, str]:
    """The kind that holds all images, by their headers, and which modes there are."""

    def read(chunk: list[Path]) -> list[images.Header]:
        found = []
        for file in chunk:
            try:
                found.append(images.header(file, str(file)))
            except images.CorruptImageError:
                continue  # reading it will say so
        return found

    chunks = [files[start : start + 256] for start in range(0, len(files), 256)]
    with ThreadPoolExecutor() as pool:
        headers = [each for found in pool.map(read, chunks) for each in found]
    if not headers:
        raise ValueError("none of the images can be read.")
    kind = images.widest(each.kind for each in headers)
    modes = collections.Counter(each.mode for each in headers).most_common()
    about = f"images {', '.join(f'{count:,} {mode}' for mode, count in modes)} as {kind}"
    transparent = sum(each.transparent for each in headers)
    if transparent:
        about += f", {transparent:,} with transparency on white"
    halved = sum(each.halved for each in headers)
    if halved:
        about += f", {halved:,} of 16-bit colour by their upper 8 bits"
    return kind, about


def _relative(path: Path, folder: Path) -> str:
    return "" if folder == path else f"{folder.name}/"


def _few(names: list[str]) -> str:
    """The first three of some names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
