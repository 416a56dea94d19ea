"""The matrices that every weighting is tested on: rows are task gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax import weightings

COLUMNS = 24
_BATCH = 16


def zoo(num_tasks: int) -> dict[str, np.ndarray]:
    """Float32 matrices `[K, COLUMNS]` by name."""
    rng = np.random.default_rng(num_tasks)
    typical = rng.normal(size=(num_tasks, COLUMNS))
    common = rng.normal(size=COLUMNS)
    matrices = {
        "typical": typical,
        "aligned": typical * 0.3 + common,
        "conflicting": typical - 1.5 * typical.mean(axis=0),
        "scaled up": typical * 1e12,
        "scaled down": typical * 1e-12,
        "rows of all scales": typical * np.logspace(-12, 12, num_tasks)[:, None],
        "rows of two scales": typical * np.where(np.arange(num_tasks) % 2, 30, 1)[:, None],
        "duplicates": typical[np.arange(num_tasks) // 2],
        "opposite": typical[np.arange(num_tasks) // 2]
        * np.where(np.arange(num_tasks) % 2, -1, 1)[:, None],
        "zero row": typical * (np.arange(num_tasks) != num_tasks // 2)[:, None],
        "zeros": typical * 0,
        "one direction": np.outer(rng.uniform(0.5, 2, num_tasks), common),
        "low rank": typical[:, :2] @ rng.normal(size=(2, COLUMNS)),
        "orthogonal": np.eye(num_tasks, COLUMNS),
        "bfloat16": np.asarray(jnp.asarray(typical, jnp.bfloat16), np.float64),
    }
    return {name: matrix.astype(np.float32) for name, matrix in matrices.items()}


def well_conditioned(num_tasks: int) -> dict[str, np.ndarray]:
    """Those of the zoo whose rows are linearly independent, of scales not too far apart."""
    names = ("typical", "aligned", "rows of two scales", "orthogonal", "bfloat16")
    return {name: zoo(num_tasks)[name] for name in names}


def stacked(matrices: dict[str, np.ndarray]) -> np.ndarray:
    """The matrices as one array, `[number, K, COLUMNS]`."""
    return np.stack(list(matrices.values()))


def losses(num_tasks: int) -> jnp.ndarray:
    """Positive losses `[K]`."""
    return jnp.asarray(np.random.default_rng(0).uniform(0.2, 3, num_tasks), jnp.float32)


def scaled_gramian(weighting: weightings.Weighting, matrix: np.ndarray):
    """The Gramian and the scales, in float32, as `aggregate` gives them to this weighting."""
    largest = np.abs(matrix).max(axis=1)
    scales = np.where(largest > 0, 2.0 ** np.floor(np.log2(np.where(largest > 0, largest, 1))), 1)
    if weighting.scaling == "common":
        scales = np.full_like(scales, 2.0 ** np.floor(np.log2(largest.max() or 1)))
    if weighting.scaling == "none":
        scales = np.ones_like(scales)
    rows = jnp.asarray(matrix / scales[:, None], jnp.float32)
    return rows @ rows.T, jnp.asarray(scales, jnp.float32)


def call(weighting: weightings.Weighting, gramian, scales, state, losses=None, key=None):
    """`weigh`, with the scales where this weighting takes them."""
    kwargs = {"scales": scales} if weighting.scaling == "row" else {}
    return weighting.weigh(gramian, state, losses=losses, key=key, **kwargs)


def weights_of(weighting: weightings.Weighting, matrices, losses=None, key=None) -> np.ndarray:
    """Weights of a stack of matrices at the first step, float64 `[number, K]`.

    In one compiled call, of one size whatever the number of matrices, to compile less.
    """
    pairs = [scaled_gramian(weighting, matrix) for matrix in matrices]
    pairs += pairs[:1] * (_BATCH - len(pairs))
    gramians, scales = (jnp.stack(arrays) for arrays in zip(*pairs, strict=True))
    weights = _batched(weighting)(gramians, scales, losses, key)
    return np.asarray(weights, np.float64)[: len(matrices)]


@functools.cache
def _batched(weighting: weightings.Weighting):
    def one(gramian, scales, losses, key):
        return call(weighting, gramian, scales, weighting.init(), losses, key)[0]

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)))


def direction_of(weighting, matrix, losses=None, key=None) -> np.ndarray:
    """The direction for one matrix, float64."""
    return matrix.T.astype(np.float64) @ weights_of(weighting, [matrix], losses, key)[0]
