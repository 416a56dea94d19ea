"""Record of a run's data in its workdir, compared with the current data.

data.json describes the data that the net takes; examples.npz holds a fingerprint of every image
file, by split. `train` (new, resumed or started from another run), `evaluate` and `export` all ask
here.
"""

import dataclasses
import hashlib
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.app import data
from experiments.app.data import Dataset, Source
from experiments.app.data.dataset import SPLITS, Raw
from experiments.app.data.listing import few
from experiments.app.files import read_json, write_json
from experiments.app.settings import expanded
from experiments.app.workdir import has_results

_FIELDS = ("name", "num_classes", "classes", "input_shape", "mean", "deviation", "dtype")

# Names in a message.
_SHOWN = 5

# Bytes at the beginning and at the end of a file that tell it from others of its size.
_READ = 2**16


def read_data(workdir: Path) -> Dataset:
    """Read the description of a run's data: a data set without the examples.

    Raises:
      ValueError: the run has not loaded its data yet, or its file is damaged.
    """
    file = _file(workdir)
    if not file.exists():
        raise ValueError(f"{file} does not exist; start the run's command again, which writes it.")
    saved = read_json(file, *_FIELDS)
    return Dataset(
        saved["name"],
        saved["num_classes"],
        *(None, None, None),
        input_shape=tuple(saved["input_shape"]),
        mean=tuple(saved["mean"]),
        deviation=tuple(saved["deviation"]),
        dtype=saved["dtype"],
        classes=tuple(saved["classes"]),
    )


def load_as(known: Dataset, source: Source, option: str, *, any_size: bool = False) -> Dataset:
    """Load data for a net that was trained on other data, standardised as it was there.

    Args:
      known: what the net was trained on.
      source: of the data; images are cut to the net's size unless it gives another.
      option: of the command line that chose the data or the net, which messages name.
      any_size: whether images may have another size.

    Raises:
      ValueError: the net does not take the data; the message lists the differences.
    """
    dataset = data.load(_sized(source, known))
    wrong = misfits(known, dataset, any_size=any_size)
    if wrong:
        raise ValueError(
            f"{option} does not fit the net, which was trained on {known.name}: the data"
            f" {'; '.join(wrong)}."
        )
    return standardised_as(dataset, known.raw)


def misfits(known: Dataset, dataset: Dataset, *, any_size: bool = False) -> list[str]:
    """List why a net that was trained on `known` does not take a data set, each with a verb."""

    def kind(each: Dataset) -> dict[str, Any]:
        shape = each.input_shape
        if any_size:
            return {"axes and channels": (len(shape), *shape[1:][-1:])}
        return {"shape of an example": shape}

    def numbers(each: Dataset) -> dict[str, Any]:
        if each.is_text:
            return {"vocabulary": each.num_classes}
        return {"type of numbers": each.raw.dtype}

    old, new = ({**kind(each), **numbers(each)} for each in (known, dataset))
    wrong = [
        f"has {name} {new.get(name)}, the net {old.get(name)}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    if not (known.is_text or dataset.is_text):
        there, here = set(class_names(known)), set(class_names(dataset))
        if unknown := sorted(here - there):
            wrong.append(f"has classes that the net lacks: {few(unknown, _SHOWN)}")
        if missing := sorted(there - here):
            wrong.append(f"lacks classes of the net: {few(missing, _SHOWN)}")
    return wrong


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the classes; numbers from 0 where they have none."""
    return dataset.classes or tuple(map(str, range(dataset.num_classes)))


def class_order(known: Dataset, dataset: Dataset) -> np.ndarray:
    """Return the place in `known` of each of the data set's classes, which have the same names."""
    places = {name: place for place, name in enumerate(class_names(known))}
    return np.array([places[name] for name in class_names(dataset)])


def standardised_as(dataset: Dataset, raw: Raw) -> Dataset:
    """Standardise a data set by the mean and deviation of another one."""
    mean, deviation = np.array([raw.mean, raw.deviation])
    if dataset.standardised is not None:
        own = dataset.standardised
        mean, deviation = (mean - own.mean) / own.deviation, deviation / own.deviation
    return dataclasses.replace(
        dataset, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist())
    )


