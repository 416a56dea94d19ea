"""List the files of a folder, without hidden and system files."""

import os
from collections.abc import Iterable
from pathlib import Path

# Names that systems and programs put into folders, in lower case; see also `_is_hidden`.
_SYSTEM = {
    *("__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle"),
    *("lost+found", "$recycle.bin", "system volume information"),
}


def entries(folder: Path, hidden: set[str]) -> tuple[list[Path], list[Path]]:
    """List the folders and the files in a folder, sorted by name.

    Args:
      folder: the folder.
      hidden: receives the names of entries that are hidden or belong to the system.
    """
    folders, files = [], []
    with os.scandir(folder) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            if _is_hidden(entry.name):
                hidden.add("._*" if entry.name.startswith("._") else entry.name)
            elif entry.is_dir(follow_symlinks=False) or (
                entry.is_symlink() and os.path.isdir(entry.path)
            ):
                folders.append(folder / entry.name)
            else:
                files.append(folder / entry.name)
    return folders, files


def walk(folder: Path, hidden: set[str]) -> list[Path]:
    """List all files below a folder as `entries` does, those of a folder linked twice once."""
    listed, seen = [], set()

    def visit(below: Path) -> None:
        if below.resolve() in seen:
            return
        seen.add(below.resolve())
        folders, files = entries(below, hidden)
        listed.extend(files)
        for each in folders:
            visit(each)

    visit(folder)
    return sorted(listed)


def few(names: Iterable[str], shown: int = 3) -> str:
    """Join the first of some names, and count the others."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _is_hidden(name: str) -> bool:
    # Editors leave `notes.txt~`, and office programs `~$notes.docx`.
    return name.startswith((".", "~$")) or name.endswith("~") or name.casefold() in _SYSTEM
