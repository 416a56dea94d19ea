"""The checks of limits that predictor and generator share."""

from typing import Any

from osgd_jax._validation import as_number


def check_at_most_one(**limits: Any) -> None:
    """Raise a ValueError if more than one limit is given."""
    given = [f"{name}={limit!r}" for name, limit in limits.items() if limit is not None]
    if len(given) > 1:
        *names, last = (f"`{name}`" for name in limits)
        raise ValueError(
            f"Pass at most one of {', '.join(names)} and {last}; got {' and '.join(given)}."
        )


def check_deadline(deadline: Any) -> float:
    """Return a number of seconds, at least 0, as a float.

    Raises:
      ValueError: it is something else.
    """
    if not as_number(deadline) >= 0:
        raise ValueError(f"deadline={deadline!r} must be 0 seconds or more.")
    return float(deadline)
