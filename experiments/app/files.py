"""Read and write files of runs and results: in full, or an error of one sentence."""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def open_folder(folder: Path, option: str) -> None:
    """Make a folder unless it exists, and check that files can be written there.

    Args:
      folder: to write to.
      option: of the command line, which the message names.

    Raises:
      ValueError: the path is a file, or nothing can be written there.
    """
    option = f"{option}={folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.part"
        probe.touch()
        probe.unlink(missing_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{option} must be a folder, got a file or a path through one.") from None
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise ValueError(f"{option} must be a folder to write to, got {reason}.") from None


def open_file(file: Path, option: str = "output") -> None:
    """Make the folder of a file, and check that the file can be written there.

    Raises:
      ValueError: the path is a folder, or nothing can be written there.
    """
    if file.is_dir():
        raise ValueError(f"{option}={file} must be a file, got a folder.")
    open_folder(file.parent, f"folder of {option}")


def digest(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_json(file: Path, *fields: str) -> dict[str, Any]:
    """Read an object with at least these fields.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:  # of JSON or of its encoding
        raise ValueError(f"{file} is damaged ({error}); restore it or remove it.") from None
    missing = [name for name in fields if not isinstance(found, dict) or name not in found]
    if missing or not isinstance(found, dict):
        lacking = f"it lacks {', '.join(missing)}" if missing else "it holds no object"
        raise ValueError(f"{file} is damaged ({lacking}); restore it or remove it.")
    return found


def read_records(file: Path) -> list[dict[str, Any]]:
    """Read a file of one object a line, compressed if its name ends in `.gz`.

    There are none where the file is missing. A last line without an end was cut off by a crash, and
    is left out.

    Raises:
      ValueError: any other line is damaged.
    """
    content = file.read_bytes() if file.exists() else b""
    if content and file.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{file} is damaged ({error}); restore it or remove it.") from None
    lines = content.splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{file} is damaged in line {number}; restore it or remove that line.")
        records.append(record)
    return records


def write_records(file: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a file that `read_records` reads."""
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    # Without the time, so that the same records give the same file.
    _write(file, gzip.compress(content, mtime=0) if file.suffix == ".gz" else content)


def write_json(file: Path, value: Any) -> None:
    """Write a file so that it is there in full or not at all."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file so that it is there in full or not at all."""
    _write(file, text.encode())


def _write(file: Path, content: bytes) -> None:
    part = file.with_name(file.name + ".part")
    with part.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(file)