def load_to_train(
    workdir: Path, source: Source, started_from: Path | None = None, option: str = "start_from"
) -> Dataset:
    """Load the data of a run and write data.json, or compare with the data that it was trained on.

    Args:
      workdir: of the run.
      source: of the data.
      started_from: workdir of the run whose weights it begins with, if any.
      option: of the command line that named this run.

    Returns:
      The data, standardised as in the whole run.

    Raises:
      ValueError: the data is missing, the run was trained on other data, or the weights do not take
        it.
    """
    file = _file(workdir)
    if has_results(workdir) and file.exists():
        known = read_data(workdir)
        dataset = data.load(_sized(source, known))
        check_rule(workdir, dataset)
        changed = changes(workdir, dataset, fingerprints(dataset))
        if changed:
            raise ValueError(
                f"{dataset.name} is not what the run in {workdir} was trained on"
                f" ({'; '.join(changed)}); give that data, or another --workdir, or to"
                " experiments.evaluate --data."
            )
        return standardised_as(dataset, known.raw)
    if started_from is None:
        dataset = standard = data.load(source)
    else:
        standard = read_data(started_from)
        dataset = load_as(standard, source, f"{option}={started_from}", any_size=True)
    if jax.process_index() == 0:
        write_json(file, _described(dataset, standard))
        if found := fingerprints(dataset):
            before = read_fingerprints(started_from) if started_from else {}
            seen = [before[split] for split in ("train", "earlier") if before]
            earlier = np.unique(np.concatenate([np.zeros(0, np.uint64), *seen]))
            np.savez(workdir / "examples.npz", earlier=earlier, **found)  # pyright: ignore[reportArgumentType] - arrays by name
    return dataset


def check_rule(workdir: Path, dataset: Dataset) -> None:
    """Refuse a data set whose held-out examples a run of an older version may have trained on.

    Raises:
      ValueError: the run knew no rule by which examples are held out, and the data set has one.
    """
    if dataset.rule and "rule" not in read_json(_file(workdir)):
        raise ValueError(
            f"the run in {workdir} is of an earlier version, which held out other examples of"
            f" {dataset.name}, so it would be tested on examples that it was trained on; train"
            " again in another --workdir, or name the splits of the data."
        )


def changes(workdir: Path, dataset: Dataset, here: Mapping[str, np.ndarray]) -> list[str]:
    """List in words how a data set differs from the one that a run was trained on.

    Args:
      workdir: of the run.
      dataset: the data that is there.
      here: its fingerprints.
    """
    saved, found = read_json(_file(workdir), *_FIELDS), _described(dataset, dataset)
    names = saved.keys() & found.keys() - {"name", "mean", "deviation", "measured"}
    changed = [
        f"{name}: {saved[name]} → {found[name]}"
        for name in sorted(names)
        if saved[name] != found[name]
    ]
    known = read_fingerprints(workdir)
    if known and dataset.files:
        old = set(np.concatenate([known[split] for split in SPLITS]).tolist())
        added = [
            file
            for split, files in dataset.files.items()
            for file, each in zip(files, here[split].tolist(), strict=True)
            if each not in old
        ]
        removed = len(old - set(np.concatenate([*here.values()]).tolist()))
        changed += [f"images added: {len(added)} ({few(sorted(added), _SHOWN)})"] if added else []
        changed += [f"images removed: {removed}"] if removed else []
    before = saved.get("measured", saved)
    changed += [
        f"{name} of the training examples"
        for name, value in found["measured"].items()
        if not np.allclose(before[name], value, rtol=1e-4)  # rounding on another machine
    ]
    return changed


def fingerprints(dataset: Dataset) -> dict[str, np.ndarray]:
    """Compute a number from the content of each image file: its size, beginning and end.

    Returns:
      By split, uint64 `[n]`; empty for data that is not a folder of images.
    """
    root = expanded(dataset.name.partition(":")[2])

    def fingerprint(name: str) -> int:
        with (root / name).open("rb") as file:
            size = file.seek(0, 2)
            parts = [size.to_bytes(8)]
            for place in sorted({0, max(0, size - _READ)}):
                file.seek(place)
                parts.append(file.read(_READ))
        return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=8).digest())

    with ThreadPoolExecutor() as pool:  # reading and hashing release the interpreter lock
        return {
            split: np.fromiter(pool.map(fingerprint, files), np.uint64, len(files))
            for split, files in (dataset.files or {}).items()
        }


def read_fingerprints(workdir: Path) -> dict[str, np.ndarray]:
    """Read the fingerprints of a run's images by split; empty where the run has none.

    Those of `"earlier"` were training images of the runs that it started from.

    Raises:
      ValueError: the file is damaged.
    """
    file = workdir / "examples.npz"
    if not file.exists():
        return {}
    try:
        with np.load(file) as found:
            return dict(found)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged ({error}); restore it.") from None


def _described(dataset: Dataset, standard: Dataset) -> dict[str, Any]:
    """Describe a data set as data.json does, standardised as another one is."""
    sizes = {split: getattr(dataset, split).size for split in SPLITS}
    return {
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "classes": list(dataset.classes),
        "input_shape": list(dataset.input_shape),
        **standard.raw._asdict(),
        "measured": {name: list(getattr(dataset.raw, name)) for name in ("mean", "deviation")},
        "examples": sizes,
        "rule": dataset.rule,
    }


def _sized(source: Source, known: Dataset) -> Source:
    """Cut images to the size that the run knows, unless the source gives another one."""
    if len(known.input_shape) == 3 and source.image_size is None:
        return dataclasses.replace(source, image_size=known.input_shape[0])
    return source


def _file(workdir: Path) -> Path:
    return workdir / "data.json"
