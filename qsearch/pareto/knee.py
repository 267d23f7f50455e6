"""The knee of a front: the compromise beyond which a gain in one objective costs a lot in another."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qsearch.pareto.dominance import as_points, non_dominated_mask


def knee(points: ArrayLike) -> int:
    """Returns the index of the knee: the front member farthest below the hyperplane through the extremes.

    The front is scaled to [0, 1] in every objective. The extreme of objective j is the member with its smallest value;
    the plane ``normal . x = 1`` goes through the m extremes (Das, "On characterizing the knee of the Pareto curve based
    on normal-boundary intersection", Structural Optimization 1999), and the knee is the member with the largest
    ``1 - normal . x``. In two dimensions the plane is the line from (0, 1) to (1, 0). With three objectives or more
    the extremes may not span a plane that faces the ideal point (one member may be the extreme of two objectives, as
    happens when costs go together); as soon as a component of the normal is not positive, the knee is the member
    closest to the ideal point (compromise programming, Zeleny 1973).

    Objectives that do not vary on the front are left out. Equally far members are told apart by their values in column
    order, then by their index, so the order of the rows does not matter.

    Args:
        points: Objectives ``[n, m]``, minimised. Dominated rows and rows with a NaN or an infinity are never the knee.

    Raises:
        ValueError: No row is finite.
    """
    array = as_points(points)
    candidates = np.flatnonzero(np.isfinite(array).all(axis=1))
    if not len(candidates):
        raise ValueError("a front without a finite point has no knee")
    candidates = candidates[non_dominated_mask(array[candidates])]
    front = array[candidates]
    low, high = front.min(axis=0), front.max(axis=0)
    varies = high > low
    if not varies.any():
        return int(candidates[0])
    scaled = (front[:, varies] - low[varies]) / (high[varies] - low[varies])
    normal = _plane_normal(scaled)
    # Row-wise sums, not a matrix product: the value of a row may not depend on where it stands.
    distance = -np.square(scaled).sum(axis=1) if normal is None else 1.0 - (scaled * normal).sum(axis=1)
    farthest = distance >= distance.max() - 1e-12
    order = np.lexsort((candidates, *front.T[::-1]))
    return int(candidates[next(i for i in order if farthest[i])])


def _plane_normal(scaled: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Returns the normal [m] of the plane ``normal . x = 1`` through the extremes of a front scaled to [0, 1].

    None where there is no such plane that faces the ideal point.
    """
    width = scaled.shape[1]
    total = scaled.sum(axis=1)
    extremes = np.array([scaled[np.lexsort((*scaled.T[::-1], total, scaled[:, j]))[0]] for j in range(width)])
    try:
        normal: NDArray[np.float64] = np.linalg.solve(extremes, np.ones(width))
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(normal).all() or (normal <= 1e-9).any():
        return None
    return normal
