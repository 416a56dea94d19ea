"""Rows of a study in one compressed file, to which several processes may add."""

import fcntl
import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# What one run gave: the fields of `KEYS`, and the study's measures.
Row = dict[str, Any]

KEYS = ("problem", "method", "stage", "learning_rate", "seed")


class Store:
    """All rows of a study, read once; new ones are written as they are added.

    The file holds JSON lines, and each `add` appends one gzip member, so `zcat` reads it. A member
    that a killed process left unfinished is dropped by the next one. The first line describes the
    study; the others are rows, each with its own problem, method, stage, learning rate and seed.

    Args:
      path: of the file; may be missing. None keeps the rows in memory only.
      settings: everything that all rows depend on, besides what `KEYS` names.
      about: further fields for the first line of a new file, such as the command.

    Raises:
      ValueError: the file is damaged, or holds rows of other settings.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        self.path = path
        wanted = json.loads(json.dumps(dict(settings or {})))
        self.about: dict[str, Any] = {"settings": wanted, **(about or {})}
        self._rows: dict[tuple[str, str], dict[tuple[Any, ...], Row]] = defaultdict(dict)
        self._end = 0  # of the complete members that were read, in bytes
        if path is not None and path.exists():
            self._read_on()
        if settings is not None and self.about["settings"] != wanted:
            raise ValueError(
                f"{path} must hold rows of the settings {wanted}, got {self.about['settings']};"
                " name another output, or repeat its settings."
            )

    def of(self, problem: str, method: str) -> Sequence[Row]:
        """Return the rows of one method on one problem, in the order in which they were added."""
        return list(self._rows.get((problem, method), {}).values())

    def all(self) -> list[Row]:
        """Return all rows."""
        return [row for rows in self._rows.values() for row in rows.values()]

    def add(self, rows: Iterable[Row]) -> None:
        """Write the rows that are not present yet."""
        rows = list(rows)
        if self.path is None:
            self._take(rows)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._read_on()
            # A process that was killed may have left half a member.
            file.truncate(self._end)
            new = {_key(row): row for row in rows if not self._has(row)}
            lines = [*([] if self._end else [self.about]), *new.values()]
            text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
            file.write(gzip.compress(text.encode(), mtime=0))
            file.flush()
            self._read_on()

    def _read_on(self) -> None:
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(self._end)
            added = file.read()
        while added:
            member = zlib.decompressobj(wbits=31)
            try:
                text = member.decompress(added)
                if not member.eof:
                    return
                lines = [json.loads(line) for line in text.splitlines()]
                if not self._end:
                    self.about = lines.pop(0)
                    self.about["settings"]
                self._take(lines)
            except (zlib.error, ValueError, KeyError, IndexError) as error:
                raise ValueError(
                    f"{self.path} must be rows of a study, got a damaged part at byte {self._end}"
                    f" ({error}); restore the file or remove it."
                ) from error
            self._end += len(added) - len(member.unused_data)
            added = member.unused_data

    def _take(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._rows[row["problem"], row["method"]].setdefault(_key(row), row)

    def _has(self, row: Row) -> bool:
        return _key(row) in self._rows[row["problem"], row["method"]]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEYS)
