"""The contract that the base class keeps for any algorithm, shown with algorithms that behave badly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from qsearch.errors import PluginError, SpaceError, SpecError
from qsearch.search import Observation, Searcher, make_searcher
from qsearch.space import Constraint, ConstraintSet, IntArray, SearchSpace
from qsearch.testing.searchers import awkward_space, score, tiny_space
from qsearch.types import BIT_ALPHABET, BitConfig


class Scripted(Searcher):
    """Proposes what ``make_proposals`` says and writes down what it observes."""

    name = "scripted"
    size: int | None = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.observed: list[list[Observation]] = []
        self.requests: list[int] = []

    @property
    def generation_size(self) -> int | None:
        return self.size if self.scheduling == "generational" else None

    def _propose(self, n: int) -> Sequence[IntArray]:
        self.requests.append(n)
        return list(self.rng.integers(-3, 9, size=(n, self.space.n_genes)))

    def _observe(self, vectors: IntArray, observations: Sequence[Observation]) -> None:
        assert [self.space.decode(vector) for vector in vectors] == [result.config for result in observations]
        self.observed.append(list(observations))


class Stubborn(Scripted):
    """Always proposes the narrowest configuration."""

    def _propose(self, n: int) -> Sequence[IntArray]:
        return [self.space.encode(self.space.min_config())] * n


class Silent(Scripted):
    """Never proposes anything."""

    def _propose(self, n: int) -> Sequence[IntArray]:
        return []


class Generations(Scripted):
    size = 5


def make(cls: type[Scripted], space: SearchSpace | None = None, **kwargs: object) -> Scripted:
    space = space or awkward_space()
    return cls(space, ConstraintSet(space), 2, 3, **kwargs)


def results(configs: Sequence[BitConfig]) -> list[Observation]:
    return [Observation(config, score(config)) for config in configs]


@pytest.mark.parametrize("cls", [Stubborn, Silent])
def test_search_an_algorithm_without_ideas_is_filled_up_at_random(cls: type[Scripted]) -> None:
    space = tiny_space()
    searcher = make(cls, space)
    asked = searcher.ask(100)
    assert len(asked) == space.cardinality
    assert set(asked) == set(space.enumerate())
    assert searcher.exhausted


def test_search_wild_proposals_are_made_legal_and_feasible() -> None:
    space = awkward_space()
    bits = np.array(BIT_ALPHABET, dtype=float)
    table = np.broadcast_to(bits[:, None] + bits[None], (space.n_layers, 9, 9))
    rules = ConstraintSet(space, [Constraint("bits", 70.0, table)])
    rules.check()
    searcher = Scripted(space, rules, 2, 0)
    asked = searcher.ask(80)
    assert len(set(asked)) == 80
    assert rules.violations(asked).max() == 0.0


def test_search_impossible_constraints_leave_nothing_to_ask() -> None:
    space = awkward_space()
    table = np.ones((space.n_layers, 9, 9))
    searcher = Scripted(space, ConstraintSet(space, [Constraint("impossible", 1.0, table)]), 2, 0)
    assert searcher.ask(3) == []
    assert searcher.exhausted


def test_search_generation_is_a_barrier_and_is_observed_in_asked_order() -> None:
    searcher = make(Generations)
    assert searcher.generation_remaining == 5
    first = searcher.ask(2)
    assert (searcher.generation_remaining, searcher.waiting) == (3, False)
    rest = searcher.ask(100)
    assert len(first + rest) == 5
    assert (searcher.generation_remaining, searcher.waiting) == (0, True)
    assert searcher.ask(1) == []
    searcher.tell(results(rest[::-1]))
    searcher.tell(results(first[1:]))
    assert (searcher.observed, searcher.waiting) == ([], True)
    searcher.tell(results(first[:1]))
    assert [[result.config for result in batch] for batch in searcher.observed] == [first + rest]
    assert searcher.waiting is False
    assert len(searcher.ask(100)) == 5
    assert searcher.requests == [5, 5]


def test_search_generational_algorithm_does_not_see_how_many_workers_there_are() -> None:
    def run(workers: int) -> list[BitConfig]:
        searcher = make_searcher(
            "genetic", space=awkward_space(), constraints=ConstraintSet(awkward_space()), n_objectives=2, seed=4
        )
        asked: list[BitConfig] = []
        pending: list[BitConfig] = []
        while len(asked) < 160:
            pending += searcher.ask(workers - len(pending))
            asked += [config for config in pending if config not in asked]
            searcher.tell(results([pending.pop(len(pending) // 2)]))
        return asked[:160]

    assert run(1) == run(3) == run(50)


def test_search_results_from_elsewhere_join_at_the_barrier() -> None:
    searcher = make(Generations)
    before = searcher.space.decode(np.zeros(searcher.space.n_genes, dtype=np.int64) + searcher.space.sizes - 1)
    searcher.tell(results([before]))
    assert [len(batch) for batch in searcher.observed] == [1], "nothing is in flight: seen at once"
    generation = searcher.ask(5)
    other = next(c for c in searcher.space.enumerate(10**6) if c not in (*generation, before))
    searcher.tell(results([other]))
    assert len(searcher.observed) == 1
    searcher.tell(results(generation))
    assert [result.config for result in searcher.observed[1]] == [*generation, other]


def test_search_a_queued_candidate_told_from_elsewhere_is_not_handed_out() -> None:
    twin = make(Generations).ask(5)
    searcher = make(Generations)
    assert searcher.ask(2) == twin[:2]
    searcher.tell(results([twin[3]]))
    assert searcher.generation_remaining == 2
    assert searcher.ask(9) == [twin[2], twin[4]]
    searcher.tell(results([twin[0], twin[1], twin[2], twin[4]]))
    assert [result.config for result in searcher.observed[0]] == twin


def test_search_steady_state_observes_one_by_one_in_told_order() -> None:
    searcher = make(Generations, scheduling="steady_state")
    assert searcher.generation_remaining is None
    asked = searcher.ask(4)
    searcher.tell(results(asked[::-1]))
    assert [[result.config for result in batch] for batch in searcher.observed] == [[config] for config in asked[::-1]]
    assert not searcher.waiting
    assert searcher.requests == [1, 1, 1, 1]


def test_search_objectives_that_are_not_finite_count_as_failed() -> None:
    searcher = make(Scripted)
    a, b, c, d = searcher.ask(4)
    searcher.tell(
        [
            Observation(a, (math.nan, 1.0)),
            Observation(b, (1.0, math.inf)),
            Observation(c, None, 0.3),
            Observation(d, (1.0, 2.0), math.nan),
        ]
    )
    seen = [batch[0] for batch in searcher.observed]
    assert [result.objectives for result in seen] == [None, None, None, (1.0, 2.0)]
    assert [result.is_failed for result in seen] == [True, True, False, False]
    assert [result.violation for result in seen] == [0.0, 0.0, 0.3, math.inf]
    assert Observation(a, (math.nan, 1.0)).is_failed


def test_search_bad_tells_are_refused() -> None:
    searcher = make(Scripted)
    (config,) = searcher.ask(1)
    with pytest.raises(PluginError, match="3 objectives"):
        searcher.tell([Observation(config, (1.0, 2.0, 3.0))])
    foreign = BitConfig(config.weights, (16,) * len(config.weights))
    with pytest.raises(SpaceError, match="layer 'l0'"):
        searcher.tell([Observation(foreign, (1.0, 2.0))])


def test_search_bad_arguments_are_refused() -> None:
    space = tiny_space()
    with pytest.raises(SpecError, match="did you mean 'generational'"):
        make(Scripted, scheduling="generation")
    with pytest.raises(SpecError, match="0 objectives"):
        Scripted(space, ConstraintSet(space), 0, 1)


def test_search_asking_for_nothing_changes_nothing() -> None:
    searcher, twin = make(Scripted), make(Scripted)
    assert searcher.ask(0) == []
    assert searcher.ask(-1) == []
    assert searcher.ask(3) == twin.ask(3)
