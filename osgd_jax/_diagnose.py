"""How far losses disagree: what the Gramians of a training say."""

from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from osgd_jax._losses import task_names


class Diagnosis(NamedTuple):
    """What the gradients of K tasks did over a training; its `str` says it in three lines.

    It describes, and names no method: over the trainings stored with this project, neither
    alignment nor cosines tell which method wins, or whether any does.

    Attributes:
      tasks: names of the tasks.
      steps: number of steps looked at.
      left_out: number of steps left out, with a NaN or infinity.
      cosines: means over the steps of the cosines between the gradients, `[K, K]`. Only steps in
        which both gradients are not zero count; NaN where there is none.
      opposed: share of these steps in which the cosine is negative, `[K, K]`, NaN likewise.
      norms: geometric means over the steps of the norms that are not zero, `[K]`; zero for a task
        without any.
      norm_ratio: largest of the norms over the smallest that is not zero.
      alignment: mean over the steps of 2 |mean of the unit gradients|^2 - 1, gradients of zero left
        out: 1 where all point the same way, 2 / K - 1 where they are orthogonal, -1 where they
        cancel.
    """

    tasks: tuple[str, ...]
    steps: int
    left_out: int
    cosines: np.ndarray
    opposed: np.ndarray
    norms: np.ndarray
    norm_ratio: float
    alignment: float

    def __str__(self) -> str:
        left_out = f" ({self.left_out} not finite, left out)" if self.left_out else ""
        first = (
            f"{self.steps} steps{left_out}, {len(self.tasks)} tasks: alignment {self.alignment:.2f}"
            f" (1 same direction, {2 / len(self.tasks) - 1:.2f} orthogonal, -1 cancelling)."
        )
        pairs = np.where(np.tri(len(self.tasks), dtype=bool), np.nan, self.cosines)
        if np.isnan(pairs).all():
            return (
                f"{first}\nNo two tasks have gradients at one step.\nThere is nothing to balance."
            )
        one, other = np.unravel_index(np.nanargmin(pairs), pairs.shape)
        present = np.where(self.norms > 0, self.norms, np.nan)
        longest, shortest = np.nanargmax(present), np.nanargmin(present)
        return (
            f"{first}\n"
            f"Most opposed: {self.tasks[one]} and {self.tasks[other]}, mean cosine"
            f" {self.cosines[one, other]:.2f}, negative in {self.opposed[one, other]:.0%} of the"
            f" steps. Norms: {self.tasks[longest]} {self.norm_ratio:.3g} times"
            f" {self.tasks[shortest]}.\n"
            "This does not tell which method wins: hold any against the sum, clipped, and with"
            " fixed weights, each at a learning rate of its own."
        )


def diagnose(gramians: ArrayLike, losses: Any = None) -> Diagnosis:
    """Say how far the gradients of several losses disagree, in direction and in length.

    Log the Gramian of some hundred steps of plain training on the sum, on the parameters that the
    losses share. Runs on the host, in float64.

    The alignment is the score of Wang, Bhartari, Li and Perdikaris, "Gradient Alignment in
    Physics-informed Neural Networks: A Second-Order Optimization Perspective", NeurIPS 2025, arXiv
    2502.00604.

    Args:
      gramians: array `[N, K, K]`: those of N steps, as from `osgd_jax.gramian`. From logged cosines
        and norms: `cosines * norms[:, :, None] * norms[:, None, :]`.
      losses: the losses of any step, as their function returns them: the tasks get their names.
        Numbers from 0 if None.

    Returns:
      A `Diagnosis`. Steps with a NaN or infinity are left out.

    Raises:
      ValueError: another shape, a negative number on a diagonal, not K losses, or no step that is
        finite.
    """
    gramians = np.asarray(gramians, np.float64)
    if gramians.ndim != 3 or gramians.shape[1] != gramians.shape[2] or not gramians.size:
        raise ValueError(
            f"gramians has shape {gramians.shape}; it must be [N, K, K], the Gramians of N steps."
            " Stack them: numpy.stack(gramians)."
        )
    num_tasks = gramians.shape[1]
    names = tuple(map(str, range(num_tasks))) if losses is None else task_names(losses)
    if len(names) != num_tasks:
        raise ValueError(f"losses has {len(names)} losses; the Gramians are of {num_tasks} tasks.")
    finite = np.isfinite(gramians).all(axis=(1, 2))
    if not finite.any():
        raise ValueError(f"gramians must be finite at one step at least; none of {finite.size} is.")
    gramians = gramians[finite]
    squares = np.diagonal(gramians, axis1=1, axis2=2)
    if (squares < 0).any():
        raise ValueError(
            "gramians must not be negative on the diagonal, where the squared norms are; cosines"
            " alone are no Gramians: multiply them by the norms."
        )

    present = squares > 0
    lengths = np.sqrt(np.where(present, squares, 1))
    both = present[:, :, None] & present[:, None, :]
    cosines = np.clip(gramians / lengths[:, :, None] / lengths[:, None, :], -1, 1)
    cosines = np.where(both, cosines, 0)

    norms = np.exp(_mean(np.log(lengths), present))
    shown = norms[present.any(axis=0)]
    counts = present.sum(axis=1)
    scores = 2 * cosines.sum(axis=(1, 2)) / np.maximum(counts, 1) ** 2 - 1
    return Diagnosis(
        tasks=names,
        steps=len(gramians),
        left_out=int((~finite).sum()),
        cosines=_mean(cosines, both),
        opposed=_mean(cosines < 0, both),
        norms=np.where(present.any(axis=0), norms, 0),
        norm_ratio=float(shown.max() / shown.min()) if shown.size else float("nan"),
        alignment=float(_mean(np.maximum(scores, -1), counts > 0)),
    )


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean over the steps that count; NaN where there are none."""
    number = counted.sum(axis=0)
    total = np.where(counted, values, 0).sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
