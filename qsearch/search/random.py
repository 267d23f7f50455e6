"""Random search: the control that every other searcher is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from qsearch.search.base import Observation, Scheduling, Searcher
from qsearch.search.options import Options, read_options
from qsearch.space import ConstraintSet, IntArray, SearchSpace
from qsearch.types import BitConfig


class RandomOptions(Options):
    """Random search has no options."""


class RandomSearcher(Searcher):
    """Draws candidates uniformly from the legal, feasible configurations not asked yet.

    Results change nothing, so it never waits, whatever the scheduling.
    """

    name: ClassVar[str] = "random"

    def __init__(
        self,
        space: SearchSpace,
        constraints: ConstraintSet,
        n_objectives: int,
        seed: int,
        options: Mapping[str, object] | None = None,
        cost_of: Callable[[BitConfig], tuple[float, ...]] | None = None,
        *,
        scheduling: Scheduling = "generational",
    ) -> None:
        super().__init__(space, constraints, n_objectives, seed, options, cost_of, scheduling=scheduling)
        read_options(RandomOptions, self.options, self.name)

    def _propose(self, n: int) -> Sequence[IntArray]:
        return list(self.constraints.sample(self.rng, n))

    def _observe(self, vectors: IntArray, observations: Sequence[Observation]) -> None:
        """Learns nothing."""
