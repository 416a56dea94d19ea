"""Read the tokens of one file: the bytes of a text, or the ids from a tokenizer."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

# Suffixes of files of token ids, and of compressed files.
_IDS = {".bin", ".npy"}
_COMPRESSED = {".gz", ".bz2", ".xz", ".zip", ".zst"}

# Byte order marks of encodings that are read as UTF-8; UTF-32's begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

# Characters below the space that texts have: backspace to carriage return, end of file, escape.
_CONTROLS = bytes(set(range(32)) - {*range(8, 14), 26, 27})

# First number of the header of 256 int32 that llm.c writes, and the type of the ids after it.
_HEADERS = {20240520: "uint16", 20240801: "uint32"}
_HEADER_BYTES = 1024

# Numbers by which the type of ids is guessed.
_COMPARED = 1_000_000


class NotTextError(ValueError):
    """A file without tokens.

    Attributes:
      reason: what the file is instead.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name} is {reason}.")
        self.reason = reason


def holds_ids(path: Path) -> bool:
    """Return whether a file is one of token ids, by its name."""
    return _suffix(path) in _IDS


def read(path: Path, dtype: str | None) -> np.ndarray:
    """Read a file, which may be compressed by gzip, bzip2 or xz, or be the only one in a zip file.

    A text becomes its bytes. UTF-16 and UTF-32 with a byte order mark become UTF-8, and the mark is
    left out. Other encodings keep their bytes.

    Args:
      path: the file.
      dtype: of the ids in a `.bin` file; found from its numbers if None.

    Returns:
      Bytes `[length]`, uint8, or ids `[length]`, uint16 or int32.

    Raises:
      NotTextError: the file has no tokens.
      ValueError: it is damaged, or has ids out of range or of unknown type.
    """
    content = _decompressed(path)
    if not content:
        raise NotTextError(str(path), "empty")
    if content.startswith(b"\x93NUMPY") or _suffix(path) == ".npy":
        return _checked(path, _numpy_ids(path, content))
    if _suffix(path) == ".bin" and (dtype is not None or not _is_text(content)):
        return _checked(path, _binary_ids(path, content, dtype))
    return np.frombuffer(_utf8(path, content), np.uint8)


def _suffix(path: Path) -> str:
    """Return the last suffix in lower case, without the one of compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix


def _decompressed(path: Path) -> bytes:
    content = path.read_bytes()
    decompress: Callable[[bytes], bytes] | None = None
    if content.startswith(b"\x1f\x8b"):
        decompress = gzip.decompress
    elif content.startswith(b"BZh") and content[4:10] == b"1AY&SY":
        decompress = bz2.decompress
    elif content.startswith(b"\xfd7zXZ\0"):
        decompress = lzma.decompress
    elif content.startswith(b"PK\3\4"):
        decompress = _unzipped
    elif content.startswith(b"\x28\xb5\x2f\xfd"):
        raise NotTextError(str(path), "compressed by zstd, to be decompressed first")
    if decompress is None:
        return content
    try:
        return decompress(content)
    except NotTextError as error:
        raise NotTextError(str(path), error.reason) from None
    except Exception as error:  # each format fails on damaged files in another way
        raise ValueError(f"{path} is damaged and cannot be decompressed ({error}).") from None


def _unzipped(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = [member for member in archive.infolist() if not member.is_dir()]
        if len(files) != 1:
            raise NotTextError("", f"an archive of {len(files)} files, to be unpacked first")
        return archive.read(files[0])


def _utf8(path: Path, content: bytes) -> bytes:
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            with contextlib.suppress(UnicodeDecodeError):
                content = content[len(mark) :].decode(encoding).encode()
            break
    if not content:
        raise NotTextError(str(path), "empty")
    if not _is_text(content):
        raise NotTextError(str(path), "not text")
    return content


def _is_text(content: bytes) -> bool:
    """Return whether bytes are text of any encoding: no zero byte, and hardly a control character.

    A hundredth may be control characters, of which compressed and other binary data has a tenth.
    """
    controls = len(content) - len(content.translate(None, _CONTROLS))
    return b"\0" not in content and 100 * controls <= len(content)


def _numpy_ids(path: Path, content: bytes) -> np.ndarray:
    try:
        ids = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged or no array of numbers ({reason}).") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{path} must hold token ids, integers [length] of 0 or more; it has {ids.dtype} of"
            f" shape {ids.shape}."
        )
    return ids


def _binary_ids(path: Path, content: bytes, dtype: str | None) -> np.ndarray:
    header = np.frombuffer(content[:12], np.int32) if len(content) >= _HEADER_BYTES else [0]
    if dtype is None and header[0] in _HEADERS:
        dtype, content = _HEADERS[header[0]], content[_HEADER_BYTES:]
        if len(content) != header[2] * np.dtype(dtype).itemsize:
            raise ValueError(
                f"{path} is damaged: its header promises {header[2]:,} ids of {dtype}."
            )
    read_as = np.dtype(dtype or _guessed(path, content))
    if len(content) % read_as.itemsize:
        raise ValueError(
            f"{path} has {len(content):,} bytes, which is no whole number of {read_as.name} ids;"
            " it was cut off, or --token-dtype must be another."
        )
    return np.frombuffer(content, read_as)


def _guessed(path: Path, content: bytes) -> str:
    """Guess the type of ids: uint16, unless every second number is next to nothing.

    Successive ids have one distribution. The halves of one id do not, since a vocabulary is far
    smaller than the range of its type. Compare their 90th percentiles: -1 may pad some ids.
    """
    for wide, half in (("int64", "uint32"), ("uint32", "uint16"), ("uint16", "uint8")):
        size = np.dtype(wide).itemsize
        numbers = np.frombuffer(content[: len(content) // size * size], half)[:_COMPARED]
        if not len(numbers):
            continue
        low, high = (np.quantile(numbers[start::2], 0.9) for start in (0, 1))
        if 10 * min(low, high) > max(low, high):
            continue
        if low < high:
            raise ValueError(f"{path} has big-endian ids; write them as little-endian.")
        if half != "uint8" and 100 * high >= low:
            raise ValueError(f"{path} may have ids of {half} or {wide}; give --token-dtype.")
        return wide
    # A vocabulary of which both bytes are in use has ids with a low byte of almost 255.
    if max(content[::2]) < 224:
        raise ValueError(f"{path} may have ids of uint8 or uint16; give --token-dtype.")
    return "uint16"


def _checked(path: Path, ids: np.ndarray) -> np.ndarray:
    if not len(ids):
        raise NotTextError(str(path), "empty")
    for extreme in (int(ids.min()), int(ids.max())):
        if not 0 <= extreme < 2**31:
            raise ValueError(
                f"{path} must hold token ids, integers from 0 to {2**31 - 1}; it has {extreme}, of"
                f" {ids.dtype}."
            )
    return ids.astype(np.uint16 if ids.dtype == np.uint16 else np.int32)
