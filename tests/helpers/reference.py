"""Orthogonalized SGD in float64 NumPy, straight from the formula.

Gradients are a list of arrays `[K, *shape]`, one for each parameter array, and a reach: a list of
sets of task indices. Nothing here is shared with the library.
"""

from collections.abc import Hashable, Sequence

import numpy as np


def gram_schmidt(rows: np.ndarray, order: Sequence[int], tolerance: float = 1e-12) -> np.ndarray:
    """Orthogonalize the rows of a matrix `[K, P]` in the order of priority, unnormalised.

    u_i = g_i - sum_{j<i} (<g_i, u_j> / <u_j, u_j>) u_j; a u_j whose squared norm is at most
    `tolerance` of that of g_j is zero.
    """
    rows = np.asarray(rows, np.float64)
    orthogonal = np.zeros_like(rows)
    earlier: list[int] = []
    for i in order:
        largest = np.abs(rows[i]).max(initial=0)
        if largest == 0:
            continue
        residual = rows[i] / largest
        # Twice, since one pass of Gram-Schmidt loses orthogonality where rows are nearly parallel.
        for _ in range(2):
            for j in earlier:
                unit = orthogonal[j] / np.abs(orthogonal[j]).max()
                residual = residual - (residual @ unit) / (unit @ unit) * unit
        if residual @ residual > tolerance * np.sum((rows[i] / largest) ** 2):
            orthogonal[i] = largest * residual
            earlier.append(i)
    return orthogonal


def groups(
    scope: str | Sequence[Hashable], reach: Sequence[set[int]]
) -> tuple[list[list[int]], list[int]]:
    """The groups of parameter arrays that a scope balances together, and the private arrays."""
    everything = list(range(len(reach)))
    if scope == "all":
        return [everything], []
    if scope == "leaf":
        return [[i] for i in everything], []
    if scope == "shared":
        return [[i for i in everything if len(reach[i]) >= 2]], [
            i for i in everything if len(reach[i]) < 2
        ]
    labels = [frozenset(r) for r in reach] if scope == "reach" else list(scope)
    return [[i for i in everything if labels[i] == label] for label in set(labels)], []


def orthogonalize(
    grads: Sequence[np.ndarray],
    reach: Sequence[set[int]],
    order: Sequence[int],
    scope: str | Sequence[Hashable] = "all",
    tolerance: float = 1e-12,
    hold: Sequence[int] = (),
) -> list[np.ndarray]:
    """The direction of orthogonalized SGD for each parameter array, without that of held tasks."""
    stepped = [task for task in range(len(order)) if task not in hold]
    direction = [np.zeros(np.shape(grad)[1:]) for grad in grads]
    together, private = groups(scope, reach)
    for i in private:
        direction[i] = np.sum(np.asarray(grads[i], np.float64)[stepped], axis=0)
    for members in together:
        if not members:
            continue
        flat = [np.asarray(grads[i], np.float64).reshape(len(order), -1) for i in members]
        rows = gram_schmidt(np.concatenate(flat, axis=1), order, tolerance)
        total = rows[stepped].sum(axis=0)
        parts = np.split(total, np.cumsum([part.shape[1] for part in flat])[:-1])
        for i, part in zip(members, parts, strict=True):
            direction[i] = part.reshape(np.shape(grads[i])[1:])
    return direction
