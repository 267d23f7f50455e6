"""NSGA-II: its first population, its ranking of bad results, its reproducibility, and that it searches."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from qsearch.errors import PluginError, SpecError
from qsearch.search import Observation, make_searcher
from qsearch.search.genetic import GeneticSearcher, StableRankAndCrowding
from qsearch.space import Constraint, ConstraintSet
from qsearch.testing.additive import AdditiveProblem
from qsearch.testing.searchers import Driver, awkward_space, cost_constraints, score
from qsearch.types import BitConfig


def genetic(problem: AdditiveProblem, seed: int = 1, **kwargs: object) -> GeneticSearcher:
    return GeneticSearcher(problem.space, ConstraintSet(problem.space), 2, seed, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheduling", ["generational", "steady_state"])
@pytest.mark.parametrize("population", [4, 10, 32])
def test_search_genetic_first_population_has_corners_uniform_and_random_members(
    population: int, scheduling: str
) -> None:
    problem = AdditiveProblem.make(12)
    searcher = genetic(problem, options={"population": population}, scheduling=scheduling)
    first = searcher.ask(population)
    assert first[:2] == [problem.space.max_config(), problem.space.min_config()]
    uniform = [config for config in first if len(set(config.weights)) == len(set(config.activations)) == 1]
    assert len(uniform) == population // 2
    assert len(set(first)) == population


def test_search_genetic_first_population_prefers_uniform_members_that_are_feasible() -> None:
    problem = AdditiveProblem.make(12)
    rules = ConstraintSet(problem.space, [Constraint("cost", 0.3, problem.cost)])
    first = GeneticSearcher(problem.space, rules, 2, 1).ask(32)
    assert rules.violations(first).max() == 0.0
    uniform = [c for c in first if len(set(c.weights)) == len(set(c.activations)) == 1]
    assert len(uniform) >= 12
    # The widest configuration breaks the bound; narrowed just enough, it is the first candidate.
    assert rules.violation(problem.space.max_config()) > 0.0
    assert max(problem.objectives(c)[1] for c in first) == pytest.approx(problem.objectives(first[0])[1], abs=0.02)


@pytest.mark.parametrize("scheduling", ["generational", "steady_state"])
def test_search_genetic_ranks_feasible_before_infeasible_before_failed(scheduling: str) -> None:
    problem = AdditiveProblem.make(6)
    searcher = genetic(problem, options={"population": 8}, scheduling=scheduling)
    asked = searcher.ask(8)
    searcher.tell([Observation(config, None) for config in asked[:4]])
    searcher.tell([Observation(config, (0.0, 0.0), 0.1 * (1 + i)) for i, config in enumerate(asked[4:])])
    good = searcher.ask(8)[:6]
    while len(searcher.ask(1)) == 1 and scheduling == "generational":
        pass
    searcher.tell([Observation(config, problem.objectives(config)) for config in good])
    if scheduling == "generational":
        rest = [config for config in _in_flight(searcher) if config not in good]
        searcher.tell([Observation(config, None) for config in rest])
    # Six feasible results, then the two least infeasible ones; no failure survives.
    assert set(searcher.survivors) == {*good, asked[4], asked[5]}


def _in_flight(searcher: GeneticSearcher) -> list[BitConfig]:
    return [searcher.space.decode(vector) for vector, _ in searcher._generation.values()]


def test_search_genetic_never_loses_the_extremes_of_the_front() -> None:
    problem = AdditiveProblem.make(8)
    searcher = genetic(problem, options={"population": 16}, scheduling="steady_state")
    driver = Driver(searcher, np.random.default_rng(0), problem.objectives).run(120)
    told = [config for config in driver.asked if config not in driver.pending]
    points = {config: problem.objectives(config) for config in told}
    front = [c for c, p in points.items() if not any(_dominates(q, p) for q in points.values())]
    kept = searcher.survivors
    assert len(kept) == 16
    # The extremes of the front have infinite crowding distance: they always survive.
    for axis in (0, 1):
        assert min(front, key=lambda c: points[c][axis]) in kept


def _dominates(p: tuple[float, float], q: tuple[float, float]) -> bool:
    return p != q and p[0] <= q[0] and p[1] <= q[1]


def test_search_stable_survival_differs_from_pymoo_only_in_ties() -> None:
    problem = Problem(n_var=1, n_obj=2, n_ieq_constr=1, xl=0, xu=1)
    rng = np.random.default_rng(0)
    n_equal = 0
    for _ in range(20):
        objectives = rng.random((40, 2))
        violations = np.where(rng.random((40, 1)) < 0.3, rng.random((40, 1)), 0.0)
        kept, grades = [], []
        for survival in (StableRankAndCrowding(), RankAndCrowding()):
            population = Population.new("X", np.arange(40)[:, None], "F", objectives, "CV", violations)
            chosen = survival.do(problem, population, n_survive=15, random_state=np.random.default_rng(1))
            kept.append(sorted(int(individual.X[0]) for individual in chosen))
            grades.append(sorted((individual.get("rank"), individual.get("crowding")) for individual in chosen))
        assert grades[0] == grades[1]
        n_equal += kept[0] == kept[1]
    assert n_equal >= 15


def test_search_stable_survival_breaks_ties_by_the_generator_alone() -> None:
    problem = Problem(n_var=1, n_obj=2, n_ieq_constr=1, xl=0, xu=1)
    kept = set()
    for seed in range(6):
        population = Population.new("X", np.arange(30)[:, None], "F", np.ones((30, 2)), "CV", np.zeros((30, 1)))
        chosen = StableRankAndCrowding().do(
            problem, population, n_survive=5, random_state=np.random.default_rng(seed % 3)
        )
        kept.add(tuple(int(individual.X[0]) for individual in chosen))
    assert len(kept) == 3


@pytest.mark.parametrize("scheduling", ["generational", "steady_state"])
def test_search_genetic_beats_random_search_clearly(scheduling: str) -> None:
    gains = []
    for seed in range(3):
        problem = AdditiveProblem.make(20, seed)
        volumes = []
        for name in ("genetic", "random"):
            searcher = make_searcher(
                name,
                space=problem.space,
                constraints=ConstraintSet(problem.space),
                n_objectives=2,
                seed=seed,
                scheduling=scheduling,
            )
            asked = Driver(searcher, np.random.default_rng(seed), problem.objectives).run(400).asked
            volumes.append(problem.hypervolume(np.array([problem.objectives(config) for config in asked])))
        gains.append(volumes[0] / volumes[1])
    assert min(gains) > 1.3, gains


@pytest.mark.parametrize("scheduling", ["generational", "steady_state"])
def test_search_genetic_gets_better_than_its_first_population(scheduling: str) -> None:
    problem = AdditiveProblem.make(20, 3)
    driver = Driver(genetic(problem, scheduling=scheduling), np.random.default_rng(0), problem.objectives).run(400)
    points = np.array([problem.objectives(config) for config in driver.asked])
    start, end = problem.hypervolume(points[:32]), problem.hypervolume(points)
    best = problem.hypervolume(problem.supported_front())
    assert end < best
    assert (best - end) < 0.75 * (best - start), (start, end, best)


def test_search_seeds_matter_and_are_reproducible() -> None:
    space = awkward_space()
    runs = []
    for seed in (1, 1, 2):
        searcher = GeneticSearcher(space, cost_constraints(space, 0.5), 2, seed)
        runs.append(Driver(searcher, np.random.default_rng(0)).run(100).asked)
    assert runs[0] == runs[1] != runs[2]


SCRIPT = """
import numpy as np
from qsearch.search import make_searcher
from qsearch.testing.searchers import Driver, awkward_space, cost_constraints
space = awkward_space()
for scheduling in ("generational", "steady_state"):
    searcher = make_searcher("genetic", space=space, constraints=cost_constraints(space, 0.5), n_objectives=2, seed=1,
                             scheduling=scheduling)
    np.random.seed()  # whatever the global generators hold must not matter
    for config in Driver(searcher, np.random.default_rng(0)).run(100).asked:
        print(config)
