"""Text as tokens: the bytes of files, or the ids that a tokenizer has made of them."""

import hashlib
from pathlib import Path

import numpy as np

from experiments.data.dataset import Dataset, Split
from experiments.data.source import Source

_LENGTH = 128


def load(source: Source) -> Dataset:
    """Cut a text into examples, each a window of it and the tokens that follow each position.

    The first part of the text is for training, the next to validate on, the last for the test.

    Args:
      source: `data` is pydoc (the topics of Python's own help, which come with Python: text that
        differs a little from version to version) or text:PATH, a file or a folder of text, whose
        bytes are tokens, or a `.bin` (of uint16) or `.npy` of token ids.

    Raises:
      ValueError: there is no such text, or too little of it.
    """
    _, _, path = source.data.partition(":")
    tokens = _read(Path(path)) if path else _bytes(_pydoc())
    length = source.text_length or _LENGTH
    held_out = int(len(tokens) * source.validation_fraction)
    ends = [len(tokens) - 2 * held_out, len(tokens) - held_out]
    splits = [_windows(part, length) for part in np.split(tokens, ends)]
    if not all(split.size for split in splits):
        raise ValueError(
            f"data={source.data!r} has {len(tokens)} tokens, too few for three parts of"
            f" {length + 1} each; give more, or a smaller --text-length."
        )
    train, validation, test = splits
    if source.train_size is not None:
        train = train.read(np.arange(min(source.train_size, train.size)))
    digest = hashlib.sha256(tokens.tobytes()).hexdigest()
    vocab_size = 256 if tokens.dtype == np.uint8 else int(tokens.max()) + 1
    return Dataset(
        *(source.data, vocab_size, train, validation, test),
        input_shape=(length,),
        dtype="int32",
        about=f"{len(tokens)} tokens, {vocab_size} different at most, SHA-256 {digest[:16]}…",
    )


def _pydoc() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def _read(path: Path) -> np.ndarray:
    if not path.exists():
        raise ValueError(f"data=text:{path} must be a file or folder that is there.")
    if path.suffix == ".npy":
        tokens = np.load(path)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or tokens.min(initial=0) < 0:
            raise ValueError(
                f"data=text:{path} must hold token ids, integers [length] of 0 or more; it has"
                f" {tokens.dtype} of shape {tokens.shape}."
            )
        return tokens.astype(np.int32)
    if path.suffix == ".bin":
        return np.fromfile(path, np.uint16)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return _bytes(b"\n\n".join(file.read_bytes() for file in files))


def _windows(tokens: np.ndarray, length: int) -> Split:
    """Windows that do not overlap, and the next token at each of their positions."""
    count = max(0, (len(tokens) - 1) // length)
    inputs, following = (tokens[i : i + count * length].astype(np.int32) for i in (0, 1))
    return Split(inputs.reshape(count, length), following.reshape(count, length))
