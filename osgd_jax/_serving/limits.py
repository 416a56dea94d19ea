"""The limits that choose an output, for predictor and generator."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from osgd_jax._serving.rules import Exit, make_exit
from osgd_jax._validation import as_number

Threshold = float | Sequence[float | None] | np.ndarray | None


class Limits(NamedTuple):
    """The choice of an output: at most one of three ways.

    Attributes:
      last: output `last`, where the others are None.
      leave: the first output that is sure.
      deadline: the last output that is ready after so many seconds.
    """

    last: int
    leave: Exit | None
    deadline: float | None


def check_limits(
    num_outputs: int, multiply_adds: Callable[[], Sequence[float]], rule: Any, **limits: Any
) -> Limits:
    """Check the arguments that choose outputs.

    Args:
      num_outputs: K.
      multiply_adds: gives the cumulative multiply-adds of each output; called for a budget.
      rule: the score of an early exit.
      **limits: `confidence`, `deadline`, `budget` and `output`.

    Raises:
      ValueError: one is wrong, or there is more than one.
    """
    check_at_most_one(**limits)
    output, budget, deadline = (limits.get(name) for name in ("output", "budget", "deadline"))
    last = num_outputs - 1
    if output is not None:
        if as_number(output) not in range(num_outputs):
            raise ValueError(f"output={output!r} must be one from 0 to {num_outputs - 1}.")
        last = int(output)
    if budget is not None:
        last = last_affordable(budget, multiply_adds())
    leave = make_exit(limits["confidence"], rule, num_outputs)
    return Limits(last, leave, None if deadline is None else check_deadline(deadline))


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


def last_affordable(budget: float, multiply_adds: Sequence[float]) -> int:
    """Return the last output that costs at most `budget`.

    Raises:
      ValueError: there is none.
    """
    if not as_number(budget) >= multiply_adds[0]:
        raise ValueError(
            f"budget={budget!r} must be at least {multiply_adds[0]!r}, the multiply-adds of"
            " output 0."
        )
    return max(k for k, work in enumerate(multiply_adds) if work <= float(budget))
