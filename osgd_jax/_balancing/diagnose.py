"""Diagnose conflict between losses from the Gramians of a training run."""

from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from osgd_jax._balancing.confidence import cosine_intervals, ratio_intervals
from osgd_jax._tasks import task_names

# Pairs of tasks that `str` lists.
_LISTED = 6


class Diagnosis(NamedTuple):
    """Directions and lengths of K tasks' gradients over a training run; `str` summarizes them.

    The diagnosis recommends no method: in the stored experiments of this project, neither alignment
    nor cosines predict which method wins, or whether any does.

    The attributes up to `alignment` are of the gradients as a batch gives them. Two gradients of
    one batch share its noise, so that their cosine can be positive where the losses disagree. The
    other attributes are of the true gradients, the expectations over batches; without `cross` the
    estimates are NaN and the intervals are all that is possible.

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
      alignment: mean over the steps of :math:`2 ‖m‖² - 1`, with m the mean of the unit gradients
        that are not zero: 1 if all have the same direction, 2 / K - 1 if they are orthogonal, -1 if
        they cancel.
      unbiased_cosines: cosines between the true gradients, `[K, K]`, from the mean of the unbiased
        Gramians; NaN where its diagonal is not positive.
      cosine_intervals: their 95 % confidence intervals, `[K, K, 2]`; [-1, 1] where nothing can be
        told, as from fewer than five steps.
      squared_norms: means of the unbiased squared norms of the true gradients, `[K]`, which noise
        can make negative.
      noise: share of the squared norm of a batch's gradient that is noise, `[K]`, in [0, 1]; NaN
        for a task without any gradient.
      noise_intervals: their 95 % confidence intervals, `[K, 2]`.

    Example:
      >>> import numpy as np
      >>> import osgd_jax
      >>> gramians = np.array([[[1.0, -1.0], [-1.0, 4.0]]] * 3)
      >>> diagnosis = osgd_jax.diagnose(gramians, losses={"ic": 0.5, "pde": 2.0})
      >>> diagnosis.tasks, float(diagnosis.cosines[0, 1]), float(diagnosis.norm_ratio)
      (('ic', 'pde'), -0.5, 2.0)
    """

    tasks: tuple[str, ...]
    steps: int
    left_out: int
    cosines: np.ndarray
    opposed: np.ndarray
    norms: np.ndarray
    norm_ratio: float
    alignment: float
    unbiased_cosines: np.ndarray
    cosine_intervals: np.ndarray
    squared_norms: np.ndarray
    noise: np.ndarray
    noise_intervals: np.ndarray

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
            f"{self._conflict()}\n"
            "This does not tell which method wins: compare any with the clipped sum and with fixed"
            " weights, each at a tuned learning rate."
        )

    def _conflict(self) -> str:
        """Describe whether the losses agree, or why that cannot be told."""
        if np.isnan(self.noise).all():
            return (
                "These are cosines of gradients of the same batch, which share its noise: they do"
                " not tell whether the losses agree. Unbiased Gramians do: diagnose(..., cross=)."
            )
        one, other = np.triu_indices(len(self.tasks), 1)
        low, high = self.cosine_intervals[one, other].T
        lines = [
            f"  {self.tasks[one[k]]} and {self.tasks[other[k]]}: {self._pair((one[k], other[k]))}"
            for k in np.argsort(high + low, kind="stable")[:_LISTED]
        ]
        noisiest = int(np.nanargmax(self.noise))
        share, (least, most) = self.noise[noisiest], self.noise_intervals[noisiest]
        meaning = (
            "so judge by the unbiased cosines: those of the same batch are mostly of its noise"
            if most > 0.5
            else "so both kinds of cosine are meaningful"
        )
        return "\n".join(
            [
                f"True gradients, unbiased (95 % intervals); pairs that agree: {(low > 0).sum()},"
                f" conflict: {(high < 0).sum()}, undecided: {((low <= 0) & (high >= 0)).sum()}.",
                *lines,
                f"Noise is up to {share:.0%} [{least:.0%}, {most:.0%}] of the squared norm of a"
                f" batch's gradient ({self.tasks[noisiest]}), {meaning}.",
            ]
        )

    def _pair(self, pair: tuple[Any, Any]) -> str:
        low, high = self.cosine_intervals[pair]
        cosine = self.unbiased_cosines[pair]
        verdict = "agree" if low > 0 else "conflict" if high < 0 else "undecided"
        estimate = "unknown" if np.isnan(cosine) else f"{cosine:+.2f}"
        return (
            f"{estimate} [{low:+.2f}, {high:+.2f}], {verdict}; same batch {self.cosines[pair]:+.2f}"
        )


