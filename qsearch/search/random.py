"""Random search: the control that every other searcher is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from qsearch.search.base import Observation, Searcher
from qsearch.search.options import Options, read_options
from qsearch.space import IntArray


class RandomOptions(Options):
    """Random search has no options."""


class RandomSearcher(Searcher):
    """Draws candidates uniformly from the legal, feasible configurations not asked yet.

    Results change nothing, so it never waits, whatever the scheduling.
    """

    name: ClassVar[str] = "random"

    def _setup(self) -> None:
        read_options(RandomOptions, self.options, self.name)

    def _propose(self, n: int) -> Sequence[IntArray]:
        return list(self.constraints.sample(self.rng, n))

    def _observe(self, vectors: IntArray, observations: Sequence[Observation]) -> None:
        """Learns nothing."""
