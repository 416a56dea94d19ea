"""Count phrases of a dialect that the project's prose avoids: `python -m tests.style`."""

import re
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_FILES = "*.py", "*.md", "*.ipynb", "*.toml", "*.yml", "*.cff", "Makefile"
_LIMIT = 10  # Rare uses are plain English.
_PHRASE = re.compile(
    r"\b(?:of[ \x00]+(?:its|their)[ \x00]+own|by[ \x00]+(?:itself|themselves)|those[ \x00]+that)\b",
    re.I,
)
# A docstring that begins so is a clause without a verb.
_OPENING = re.compile(r'"""(?:What|How|Of|As)\b')


def markers(text: str) -> list[tuple[int, str]]:
    """Return the number and the text of each line with an avoided phrase.

    A phrase that a line break cuts in two belongs to the line on which it begins.
    """
    lines = text.splitlines()
    starts = [match.start() for match in _OPENING.finditer(text)]
    # Line breaks in prose, with the comment sign or the quotation marks around them.
    joined = re.sub(r'\n[ \t]*(?:#[ \t]+|[f>]?"(?=[^"]))?', _blank, text)
    starts += [match.start() for match in _PHRASE.finditer(joined)]
    numbers = sorted(text.count("\n", 0, start) for start in starts)
    return [(number + 1, lines[number].strip()) for number in numbers]


def _blank(match: re.Match[str]) -> str:
    return " " + "\x00" * (len(match.group()) - 1)


def main() -> int:
    """Print all avoided phrases in the repository; return 1 if there are too many."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *_FILES], cwd=_ROOT, capture_output=True, check=True, text=True
    )
    found = [
        f"{name}:{number}: {line:.120}"
        for name in listed.stdout.split("\0")[:-1]
        if name != "tests/style.py"
        for number, line in markers((_ROOT / name).read_text())
    ]
    print(*found, f"{len(found)} avoided phrases; there must be fewer than {_LIMIT}.", sep="\n")
    return len(found) >= _LIMIT


if __name__ == "__main__":
    sys.exit(main())
