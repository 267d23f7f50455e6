"""Which candidates of the search front are scored again at the end."""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np

from qsearch.pareto import Archive

#: Share of the surplus that is dropped before contributions are computed anew.
_DROP_SHARE = 0.1


def select_finalists(archive: Archive, reference: Sequence[float], limit: int) -> list[int]:
    """Returns trials of the front; of a larger front those that contribute most hypervolume.

    The best candidate in each objective always stays.

    Args:
        archive: Front of the search; ids are trial numbers.
        reference: Worst corner.
        limit: Most candidates.
    """
    entries = archive.front()
    ids = np.array([int(entry.id) for entry in entries], dtype=np.int64)
    points = np.array([entry.objectives for entry in entries], dtype=np.float64).reshape(len(entries), -1)
    scale = np.asarray(reference, dtype=np.float64)
    while len(ids) > limit:
        share = moocore.hv_contributions(points / scale, ref=np.ones(len(scale)))
        keep_best = np.zeros(len(ids), dtype=bool)
        keep_best[points.argmin(axis=0)] = True
        share[keep_best] = np.inf
        drop = max(1, int(_DROP_SHARE * (len(ids) - limit)))
        # Ties in contribution are cut by trial number, so that a resumed study drops the same ones.
        order = np.lexsort((-ids, share))[:drop]
        kept = np.setdiff1d(np.arange(len(ids)), order)
        ids, points = ids[kept], points[kept]
    return sorted(ids.tolist())
