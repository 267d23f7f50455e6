"""Constrained Pareto dominance of points to be minimised.

The order is Deb's (Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", IEEE TEC 2002,
definition 1): a feasible point dominates an infeasible one; of two infeasible points the one with the smaller
violation dominates; two feasible points are compared by Pareto dominance. On top of it stands one rule for failed
measurements: a row that holds a NaN (or whose violation is NaN) dominates nothing, is dominated by every row without
a NaN, and is never on the front.
"""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_points(points: ArrayLike) -> NDArray[np.float64]:
    """Returns ``points`` as a float array ``[n, m]``; an empty list becomes ``[0, 1]``.

    Raises:
        ValueError: The array is not two-dimensional, or has no column.
    """
    array = np.asarray(points, dtype=np.float64)
    if array.ndim == 1 and array.size == 0:
        array = array.reshape(0, 1)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"points must be an array [n, m] with m >= 1, not of shape {array.shape}")
    return array


def _as_violations(violations: ArrayLike | None, rows: int) -> NDArray[np.float64]:
    """Returns one violation per row; zero or less means feasible, so it is cut at zero (NaN stays)."""
    if violations is None:
        return np.zeros(rows)
    array = np.asarray(violations, dtype=np.float64)
    if array.shape != (rows,):
        raise ValueError(f"violations must be of shape ({rows},), not {array.shape}")
    return np.maximum(array, 0.0)


def _as_ranks(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replaces each value by its rank within its column ``[n, m]``.

    Dominance only needs the order, and moocore takes an infinity for its own sentinel in three dimensions.
    """
    columns = [np.unique(column, return_inverse=True)[1] for column in points.T]
    return np.stack(columns, axis=1).astype(np.float64)


def constrained_dominates(a: ArrayLike, b: ArrayLike, violation_a: float = 0.0, violation_b: float = 0.0) -> bool:
    """Tells whether point ``a`` dominates point ``b``.

    Args:
        a: Objectives ``[m]``.
        b: Objectives ``[m]``.
        violation_a: Total constraint violation of ``a``; zero or less is feasible.
        violation_b: The same of ``b``.

    Raises:
        ValueError: The points differ in length.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"two points [m] are needed, not shapes {first.shape} and {second.shape}")
    if np.isnan(first).any() or np.isnan(violation_a):
        return False
    if np.isnan(second).any() or np.isnan(violation_b):
        return True
    excess_a, excess_b = max(violation_a, 0.0), max(violation_b, 0.0)
    if excess_a > 0 or excess_b > 0:
        return excess_a < excess_b
    return bool((first <= second).all() and (first < second).any())


def non_dominated_mask(points: ArrayLike, violations: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Marks the rows that no other row dominates. Equal rows are all kept.

    Args:
        points: Objectives ``[n, m]``.
        violations: Total constraint violation of each row ``[n]``; None means that all rows are feasible. When no row
            is feasible, the rows with the smallest violation are the front.

    Returns:
        Booleans ``[n]``.

    Raises:
        ValueError: The shapes do not fit.
    """
    array = as_points(points)
    excess = _as_violations(violations, len(array))
    mask = ~(np.isnan(array).any(axis=1) | np.isnan(excess))
    if not mask.any():
        return mask
    least = excess[mask].min()
    mask &= excess == least
    if least == 0.0:
        mask[mask] = moocore.is_nondominated(_as_ranks(array[mask]), keep_weakly=True)
    return mask


def non_dominated_sort(points: ArrayLike, violations: ArrayLike | None = None) -> NDArray[np.int64]:
    """Ranks the rows: 0 is the front, 1 the front once rank 0 is taken away, and so on.

    Feasible rows come first, then one rank for each distinct violation, then all rows with a NaN. Rows with a NaN never
    have rank 0, so ``non_dominated_sort(...) == 0`` equals :func:`non_dominated_mask`.

    Args:
        points: Objectives ``[n, m]``.
        violations: Total constraint violation of each row ``[n]``; None means that all rows are feasible.

    Returns:
        Ranks ``[n]``.

    Raises:
        ValueError: The shapes do not fit.
    """
    array = as_points(points)
    excess = _as_violations(violations, len(array))
    failed = np.isnan(array).any(axis=1) | np.isnan(excess)
    feasible = ~failed & (excess == 0.0)
    infeasible = ~failed & ~feasible
    ranks = np.zeros(len(array), dtype=np.int64)
    used = 0
    if feasible.any():
        ranks[feasible] = moocore.pareto_rank(_as_ranks(array[feasible]))
        used = int(ranks[feasible].max()) + 1
    if infeasible.any():
        distinct, position = np.unique(excess[infeasible], return_inverse=True)
        ranks[infeasible] = used + position
        used += len(distinct)
    ranks[failed] = max(used, 1)
    return ranks
