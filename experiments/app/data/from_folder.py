"""Images in folders named by class: `PATH/train/CLASS`, `PATH/test/CLASS`, …, or `PATH/CLASS`."""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from experiments.app.data import images, splits
from experiments.app.data.dataset import Found
from experiments.app.data.listing import entries, few

# Endings of other files that are counted one by one.
_ENDINGS = 5


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files and their labels, one at a time."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    kind: images.Kind
    root: Path
    place: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path = self.paths[index]
        return images.read(path, self.kind, str(path)), self.labels[index]

    def side(self, index: int) -> int:
        """Return the shorter side, in pixels."""
        return images.header(self.paths[index], self.name(index)).side

    def name(self, index: int) -> str:
        """Return the file."""
        return str(self.paths[index])

    def file(self, index: int) -> str:
        """Return the file's name relative to the data folder, with `/` between its parts."""
        return self.paths[index].relative_to(self.root).as_posix()

    def hold_out(self, parts: Collection[str], fraction: float) -> dict[str, np.ndarray]:
        """Hold out images by their content, as `splits.hold_out_by_content` does."""
        return splits.hold_out_by_content(_digests(self.paths), parts, fraction)


@dataclasses.dataclass
class _LeftOut:
    """Content of the folders that is not used."""

    hidden: set[str] = dataclasses.field(default_factory=set)
    empty: list[str] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)
    stray: int = 0
    others: list[str] = dataclasses.field(default_factory=list)

    def parts(self) -> list[str]:
        """Each kind that there is, in words."""
        found = [
            (self.others, self.not_images()),
            (self.stray, f"files outside class folders: {self.stray:,}"),
            (self.empty, f"class folders without images: {few(self.empty)}"),
            (self.folders, f"folders: {few(self.folders)}"),
            (self.hidden, f"hidden or of the system: {few(sorted(self.hidden))}"),
        ]
        return [text for present, text in found if present]

    def not_images(self) -> str:
        """Count the other files by their endings, each with an example."""
        by_ending = collections.defaultdict(list)
        for name in self.others:
            by_ending[Path(name).suffix.lower()].append(name)
        often = sorted(by_ending.items(), key=lambda item: -len(item[1]))
        counts = [
            f"{len(names):,} {ending or 'without an ending'} ({names[0]})"
            for ending, names in often[:_ENDINGS]
        ]
        if len(often) > _ENDINGS:
            counts.append(f"{sum(len(names) for _, names in often[_ENDINGS:]):,} others")
        remedy = f"; {images.HEIC_REMEDY}" if by_ending.keys() & images.HEIC_ENDINGS else ""
        return f"not images that Pillow can read: {', '.join(counts)}{remedy}"


def open_splits(path: Path) -> Found:
    """Find the images below a folder.

    Raises:
      ValueError: no folder, no images, a split that has no training data beside it or a class that
        the training data lacks, or images that cannot be put on one scale.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"data folder {path} {what}; give --data folder:PATH.")
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
            others = f" It has files that are {left_out.not_images()}." if left_out.others else ""
            raise ValueError(
                f"{folder} has no images; expected one folder of images for each class in it."
                + others
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
                path,
                _relative(path, places[split]),
            )
            for split, found in listed.items()
        },
        classes=classes,
        kind=kind,
        about=about,
        left_out=tuple(left_out.parts()),
        rule="by content",
    )


def _split_folders(path: Path, left_out: _LeftOut) -> dict[str, Path]:
    """Return the folder of each split; all is training data if the folder has no splits."""
    below, files = entries(path, left_out.hidden)
    named = splits.find(folder.name for folder in below)
    nested = {name for name in named.values() if entries(path / name, set())[0]}
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
    """Return the image files of each class folder, both in the order of their names."""
    classes, stray = entries(folder, left_out.hidden)
    left_out.stray += len(stray)
    found = {}
    for each in classes:
        below, files = entries(each, left_out.hidden)
        left_out.folders += [f"{prefix}{each.name}/{nested.name}/" for nested in below]
        found[each.name] = []
        for file in files:
            if images.is_image(file):
                found[each.name].append(file)
            else:
                left_out.others.append(f"{prefix}{each.name}/{file.name}")
        if not found[each.name]:
            left_out.empty.append(f"{prefix}{each.name}/")
    return found


def _digests(paths: Collection[Path]) -> list[bytes]:
    """Compute the SHA-256 of the content of each file, or of nothing where it cannot be read."""

    def digest(path: Path) -> bytes:
        with contextlib.suppress(OSError), path.open("rb") as file:  # reading the image will say so
            return hashlib.file_digest(file, "sha256").digest()
        return hashlib.sha256().digest()

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return list(pool.map(digest, paths))


def _scan(files: list[Path]) -> tuple[images.Kind, str]:
    """Return the kind that holds all images, by their headers, and the modes."""

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
