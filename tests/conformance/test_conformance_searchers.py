"""The searchers that come with the package pass the suite that third parties use."""

from __future__ import annotations

from qsearch.search import Scheduling, Searcher, make_searcher
from qsearch.space import ConstraintSet, SearchSpace
from qsearch.testing.searchers import SearcherSuite


class TestGenetic(SearcherSuite):
    random_share = 1.2

    def make(
        self, space: SearchSpace, constraints: ConstraintSet, n_objectives: int, seed: int, scheduling: Scheduling
    ) -> Searcher:
        return make_searcher(
            "genetic",
            space=space,
            constraints=constraints,
            n_objectives=n_objectives,
            seed=seed,
            scheduling=scheduling,
            options={"population": 20},
        )


class TestRandom(SearcherSuite):
    random_share = 0.9

    def make(
        self, space: SearchSpace, constraints: ConstraintSet, n_objectives: int, seed: int, scheduling: Scheduling
    ) -> Searcher:
        return make_searcher(
            "random",
            space=space,
            constraints=constraints,
            n_objectives=n_objectives,
            seed=seed,
            scheduling=scheduling,
        )
