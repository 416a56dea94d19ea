"""Data sets of text: the bytes of files, or the ids from a tokenizer."""

import hashlib

import numpy as np

from experiments.app.data import splits, text_files
from experiments.app.data.dataset import Dataset, Split
from experiments.app.data.listing import few
from experiments.app.data.source import Source
from experiments.app.data.text_files import TextFiles
from experiments.app.settings import expanded

_LENGTH = 128


def load(source: Source) -> Dataset:
    """Cut a text into examples, each a window of it and the tokens that follow each position.

    The splits are those of the folder. A split that it lacks is held out of each training file: the
    last part for the test, the one before it for validation. Files that are too short to be cut go
    to one split as a whole, by their content. So no text changes its split when files are added.

    Args:
      source: `data` is pydoc (the topics of Python's own help, which come with Python: text that
        differs a little from version to version) or text:PATH, a file or a folder of text, whose
        bytes are tokens, or of `.bin` or `.npy` files of token ids.

    Raises:
      ValueError: there is no such text, too little of it, or files that cannot be read.
    """
    _, _, path = source.data.partition(":")
    if path:
        found = text_files.find(expanded(path), source.token_dtype)
    else:
        found = TextFiles(parts={"train": [("pydoc", np.frombuffer(_pydoc(), np.uint8))]})
    length = source.text_length or _LENGTH
    parts = _parts(found, source.validation_fraction, length)
    windows = {split: _windows(tokens, length) for split, tokens in parts.items()}
    if not all(split.size for split in windows.values()):
        counts = ", ".join(f"{split} {len(tokens)}" for split, tokens in parts.items())
        raise ValueError(
            f"data={source.data!r} has {sum(map(len, parts.values()))} tokens, too few for three"
            f" parts of {length + 1} each ({counts}); give more, or a smaller --text-length."
        )
    if source.train_size is not None:
        train = windows["train"]
        windows["train"] = train.read(np.arange(min(source.train_size, train.size)))
    tokens = np.concatenate(list(parts.values()))
    vocab_size = 256 if tokens.dtype == np.uint8 else int(tokens.max()) + 1
    return Dataset(
        *(source.data, vocab_size, *windows.values()),
        input_shape=(length,),
        dtype="int32",
        about=_about(source.data, found, parts, vocab_size),
        rule="by file" if found.places or len(found.files) > 1 else "",
        held_out=tuple(split for split in parts if split not in found.parts),
    )


def _pydoc() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def _parts(found: TextFiles, fraction: float, length: int) -> dict[str, np.ndarray]:
    """Return the tokens of each split."""
    files = {"train": [], "validation": [], "test": []}
    files |= {split: [tokens for _, tokens in part] for split, part in found.parts.items()}
    missing = [split for split in files if split not in found.parts]
    whole, files["train"] = files["train"], []
    for tokens in whole:
        for split, part in _cut(tokens, missing, fraction, length).items():
            files[split].append(part)
    return {split: _joined(part) for split, part in files.items()}


def _cut(
    tokens: np.ndarray, missing: list[str], fraction: float, length: int
) -> dict[str, np.ndarray]:
    """Cut a training file into a part for training and one for each split that is missing."""
    held_out = int(len(tokens) * fraction)
    if held_out <= length:
        digest = hashlib.sha256(tokens.tobytes()).digest()
        place = splits.place(digest)
        if "validation" in missing and place < fraction:
            return {"validation": tokens}
        return {"test" if "test" in missing and place >= 1 - fraction else "train": tokens}
    ends = [len(tokens) - held_out * count for count in range(len(missing), 0, -1)]
    return dict(zip(("train", *missing), np.split(tokens, ends), strict=True))


def _joined(files: list[np.ndarray]) -> np.ndarray:
    """Join files, texts by an empty line."""
    if not files:
        return np.zeros(0, np.uint8)
    if files[0].dtype == np.uint8:
        return np.frombuffer(b"\n\n".join(tokens.tobytes() for tokens in files), np.uint8)
    return np.concatenate(files)


def _windows(tokens: np.ndarray, length: int) -> Split:
    """Windows that do not overlap, and the next token at each of their positions."""
    count = max(0, (len(tokens) - 1) // length)
    inputs, following = (tokens[i : i + count * length].astype(np.int32) for i in (0, 1))
    return Split(inputs.reshape(count, length), following.reshape(count, length))


def _about(name: str, found: TextFiles, parts: dict[str, np.ndarray], vocab_size: int) -> str:
    """Describe what was read and what was left out, in one line."""
    files, digest = found.files, hashlib.sha256()
    is_text = files[0][1].dtype == np.uint8
    counts = []
    for split, tokens in parts.items():
        digest.update(tokens.tobytes())
        place = found.places.get(split, "held out of train" if split != "train" else "")
        counts.append(f"{split} {len(tokens):,}" + (f" ({place})" if place else ""))
    described = (
        f"{len(files):,} file{'s'[: len(files) > 1]} of {'text' if is_text else 'token ids'}"
    )
    line = (
        f"{name}: {described} ({few(file for file, _ in files)}); {', '.join(counts)}"
        f" {'bytes' if is_text else 'ids'}, {vocab_size:,} different at most, SHA-256"
        f" {digest.hexdigest()[:16]}…"
    )
    others = [file for file, tokens in files if is_text and not _is_utf8(tokens)]
    if others:
        line += f"; not in UTF-8, bytes as they are: {few(others)}"
    left_out = "; ".join(text_files.reasons(found))
    return f"{line}; left out: {left_out}." if left_out else f"{line}."


def _is_utf8(tokens: np.ndarray) -> bool:
    try:
        tokens.tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True
