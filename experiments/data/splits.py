"""The usual names of splits."""

from collections.abc import Iterable

_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def find(names: Iterable[str]) -> dict[str, str]:
    """Which of `names`, in any case, are `"train"`, `"validation"` and `"test"`.

    Raises:
      ValueError: two names for the same split.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        for split, known in _NAMES.items():
            if name.casefold() in known:
                if split in found:
                    raise ValueError(
                        f"{found[split]} and {name} both are names for {split} data; rename one."
                    )
                found[split] = name
    return found