"""


def test_search_genetic_is_the_same_in_another_process_with_other_hashes() -> None:
    outputs = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.count("BitConfig") == 200
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_search_importing_the_room_does_not_import_pymoo() -> None:
    code = "import sys, qsearch.search; sys.exit('pymoo' in sys.modules or 'scipy.optimize' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"popultion": 8}, "did you mean 'population'"),
        ({"population": 1}, "greater than or equal to 4"),
        ({"population": "many"}, "valid integer"),
        ({"crossover_probability": 1.5}, "less than or equal to 1"),
        ({"mutation_probability": 0.0}, "greater than 0"),
    ],
)
def test_search_genetic_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        genetic(AdditiveProblem.make(3), options=options)


def test_search_random_has_no_options() -> None:
    space = awkward_space()
    with pytest.raises(SpecError, match="searcher 'random' has no option 'population'"):
        make_searcher(
            "random",
            space=space,
            constraints=ConstraintSet(space),
            n_objectives=1,
            seed=0,
            options={"population": 3},
        )


def test_search_unknown_searcher_is_named() -> None:
    with pytest.raises(PluginError, match="did you mean 'genetic'"):
        make_searcher("genetik")


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_search_genetic_options_take_effect(probability: float) -> None:
    problem = AdditiveProblem.make(10)
    options = {"population": 8, "crossover_probability": probability, "mutation_probability": 0.0001}
    searcher = genetic(problem, options=options)
    first = searcher.ask(8)
    searcher.tell([Observation(config, problem.objectives(config)) for config in first])
    parents = np.stack([problem.space.encode(config) for config in searcher.survivors])
    children = np.stack([problem.space.encode(config) for config in searcher.ask(8)])
    # Without crossover a child is a parent with one gene moved; with it, most are far from every parent.
    distance = np.array([min(int((child != parent).sum()) for parent in parents) for child in children])
    if probability == 0.0:
        assert np.all(distance == 1)
    else:
        assert np.median(distance) > 1


def test_search_random_draws_uniformly_among_feasible_candidates() -> None:
    problem = AdditiveProblem.make(1, widths=(2, 4, 8))
    rules = ConstraintSet(problem.space, [Constraint("cost", 0.3, problem.cost)])
    feasible = [config for config in problem.space.enumerate() if rules.violation(config) == 0.0]
    assert len(feasible) == 6
    counts = dict.fromkeys(feasible, 0)
    for seed in range(600):
        (config,) = make_searcher("random", space=problem.space, constraints=rules, n_objectives=1, seed=seed).ask(1)
        counts[config] += 1
    # Expected 100 each, standard deviation 9.
    assert all(55 < count < 145 for count in counts.values()), counts


def test_search_score_of_the_suite_is_finite() -> None:
    assert all(math.isfinite(value) for value in score(awkward_space().max_config()))
