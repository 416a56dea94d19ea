"""Classify images by an exported net: `python -m experiments.predict FILE IMAGE…`.

FILE is what `python -m experiments.export` wrote, with FILE.json beside it. Images of any size,
mode and orientation are read as in training. It needs osgd_jax and pillow alone.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.app.data.images import CorruptImageError, read_image
from experiments.app.files import digest, read_json
from experiments.app.settings import expanded
from osgd_jax import AnytimePredictor

# Images that are classified together.
_TOGETHER = 64

# Classes shown of each image.
_SHOWN = 3


def predict(
    file: Path,
    images: Iterable[Path],
    *,
    confidence: float | Sequence[float | None] | None = None,
    rule: str = "confidence",
    deadline: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Classify images.

    Args:
      file: an exported net.
      images: files.
      confidence: each image is answered by the first output that is this sure of it; one number,
        or one for each output, None where no image may be answered.
      rule: by which an output is sure, as for `AnytimePredictor.predict`.
      deadline: seconds for each image, by which the answer is the latest output that is ready.

    Yields:
      For each image its `image`, and `class`, `probabilities` of all classes by name, `logits` and
      `output` (from 1); or an `error` where it cannot be read.

    Raises:
      ValueError: the file is no exported net for images, or the limits are out of range.
    """
    predictor, about, images = AnytimePredictor.load(file), description(file), list(images)
    if np.iterable(confidence):  # each batch reads it
        confidence = list(confidence)
    shape = tuple(about["input_shape"])
    if len(shape) != 3:
        raise ValueError(f"{file} takes examples of shape {shape}, which are no images.")
    together = _TOGETHER if deadline is None else 1
    if deadline is not None:
        predictor.calibrate(np.zeros((1, *shape), np.float32))
    for start in range(0, len(images), together):
        part = images[start : start + together]
        read = [_read(path, shape, about["dtype"]) for path in part]
        pixels = [each for each in read if not isinstance(each, str)]
        answers: Iterator[Any] = iter(())
        if pixels:
            x = np.stack(pixels).astype(np.float32)
            found = predictor.predict(x, deadline=deadline, confidence=confidence, rule=rule)
            answers = zip(np.asarray(found.logits), found.exits, strict=True)
        for path, each in zip(part, read, strict=True):
            if isinstance(each, str):
                yield {"image": str(path), "error": each}
            else:
                logits, output = next(answers)
                yield {"image": str(path)} | _answer(logits, output, about["classes"])


def description(file: Path) -> dict[str, Any]:
    """Return what `experiments.export` wrote beside a file.

    Raises:
      ValueError: it is missing or describes another file.
    """
    beside = file.with_name(f"{file.name}.json")
    if not beside.exists():
        raise ValueError(f"{beside} does not exist; copy it along with {file.name}.")
    about = read_json(beside, "classes", "input_shape", "dtype")
    # Files of earlier versions have no digest.
    if about.get("sha256", found := digest(file)) != found:
        raise ValueError(f"{beside} describes another file; copy it along with {file.name}.")
    return about


def _read(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray | str:
    """Return the pixels, or an error message."""
    try:
        return read_image(path, shape, dtype)
    except (CorruptImageError, ValueError) as error:
        return str(error) if path.exists() else f"{path} does not exist."


def _answer(logits: np.ndarray, output: int, classes: list[str]) -> dict[str, Any]:
    probabilities = np.asarray(jax.nn.softmax(logits.astype(np.float32))).tolist()
    return {
        "class": classes[int(logits.argmax())],
        "probabilities": dict(zip(classes, probabilities, strict=True)),
        "logits": logits.tolist(),
        "output": int(output) + 1,
    }


def line(answer: dict[str, Any], width: int) -> str:
    """Return a line of the table: image, output, and the likeliest classes."""
    likeliest = sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:_SHOWN]
    shown = "  ".join(f"{name} {100 * share:.1f} %" for name, share in likeliest)
    return f"{answer['image']:<{width}}  {answer['output']:>6}  {shown}"


def thresholds(text: str) -> float | tuple[float | None, ...]:
    """Parse one number, or several and `none` with commas between."""
    if "," not in text:
        return float(text)
    return tuple(None if each == "none" else float(each) for each in text.split(","))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser("python -m experiments.predict", description=__doc__)
    parser.add_argument("file", type=expanded, help="what experiments.export wrote")
    parser.add_argument("images", type=expanded, nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--confidence",
        type=thresholds,
        metavar="X[,X…]",
        help="how sure an output must be to answer; one number, or one for each output, none where"
        " it may not answer",
    )
    parser.add_argument(
        "--rule",
        choices=("confidence", "margin", "entropy", "agreement"),
        default="confidence",
        help="how sure an output is: the likeliest class's probability, its distance to the next,"
        " one less the entropy, or whether the output before it agrees",
    )
    parser.add_argument("--deadline", type=float, help="seconds for each image")
    parser.add_argument("--json", action="store_true", help="an object a line, for programs")
    given = parser.parse_intermixed_args()
    width = max(len(str(path)) for path in given.images)
    failed = False
    try:
        found = predict(
            given.file,
            given.images,
            confidence=given.confidence,
            rule=given.rule,
            deadline=given.deadline,
        )
        for number, answer in enumerate(found):
            if number == 0 and not given.json:
                print(f"{'image':<{width}}  output  likeliest classes")
            failed |= "error" in answer
            if given.json:
                print(json.dumps(answer))
            elif "error" in answer:
                print(f"error: {answer['error']}", file=sys.stderr)
            else:
                print(line(answer, width))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
