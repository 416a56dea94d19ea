"""Cut images into splits, and find splits by their usual names."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.app.data.dataset import SPLIT_SEED, Dataset, Found, Images, ImageSource
from experiments.app.data.images import CorruptImageError
from experiments.app.data.source import Source

# Images that mean and deviation are measured on.
_MEASURED = 2000

# Images whose sizes are looked at to choose one for all.
_SIDES = 100

_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def find(names: Iterable[str], key: Callable[[str], str] = str) -> dict[str, str]:
    """Which of `names`, in any case, are `"train"`, `"validation"` and `"test"`.

    Args:
      names: of files, folders or splits.
      key: the part of a name that tells its split.

    Raises:
      ValueError: two names for the same split.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        for split, known in _NAMES.items():
            if key(name).casefold() in known:
                if split in found:
                    raise ValueError(
                        f"{found[split]} and {name} both are names for {split} data; rename one."
                    )
                found[split] = name
    return found


def hold_out_at_random(
    num_examples: int, parts: Collection[str], fraction: float
) -> dict[str, np.ndarray]:
    """Hold out examples of a data set that never changes, by one fixed shuffle.

    Returns:
      Indices of `"train"` and of each of `parts`, of which each has the rounded share `fraction`.
    """
    rest, chosen = _shuffled(num_examples), {}
    held_out = round(fraction * num_examples)
    for part in parts:
        chosen[part], rest = rest[:held_out], rest[held_out:]
    return {"train": rest} | chosen


def _shuffled(num_examples: int) -> np.ndarray:
    return np.random.default_rng(SPLIT_SEED).permutation(num_examples)


def place(digest: bytes) -> float:
    """Map a digest to a number that is uniform in [0, 1) and the same on every machine."""
    return int.from_bytes(digest[:6], "big") / 2**48


def hold_out_by_content(
    digests: Sequence[bytes], parts: Collection[str], fraction: float
) -> dict[str, np.ndarray]:
    """Hold out examples by their content alone, so that each keeps its split when others come.

    The digest of an example gives it a place in [0, 1): places below `fraction` validate, those
    from `1 - fraction` on test. Copies have one place, so they are in one split. Neither names, nor
    order, nor other examples matter, except where a part would be empty: it then gets the example
    nearest to it. Adding examples therefore never moves one out of the training split.

    Args:
      digests: of each example.
      parts: which of `"validation"` and `"test"` to hold out.
      fraction: expected share of each part, below 0.5.

    Returns:
      Indices of `"train"` and of each of `parts`, by rising place.
    """
    places = np.array([place(digest) for digest in digests])
    distinct, ranks = np.unique(places, return_inverse=True)
    low, high = 0, len(distinct)
    if "test" in parts:
        high = min(np.searchsorted(distinct, 1 - fraction), high - 1)
    if "validation" in parts:
        low = min(max(np.searchsorted(distinct, fraction), 1), high)
    order = np.argsort(places, kind="stable")
    ranks = ranks[order]
    chosen = {
        "train": order[(ranks >= low) & (ranks < high)],
        "validation": order[ranks < low],
        "test": order[ranks >= high],
    }
    return {part: indices for part, indices in chosen.items() if part in ("train", *parts)}