def diagnose(
    gramians: ArrayLike, losses: Any = None, *, cross: ArrayLike | None = None
) -> Diagnosis:
    """Describe how far the gradients of several losses disagree, in direction and in length.

    Log the Gramian of the shared parameters for some hundred steps of plain training on the sum,
    and the unbiased Gramian of two halves of each batch. This function runs on the host, in
    float64.

    Cosines of gradients of one batch are biased by the noise that they share. Cosines from `cross`
    are unbiased and have 95 % confidence intervals, which are for the mean Gramian of the steps.
    They assume a fresh batch for each step, so that the errors of the steps are uncorrelated;
    overlapping batches make them too narrow.

    The alignment is the score of Wang, Bhartari, Li and Perdikaris, "Gradient Alignment in
    Physics-informed Neural Networks: A Second-Order Optimization Perspective", NeurIPS 2025, arXiv
    2502.00604. The intervals come from the test that Fieller inverts for a ratio of means ("Some
    Problems in Interval Estimation", JRSS B 1954); that for a cosine has two squared norms as
    nuisance parameters, over which its statistic is minimized.

    Args:
      gramians: array `[N, K, K]`: those of N steps, as from `osgd_jax.gramian`. From logged cosines
        and norms: `cosines * norms[:, :, None] * norms[:, None, :]`.
      losses: the losses of any step, as their function returns them: the tasks get their names.
        Numbers from 0 if None.
      cross: array `[N, K, K]`: unbiased Gramians of the same steps, as from
        `osgd_jax.gramian(first_half, second_half)`.

    Returns:
      A `Diagnosis`. Steps with a NaN or infinity are left out.

    Raises:
      ValueError: another shape, a negative number on a diagonal of `gramians`, not K losses, or no
        step that is finite.

    Example:
      >>> import numpy as np
      >>> import osgd_jax
      >>> rng = np.random.default_rng(0)
      >>> true = np.array([[1.0, 0.0, 0.0], [-0.6, 0.8, 0.0]])
      >>> first, second = true + rng.normal(size=(2, 100, 1, 3))
      >>> batch = (first + second) / 2
      >>> gramians = batch @ batch.transpose(0, 2, 1)
      >>> diagnosis = osgd_jax.diagnose(gramians, cross=first @ second.transpose(0, 2, 1))
      >>> print(diagnosis.cosines[0, 1].round(2), diagnosis.unbiased_cosines[0, 1].round(2))
      0.25 -0.41
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
    unbiased = gramians if cross is None else np.asarray(cross, np.float64)
    if unbiased.shape != gramians.shape:
        raise ValueError(
            f"cross must be of the same steps as gramians, of shape {gramians.shape}; got"
            f" {unbiased.shape}."
        )
    finite = np.isfinite(gramians).all(axis=(1, 2)) & np.isfinite(unbiased).all(axis=(1, 2))
    if not finite.any():
        raise ValueError(f"gramians must be finite at one step at least; none of {finite.size} is.")
    gramians, unbiased = gramians[finite], unbiased[finite]
    squares = np.diagonal(gramians, axis1=1, axis2=2)
    if (squares < 0).any():
        raise ValueError(
            "gramians must not be negative on the diagonal, where the squared norms are; cosines"
            " alone are no Gramians: multiply them by the norms. Pass unbiased Gramians as cross=."
        )
    of_true = _untold(num_tasks) if cross is None else _of_true_gradients(unbiased, squares)
    return Diagnosis(
        tasks=names,
        steps=len(gramians),
        left_out=int((~finite).sum()),
        **_of_batches(gramians, squares),
        **of_true,
    )


def _of_batches(gramians: np.ndarray, squares: np.ndarray) -> dict[str, Any]:
    present = squares > 0
    lengths = np.sqrt(np.where(present, squares, 1))
    both = present[:, :, None] & present[:, None, :]
    cosines = np.clip(gramians / lengths[:, :, None] / lengths[:, None, :], -1, 1)
    cosines = np.where(both, cosines, 0)

    norms = np.exp(_mean(np.log(lengths), present))
    shown = norms[present.any(axis=0)]
    counts = present.sum(axis=1)
    scores = 2 * cosines.sum(axis=(1, 2)) / np.maximum(counts, 1) ** 2 - 1
    return {
        "cosines": _mean(cosines, both),
        "opposed": _mean(cosines < 0, both),
        "norms": np.where(present.any(axis=0), norms, 0),
        "norm_ratio": float(shown.max() / shown.min()) if shown.size else float("nan"),
        "alignment": float(_mean(np.maximum(scores, -1), counts > 0)),
    }


def _of_true_gradients(unbiased: np.ndarray, squares: np.ndarray) -> dict[str, Any]:
    num_tasks = unbiased.shape[1]
    # In units of the batches' gradients, so that no square leaves the range.
    units = np.sqrt(squares.mean(axis=0))
    units = np.where(units > 0, units, 1)
    scaled = (unbiased + unbiased.transpose(0, 2, 1)) / 2 / units[:, None] / units
    shares = np.diagonal(scaled, axis1=1, axis2=2)
    means = scaled.mean(axis=0)
    lengths = np.sqrt(np.where(np.diag(means) > 0, np.diag(means), np.nan))
    cosines = np.clip(means / lengths[:, None] / lengths, -1, 1)

    intervals = np.ones((num_tasks, num_tasks, 2))
    one, other = np.triu_indices(num_tasks, 1)
    triples = np.stack([scaled[:, one, other], shares[:, one], shares[:, other]], axis=-1)
    intervals[one, other] = intervals[other, one] = cosine_intervals(triples)
    signal = ratio_intervals(shares, squares / units**2)
    present = squares.any(axis=0)
    return {
        "unbiased_cosines": cosines,
        "cosine_intervals": intervals,
        "squared_norms": np.diag(means) * units**2,
        "noise": np.where(present, np.clip(1 - np.diag(means), 0, 1), np.nan),
        "noise_intervals": 1 - signal[:, ::-1],
    }


def _untold(num_tasks: int) -> dict[str, Any]:
    return {
        "unbiased_cosines": np.full((num_tasks, num_tasks), np.nan),
        "cosine_intervals": np.tile([-1.0, 1.0], (num_tasks, num_tasks, 1)),
        "squared_norms": np.full(num_tasks, np.nan),
        "noise": np.full(num_tasks, np.nan),
        "noise_intervals": np.tile([0.0, 1.0], (num_tasks, 1)),
    }


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the mean over the steps that count; NaN where there are none."""
    number = counted.sum(axis=0)
    total = np.where(counted, values, 0).sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
