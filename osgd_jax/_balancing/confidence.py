"""Confidence intervals for means of noisy Gramians, in NumPy on the host.

All take independent draws along the first axis, or draws whose deviations from their own
expectations are uncorrelated. Where the expectations differ between draws, as over a window of a
training, the intervals are for the means and a little wide.
"""

import numpy as np

_LEVEL = 0.95
# Five draws for a covariance of three numbers.
_FEWEST = 5


def cosine_intervals(products: np.ndarray) -> np.ndarray:
    """Find intervals for m / sqrt(a b) from draws of unbiased estimates of m, a >= 0 and b >= 0.

    The interval holds the cosines t that a likelihood-ratio test does not reject. Its statistic is
    the least squared distance, in standard errors, from the means to a triple (t sqrt(a b), a, b),
    less that for the best t. So nothing is divided by a noisy, possibly negative squared norm, and
    the interval is [-1, 1] where the norms may be zero.

    Args:
      products: array `[N, pairs, 3]` of draws of m, a and b.

    Returns:
      Array `[pairs, 2]`; [-1, 1] from fewer than five draws.
    """
    count, num_pairs, _ = products.shape
    if count < _FEWEST:
        return np.tile([-1.0, 1.0], (num_pairs, 1))
    means, weights = _standardized(products)
    lengths = np.sqrt(np.maximum(means[:, 1], 0) * np.maximum(means[:, 2], 0))
    cosines = np.divide(means[:, 0], lengths, out=np.full(num_pairs, np.inf), where=lengths > 0)
    inside = np.abs(cosines) <= 1
    ends = np.array([[-1.0], [1.0]]) * np.ones(num_pairs)
    at_ends = _distances(means, weights, ends)
    nearest = np.where(inside, 0, at_ends.min(axis=0))
    best = np.where(inside, cosines, ends[at_ends.argmin(axis=0), np.arange(num_pairs)])
    limit = nearest + _quantile(count) ** 2 * (1 + nearest / (count - 1))

    # The surfaces of all t are nested, so the distance grows on both sides of the best t.
    accepted, rejected = np.stack([best, best]), ends
    for _ in range(14):
        middle = (accepted + rejected) / 2
        fits = _distances(means, weights, middle) <= limit
        accepted, rejected = np.where(fits, middle, accepted), np.where(fits, rejected, middle)
    return np.where(at_ends <= limit, ends, accepted).T


def ratio_intervals(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Find intervals for the ratio of two means in [0, 1], from draws of both, by Fieller's method.

    Args:
      numerators: array `[N, K]`.
      denominators: array `[N, K]`, not negative.

    Returns:
      Array `[K, 2]`; [0, 1] where nothing can be told, as from fewer than five draws.
    """
    count, num_tasks = numerators.shape
    if count < _FEWEST:
        return np.tile([0.0, 1.0], (num_tasks, 1))
    above, below = numerators.mean(axis=0), denominators.mean(axis=0)
    deviations = np.stack([numerators - above, denominators - below])
    factor = _quantile(count) ** 2 / (count - 1) / count
    (over, both), (_, under) = factor * np.einsum("xnk,ynk->xyk", deviations, deviations)
    square, mixed, free = below**2 - under, above * below - both, above**2 - over
    root = np.sqrt(np.maximum(mixed**2 - square * free, 0))
    bounded = square > 0
    divisor = np.where(bounded, square, 1)
    low, high = (mixed - root) / divisor, (mixed + root) / divisor
    return np.clip(np.stack([np.where(bounded, low, 0), np.where(bounded, high, 1)], 1), 0, 1)


def _quantile(count: int) -> float:
    # Not with the package, of whose time to import it would be a tenth.
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + _LEVEL) / 2))


def _standardized(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means in units in which a and b have errors of one, and the inverse covariance."""
    count = len(products)
    means = products.mean(axis=0)
    errors = products.std(axis=0, ddof=1) / np.sqrt(count)
    # Without any noise, as from batches of all examples, an error that rounding would make.
    errors = np.maximum(errors, 1e-9 * np.abs(products).mean(axis=0))
    errors = np.where(errors > 0, errors, 1)
    units = np.stack([np.sqrt(errors[:, 1] * errors[:, 2]), errors[:, 1], errors[:, 2]], axis=1)
    deviations = (products - means) / units
    covariance = np.einsum("npi,npj->pij", deviations, deviations) / (count - 1) / count
    return means / units, np.linalg.inv(covariance + 1e-8 * np.eye(3))


def _distances(means: np.ndarray, weights: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Compute the least squared distances to s (t, 1 / r, r) over s >= 0 and r > 0.

    Args:
      means: array `[pairs, 3]`.
      weights: inverse covariances, `[pairs, 3, 3]`.
      cosines: values of t, `[2, pairs]`.

    Returns:
      Array `[2, pairs]`.
    """
    t, distances = cosines.reshape(-1, 1), np.empty(0)
    means, weights = np.concatenate([means] * 2), np.concatenate([weights] * 2)
    center, width = np.zeros_like(t), 12.0
    for _ in range(7):
        # The logarithm of r, on a grid that closes in on the best.
        grid = center + width * np.linspace(-1, 1, 17)
        points = np.stack(np.broadcast_arrays(t, np.exp(-grid), np.exp(grid)), axis=-1)
        weighted = points @ weights
        along = np.einsum("pri,pi->pr", weighted, means)
        lengths = np.maximum(along, 0) / np.einsum("pri,pri->pr", weighted, points)
        residuals = means[:, None] - lengths[..., None] * points
        distances = np.einsum("pri,pri->pr", residuals @ weights, residuals)
        best = distances.argmin(axis=1)[:, None]
        center, width = np.take_along_axis(grid, best, axis=1), width / 6
    return distances.min(axis=1).reshape(cosines.shape)