def make_image_dataset(source: Source, found: Found) -> Dataset:
    """Cut images into splits and read them into memory if they are small.

    Args:
      source: its settings. Of the validation images no more than `train_size` are kept, too.
      found: the images. Where they have no validation or no test part, it is held out
        of the training images.

    Raises:
      ValueError: fewer than two classes, or sizes that leave a split without examples.
    """
    num_classes = len(found.classes)
    if num_classes < 2:
        raise ValueError(
            f"{source.data} has {num_classes} class; classification needs at least two."
        )
    train, train_size = found.sources["train"], source.train_size
    indices = _cut(found.sources, train_size, source.validation_fraction)
    for split, chosen in indices.items():
        if len(chosen) == 0 or (split == "train" and train_size not in (None, len(chosen))):
            raise ValueError(
                f"{source.data} has too few different images ({len(train)} to train and validate"
                f" on) for train_size={train_size} and"
                f" validation_fraction={source.validation_fraction}: {len(chosen)} for {split}."
            )
    side = source.image_size or _usual_side(train, indices["train"], source.skip_corrupt)
    shape = (side, side, found.kind.channels)
    images = {
        split: Images(
            found.sources.get(split, train), chosen, side, num_classes, source.skip_corrupt
        )
        for split, chosen in indices.items()
    }
    splits: dict[str, Any] = dict(images)
    item_bytes = math.prod(shape) * np.dtype(found.kind.dtype).itemsize
    if sum(each.size for each in images.values()) * item_bytes <= source.resident_megabytes * 1e6:
        for split, each in images.items():
            splits[split], images[split] = each.in_memory()
    files = {split: each.files for split, each in images.items()}
    mean, deviation = _mean_and_deviation(splits["train"], found.kind.dtype)
    return Dataset(
        source.data,
        num_classes,
        **splits,
        input_shape=shape,
        mean=mean,
        deviation=deviation,
        dtype=found.kind.dtype,
        classes=found.classes,
        about=_about(source.data, found, splits, side),
        files={split: names for split, names in files.items() if names is not None} or None,
        rule="" if {"validation", "test"} <= found.sources.keys() else found.rule,
        held_out=tuple(split for split in indices if split not in found.sources),
    )


def _cut(
    sources: Mapping[str, ImageSource], train_size: int | None, validation_fraction: float
) -> dict[str, np.ndarray]:
    """Return the indices of each split into its source, or else into the training images."""
    parts = [split for split in ("validation", "test") if split not in sources]
    if parts:
        cut = sources["train"].hold_out(parts, validation_fraction)
    else:
        cut = {"train": _shuffled(len(sources["train"]))}
    if "validation" in sources:
        cut["validation"] = _shuffled(len(sources["validation"]))
    if "test" in sources:
        cut["test"] = np.arange(len(sources["test"]))
    return {
        "train": cut["train"][:train_size],
        "validation": cut["validation"][:train_size],
        "test": cut["test"],
    }


def _usual_side(source: ImageSource, indices: np.ndarray, skip_corrupt: bool) -> int:
    """Return the median of the shorter sides of some images."""
    sides = []
    for index in indices[:_SIDES]:
        try:
            sides.append(source.side(int(index)))
        except CorruptImageError as error:
            if not skip_corrupt:
                raise ValueError(f"{error} Use --skip-corrupt to go on without it.") from None
    if not sides:
        raise ValueError("none of the images can be read.")
    return sorted(sides)[len(sides) // 2]


def _mean_and_deviation(train: Any, dtype: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of the first training examples, for each channel."""
    means, variances = [], []
    for start in range(0, min(_MEASURED, train.size), 32):
        inputs = train.read(np.arange(start, min(start + 32, train.size))).inputs
        means.append(inputs.mean((1, 2), np.float64))
        variances.append(inputs.var((1, 2), np.float64))
    means, variances = np.concatenate(means), np.concatenate(variances)
    mean, deviation = means.mean(0), np.sqrt(variances.mean(0) + means.var(0))
    # What hardly varies is not blown up: a quarter of a step of integers, rounding of floats.
    least = 0.25 if np.issubdtype(dtype, np.integer) else 1e-6 * np.abs(mean)
    deviation = np.maximum(deviation, least)
    return tuple(mean.tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist())


def _about(name: str, found: Found, splits: Mapping[str, Any], side: int) -> str:
    parts = []
    for split, examples in splits.items():
        source = found.sources.get(split)
        place = "held out of train" if source is None else source.place
        parts.append(f"{split} {examples.size:,}" + (f" ({place})" if place else ""))
    line = f"{name}: {len(found.classes):,} classes; {', '.join(parts)}; {found.about},"
    left_out = f"; left out: {'; '.join(found.left_out)}" if found.left_out else ""
    return f"{line} {side}×{side}{left_out}."
