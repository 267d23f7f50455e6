"""The front of everything seen so far, kept up to date one candidate at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of an archive.

    Attributes:
        id: What the caller calls the candidate.
        objectives: Values to be minimised ``[m]``.
        violation: Total constraint violation; 0 when feasible.
    """

    id: int | str
    objectives: tuple[float, ...]
    violation: float = 0.0

    @property
    def sort_key(self) -> tuple[tuple[float, ...], bool, int | str]:
        """Objectives, then numbers before texts, then the id."""
        return self.objectives, isinstance(self.id, str), self.id


class Archive:
    """An unbounded incremental Pareto front under constrained dominance (see :mod:`qsearch.pareto.dominance`).

    The result does not depend on the order of :meth:`add`: constrained dominance is a strict partial order, so a
    member that was dropped is still dominated by a member that stayed. Equal points with different ids are all
    kept. As long as nothing feasible was added, the archive holds the least infeasible candidates.
    """

    def __init__(self) -> None:
        self._members: dict[int | str, Entry] = {}
        self._points: NDArray[np.float64] | None = None  # rows in the order of _members; None until the first add
        self._violation = 0.0  # the same for all members: a smaller one dominates

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, id: object) -> bool:
        return id in self._members

    def add(self, id: int | str, objectives: Sequence[float], violation: float = 0.0) -> bool:
        """Offers a candidate.

        Args:
            id: Its name; offering a member again changes nothing.
            objectives: Values to be minimised ``[m]``. One with a NaN is never taken.
            violation: Total constraint violation; zero or less is feasible. NaN is never taken.

        Returns:
            True when the candidate is on the front now.

        Raises:
            ValueError: The number of objectives differs from earlier ones, or the id is a member with other values.
        """
        point = np.asarray(objectives, dtype=np.float64)
        if self._points is None:
            if point.ndim != 1 or point.size == 0:
                raise ValueError(f"objectives must be of shape (m,) with m >= 1, not {point.shape}")
            self._points = np.empty((0, point.size))
        if point.shape != self._points.shape[1:]:
            raise ValueError(f"expected {self._points.shape[1]} objectives, got shape {point.shape}")
        if np.isnan(point).any() or np.isnan(violation):
            return False
        entry = Entry(id, tuple(point.tolist()), max(float(violation), 0.0))
        if id in self._members:
            if self._members[id] != entry:
                raise ValueError(f"{id!r} is already a member with other values: {self._members[id]}")
            return True
        if self._members and entry.violation > self._violation:
            return False
        if not self._members or entry.violation < self._violation:
            self._members, self._points = {}, self._points[:0]
            self._violation = entry.violation
        elif entry.violation == 0.0:
            no_worse = (self._points <= point).all(axis=1)
            if (no_worse & (self._points < point).any(axis=1)).any():
                return False
            stays: NDArray[np.bool_] = np.logical_or(no_worse, (self._points < point).any(axis=1))
            if not stays.all():
                self._members = {e.id: e for e, keep in zip(self._members.values(), stays, strict=True) if keep}
                self._points = self._points[stays]
        self._members[id] = entry
        self._points = np.vstack([self._points, point])
        return True

    def front(self) -> tuple[Entry, ...]:
        """Returns the members sorted by objectives, then id."""
        return tuple(sorted(self._members.values(), key=lambda entry: entry.sort_key))

    def points(self) -> NDArray[np.float64]:
        """Returns the objectives of :meth:`front`, ``[k, m]`` (``[0, 1]`` before the first add)."""
        width = 1 if self._points is None else self._points.shape[1]
        return np.array([entry.objectives for entry in self.front()], dtype=np.float64).reshape(-1, width)
