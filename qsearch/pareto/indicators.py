"""Quality of a front, as single numbers. All objectives are minimised.

Rows that hold a NaN or an infinity (failed candidates) are left out of every indicator.
"""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from qsearch.pareto.dominance import as_points


def _finite(points: ArrayLike) -> NDArray[np.float64]:
    array = as_points(points)
    return array[np.isfinite(array).all(axis=1)]


def normalise(points: ArrayLike, reference: ArrayLike, ideal: ArrayLike) -> NDArray[np.float64]:
    """Maps ``ideal`` to 0 and ``reference`` to 1 in every objective; values outside stay outside.

    Args:
        points: Objectives ``[n, m]``.
        reference: The worst corner ``[m]``.
        ideal: The best corner ``[m]``, below ``reference`` in every objective.

    Returns:
        Objectives without unit ``[n, m]``.

    Raises:
        ValueError: The shapes do not fit, a corner is not finite, or ``ideal`` is not below ``reference``.
    """
    array = as_points(points)
    worst, best = np.asarray(reference, dtype=np.float64), np.asarray(ideal, dtype=np.float64)
    if worst.ndim != 1 or worst.shape != best.shape or (len(array) and worst.shape != array.shape[1:]):
        raise ValueError(f"points {array.shape}, reference {worst.shape} and ideal {best.shape} do not fit together")
    if not (np.isfinite(worst) & np.isfinite(best) & (best < worst)).all():
        raise ValueError(f"ideal {best.tolist()} must be below reference {worst.tolist()} in every objective")
    if not len(array):
        return np.empty((0, worst.size))
    scaled: NDArray[np.float64] = (array - best) / (worst - best)
    return scaled


def hypervolume(points: ArrayLike, reference: ArrayLike, ideal: ArrayLike) -> float:
    """Share of the box between ``ideal`` and ``reference`` that ``points`` dominate (Zitzler & Thiele, PPSN 1998).

    Fix both corners before a comparison: values for different corners cannot be compared. A point that does not lie
    strictly below the reference in every objective contributes nothing; one below the ideal counts as if it were on it.

    Args:
        points: Objectives ``[n, m]``; dominated rows do no harm.
        reference: The worst corner ``[m]``.
        ideal: The best corner ``[m]``.

    Returns:
        A number in [0, 1], larger is better; 0 for an empty set.

    Raises:
        ValueError: As :func:`normalise`.
    """
    scaled = np.maximum(normalise(_finite(points), reference, ideal), 0.0)
    inside = scaled[(scaled < 1.0).all(axis=1)]
    if not len(inside):
        return 0.0
    return float(np.clip(moocore.hypervolume(inside, ref=1.0), 0.0, 1.0))


def _with_front(points: ArrayLike, front: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    array, target = _finite(points), as_points(front)
    if not len(target) or not np.isfinite(target).all():
        raise ValueError("the reference front must have rows, all of them finite")
    if len(array) and array.shape[1] != target.shape[1]:
        raise ValueError(f"points {array.shape} and reference front {target.shape} differ in their objectives")
    return array, target


def igd_plus(points: ArrayLike, front: ArrayLike) -> float:
    """Modified inverted generational distance (Ishibuchi et al., EMO 2015): how far ``points`` stay behind ``front``.

    The mean over ``front`` of the distance to the nearest point, where only the objectives in which the point is worse
    count. The unit is that of the objectives: :func:`normalise` both sets first when the objectives differ in scale.

    Args:
        points: Objectives ``[n, m]``.
        front: Reference front ``[k, m]``, for example the union front of all runs.

    Returns:
        A number >= 0, smaller is better; infinity for an empty set.

    Raises:
        ValueError: The reference front is empty or not finite, or the shapes do not fit.
    """
    array, target = _with_front(points, front)
    return float(moocore.igd_plus(array, ref=target)) if len(array) else float("inf")


def additive_epsilon(points: ArrayLike, front: ArrayLike) -> float:
    """The least shift after which ``points`` weakly dominate all of ``front`` (Zitzler et al., IEEE TEC 2003).

    The unit is that of the objectives: :func:`normalise` both sets first when the objectives differ in scale.

    Args:
        points: Objectives ``[n, m]``.
        front: Reference front ``[k, m]``.

    Returns:
        Smaller is better; 0 when the front is matched, infinity for an empty set.

    Raises:
        ValueError: As :func:`igd_plus`.
    """
    array, target = _with_front(points, front)
    return float(moocore.epsilon_additive(array, ref=target)) if len(array) else float("inf")


def attainment(
    points: ArrayLike, cost_column: int, thresholds: ArrayLike, value_column: int = 0
) -> NDArray[np.float64]:
    """The best value reached at fixed costs: "what error do we get for at most this latency?".

    Args:
        points: Objectives ``[n, m]``.
        cost_column: Column of the cost.
        thresholds: Costs that may not be exceeded ``[t]``, in the unit of that column.
        value_column: Column of the value, by default the first.

    Returns:
        The least value among rows whose cost is within each threshold ``[t]``; infinity where there is none.

    Raises:
        ValueError: A column does not exist, or a threshold is NaN.
    """
    every = as_points(points)
    array, limits = _finite(every), np.asarray(thresholds, dtype=np.float64)
    if limits.ndim != 1 or np.isnan(limits).any():
        raise ValueError("thresholds must be a list of numbers without NaN")
    if not len(every):
        return np.full(limits.shape, np.inf)
    for column in (cost_column, value_column):
        if not 0 <= column < every.shape[1]:
            raise ValueError(f"there is no column {column} in points {every.shape}")
    within = array[:, cost_column][None, :] <= limits[:, None]
    best: NDArray[np.float64] = np.where(within, array[:, value_column][None, :], np.inf).min(axis=1, initial=np.inf)
    return best
