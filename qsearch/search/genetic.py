"""NSGA-II (Deb et al. 2002) on pymoo, with integer operators and feasible, unseen candidates only."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pymoo.algorithms.moo.nsga2 import binary_tournament
from pymoo.core.crossover import Crossover
from pymoo.core.mating import Mating
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from qsearch.search import operators
from qsearch.search.base import Observation, Searcher
from qsearch.search.options import Options, read_options
from qsearch.space import IntArray
from qsearch.types import BitConfig

#: Constraint violation of a failed evaluation, above any that a broken constraint can have.
_FAILED = 1e12
#: Largest violation a broken constraint is recorded with.
_LARGEST_VIOLATION = 1e9


class GeneticOptions(Options):
    """Options of :class:`GeneticSearcher`.

    Attributes:
        population: Survivors, and candidates per generation.
        crossover_probability: Probability that two parents exchange genes rather than being copied.
        mutation_probability: Probability that a gene moves; 1 / number of genes if None.
    """

    population: Annotated[int, Field(ge=4, le=10_000)] = 32
    crossover_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9
    mutation_probability: Annotated[float, Field(gt=0.0, le=1.0)] | None = None


class GeneticSearcher(Searcher):
    """NSGA-II: binary tournaments, uniform crossover, ordinal steps, survival by rank and crowding.

    The first candidates are the widest and the narrowest configuration and a spread of uniform-width ones (together
    at most half of the population), then random ones. ``generational``: each generation is bred from the survivors
    of the one before. ``steady_state``: each candidate is bred from the survivors of all results so far.

    Feasible results are compared by objectives; then come infeasible ones by violation, then failed ones.
    """

    name: ClassVar[str] = "genetic"

    def _setup(self) -> None:
        settings = read_options(GeneticOptions, self.options, self.name)
        self.population = settings.population
        # pymoo asks the problem only for sizes; one declared constraint switches feasibility-first survival on.
        self._problem = Problem(
            n_var=self.space.n_genes, n_obj=self.n_objectives, n_ieq_constr=1, xl=0, xu=self.space.sizes - 1
        )
        # What binary_tournament looks up in the algorithm. No pymoo Algorithm is used: its setup() would replace
        # the generator by one of its own, and its ask() and tell() know only generations.
        self._algorithm = SimpleNamespace(tournament_type="comp_by_dom_and_crowding", random_state=self.rng)
        self._mating = Mating(
            TournamentSelection(func_comp=binary_tournament),
            UniformCrossover(settings.crossover_probability),
            StepMutation(self.space.sizes, settings.mutation_probability),
        )
        self._survival = StableRankAndCrowding()
        self._survivors = Population.empty()
        self._first: deque[IntArray] = deque(self._first_vectors())
        self._n_failed = 0

    @property
    def survivors(self) -> list[BitConfig]:
        """The current parents."""
        return [self.space.decode(individual.X) for individual in self._survivors]

    @property
    def generation_size(self) -> int | None:
        """The population size; None in a steady state."""
        return self.population if self.scheduling == "generational" else None

    @property
    def in_flight_limit(self) -> int | None:
        """The population size in a steady state: more would be bred from parents that are out of date."""
        return self.population if self.scheduling == "steady_state" else None

    def _first_vectors(self) -> list[IntArray]:
        """Returns the deterministic part of the first population, at most half of it."""
        corners = list(dict.fromkeys([self.space.max_config(), self.space.min_config()]))
        uniform = [config for config in self.space.uniform() if config not in corners]
        met = self.constraints.violations(uniform) == 0.0
        spread = [config for config, keep in zip(uniform, met, strict=True) if keep]
        # Those with one width for everything first; the rest of the room is spread over the others.
        room = self.population // 2 - len(corners)
        equal = _spread([config for config in spread if _is_equal_width(config)], room)
        others = _spread([config for config in spread if not _is_equal_width(config)], room - len(equal))
        return [self.space.encode(config) for config in (*corners, *equal, *others)]

    def _propose(self, n: int) -> Sequence[IntArray]:
        vectors = [self._first.popleft() for _ in range(min(n, len(self._first)))]
        missing = n - len(vectors)
        # Random until the first population is complete, and as long as there is nobody to breed from.
        n_random = missing if len(self._survivors) < 2 else min(missing, max(0, self.population - len(self._seen)))
        if n_random:
            vectors.extend(self.constraints.sample(self.rng, n_random))
        if missing > n_random:
            children = self._mating.do(
                self._problem,
                self._survivors,
                missing - n_random,
                algorithm=self._algorithm,
                random_state=self.rng,
            )
            vectors.extend(children.get("X").astype(np.int64))
        return vectors

    def _observe(self, vectors: IntArray, observations: Sequence[Observation]) -> None:
        results = Population.new(
            "X", vectors, "F", self._objectives(observations), "CV", self._constraint_violations(observations)
        )
        self._survivors = self._survival.do(
            self._problem,
            Population.merge(self._survivors, results),
            n_survive=self.population,
            random_state=self.rng,
        )

    def _objectives(self, observations: Sequence[Observation]) -> npt.NDArray[np.float64]:
        """Returns objectives [n, n_objectives]; zeros where there are none, which a violation keeps from counting."""
        nothing = (0.0,) * self.n_objectives
        return np.array([result.objectives or nothing for result in observations], dtype=np.float64)

    def _constraint_violations(self, observations: Sequence[Observation]) -> npt.NDArray[np.float64]:
        """Returns violations [n, 1]. Failures differ, later ones being worse, so that sorting them has one result."""
        values = np.zeros((len(observations), 1))
        for index, result in enumerate(observations):
            if result.is_failed:
                self._n_failed += 1
                values[index] = _FAILED + self._n_failed
            else:
                values[index] = min(result.violation, _LARGEST_VIOLATION)
        return values


class StableRankAndCrowding(RankAndCrowding):  # type: ignore[misc]
    """Rank-and-crowding survival whose cut through the last front does not depend on the processor.

    pymoo sorts crowding distances with an unstable sort whose order of equal values differs between instruction
    sets. A study may be resumed on another machine, so ties are broken here by the generator and a stable sort.
    """

    def _do(
        self,
        problem: Any,
        pop: Any,
        *args: Any,
        n_survive: int,
        random_state: np.random.Generator,
        **kwargs: Any,
    ) -> Any:
        objectives = pop.get("F").astype(np.float64)
        kept: list[int] = []
        for rank, front in enumerate(self.nds.do(objectives, n_stop_if_ranked=n_survive)):
            crowding = self.crowding_func.do(objectives[front])
            for member, distance in zip(front, crowding, strict=True):
                pop[member].set("rank", rank)
                pop[member].set("crowding", distance)
            room = n_survive - len(kept)
            if len(front) > room:
                shuffled = random_state.permutation(len(front))
                front = front[shuffled[np.argsort(-crowding[shuffled], kind="stable")[:room]]]
            kept.extend(front.tolist())
        return pop[kept]


class UniformCrossover(Crossover):  # type: ignore[misc]
    """:func:`operators.uniform_crossover` as a pymoo operator."""

    def __init__(self, probability: float) -> None:
        super().__init__(n_parents=2, n_offsprings=2, prob=probability)

    def _do(self, problem: Any, X: Any, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> IntArray:
        return operators.uniform_crossover(X, random_state)


class StepMutation(Mutation):  # type: ignore[misc]
    """:func:`operators.step_mutation` as a pymoo operator; applied to every child."""

    def __init__(self, sizes: IntArray, probability: float | None) -> None:
        super().__init__(prob=1.0)
        self._sizes = sizes
        self._per_gene = probability

    def _do(self, problem: Any, X: Any, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> IntArray:
        return operators.step_mutation(X, self._sizes, random_state, self._per_gene)


def _spread(configs: Sequence[BitConfig], n: int) -> list[BitConfig]:
    """Returns ``n`` evenly spaced elements, or all if there are no more than ``n``."""
    if len(configs) <= n:
        return list(configs)
    return [configs[(2 * index + 1) * len(configs) // (2 * n)] for index in range(n)]


def _is_equal_width(config: BitConfig) -> bool:
    return len({*config.weights, *config.activations}) == 1
