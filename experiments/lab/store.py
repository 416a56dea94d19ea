"""The runs of a study, kept in one file, a JSON object a line.

A line holds the problem, the candidate, the stage ("tune", "rank", "test" or "look"), the learning
rate, the seed and what came of it. Lines are only added, so that a study goes on where it stopped.
"""

import fcntl
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Run = dict[str, Any]

_KEYS = ("problem", "candidate", "stage", "learning_rate", "seed")


class Store:
    """All runs of a study, read once; new ones are written as they are added.

    Several processes may add to one file: each takes up what the others have written.

    Args:
      path: of the file; may be missing.

    Raises:
      ValueError: a line is no JSON.
    """

    def __init__(self, path: Path):
        self.path = path
        self._runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
        self._keys: set[tuple[Any, ...]] = set()
        self._end = 0  # Of the whole lines that were read, in bytes.
        if path.exists():
            self._read_on()

    def of(self, problem: str, candidate: str) -> Sequence[Run]:
        """The runs of one candidate on one problem, as they were added."""
        return self._runs.get((problem, candidate), ())

    def add(self, runs: Iterable[Run]) -> None:
        """Write runs, each once, but for those that are there already."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._read_on()
            # A process that was stopped may have left half a line.
            file.truncate(self._end)
            new = {key: run for run in runs if (key := _key(run)) not in self._keys}
            lines = (json.dumps(run, separators=(",", ":")) for run in new.values())
            file.writelines(f"{line}\n".encode() for line in lines)
            file.flush()
            self._read_on()

    def _read_on(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._end)
            added = file.read()
        added = added[: added.rfind(b"\n") + 1]
        for line in added.splitlines():
            try:
                run = json.loads(line)
                self._keys.add(_key(run))
            except (ValueError, KeyError) as error:
                raise ValueError(f"{self.path} holds a line that is no run: {line!r}.") from error
            self._runs[run["problem"], run["candidate"]].append(run)
        self._end += len(added)


def _key(run: Run) -> tuple[Any, ...]:
    return tuple(run[key] for key in _KEYS)
