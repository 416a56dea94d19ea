"""Images in folders named by class: `PATH/train/CLASS` and `PATH/test/CLASS`, or `PATH/CLASS`.

With `PATH/CLASS`, validation and test images are cut from all.
"""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.data.images import decode

_TEST_NAMES = ("test", "val", "validation")


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files and their labels, one at a time."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    mode: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return decode(self.paths[index], self.mode), self.labels[index]

    def name(self, index: int) -> str:
        """The file."""
        return str(self.paths[index])


def open_splits(path: Path) -> tuple[ImageFiles, ImageFiles | None, int]:
    """Find the images below a folder.

    Returns:
      Training images, test images (None where the folder does not tell them apart), and the number
      of classes.

    Raises:
      ValueError: no folder, no images, or a test class that is not in the training folder.
    """
    if not path.is_dir():
        raise ValueError(f"data folder {path} does not exist; give --data folder:PATH.")
    train = path / "train" if (path / "train").is_dir() else path
    classes = sorted(each.name for each in train.iterdir() if each.is_dir())
    mode = None
    splits = []
    tests = [path / name for name in _TEST_NAMES if train != path and (path / name).is_dir()]
    for folder in [train, *tests[:1]]:
        extra = {each.name for each in folder.iterdir() if each.is_dir()} - set(classes)
        if extra:
            raise ValueError(
                f"{folder} has classes that {train} lacks: {', '.join(sorted(extra))}."
            )
        paths, labels = _list_images(folder, classes)
        if not paths:
            raise ValueError(
                f"{folder} has no images; expected one folder of images for each class in it."
            )
        mode = mode or _mode_of(paths)
        splits.append(ImageFiles(paths, labels, mode))
    return splits[0], splits[1] if len(splits) > 1 else None, len(classes)


def _list_images(folder: Path, classes: list[str]) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    endings = Image.registered_extensions()
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in endings
    ]
    return tuple(path for path, _ in found), tuple(label for _, label in found)


def _mode_of(paths: tuple[Path, ...]) -> str:
    """Grey if the first readable image is, else colour."""
    for path in paths:
        try:
            with Image.open(path) as image:
                return "L" if image.mode in ("1", "L", "I", "I;16", "F", "LA") else "RGB"
        except OSError:
            continue
    return "RGB"
