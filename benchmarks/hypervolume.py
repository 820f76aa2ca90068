"""The volume that points dominate above a reference point, by slicing one objective after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nondominated(points: Array) -> Array:
    """The rows (n, m) that no other is at least as large as in all and larger in one; each once."""
    unique = np.unique(points, axis=0)
    at_least = (unique[:, None, :] >= unique[None, :, :]).all(axis=2)
    np.fill_diagonal(at_least, val=False)
    return unique[~at_least.any(axis=0)]


def hypervolume(points: Array, reference: Array) -> float:
    """Of points (n, m), larger is better; what lies below the reference (m,) counts nothing."""
    above = points[(points > reference).all(axis=1)]
    return _volume(nondominated(above - reference)) if len(above) else 0.0


def _volume(points: Array) -> float:
    """Above the origin: slices of the last coordinate, each as wide as the points that reach it span."""
    if points.shape[1] == 1:
        return float(points.max())
    order = points[np.argsort(-points[:, -1])]
    if points.shape[1] == 2:
        # the staircase: what each point adds to those above it
        widths = np.maximum.accumulate(order[:, 0])
        return float(np.sum(np.diff(widths, prepend=0.0) * order[:, 1]))
    heights = order[:, -1] - np.append(order[1:, -1], 0.0)
    return sum(
        height * _volume(order[: i + 1, :-1]) for i, height in enumerate(heights.tolist()) if height > 0
    )


def trajectory(points: Array, reference: Array) -> list[float]:
    """The hypervolume of the first one, two, ... of these points (n, m)."""
    found: list[float] = []
    front = points[:0]
    for point in points:
        is_new = (point > reference).all() and not (front >= point).all(axis=1).any()
        if is_new:
            front = nondominated(np.concatenate([front, point[None, :]]))
        found.append(hypervolume(front, reference) if is_new or not found else found[-1])
    return found
