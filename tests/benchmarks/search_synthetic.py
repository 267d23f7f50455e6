"""Searchers on the synthetic additive problem: how good after a budget, and how long a candidate takes to propose.

Run by hand: ``python tests/benchmarks/search_synthetic.py --seeds 5 --budget 1000``. Hypervolume is relative to that
of the supported (Lagrangian) front, which is within a per cent or so of the best possible; a run is one problem, drawn
with the run's seed. Results are told in batches of the size they were asked in.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from qsearch.search import Observation, Scheduling, make_searcher
from qsearch.space import Constraint, ConstraintSet
from qsearch.testing.additive import AdditiveProblem

ARMS: tuple[tuple[str, Scheduling], ...] = (
    ("random", "steady_state"),
    ("genetic", "generational"),
    ("genetic", "steady_state"),
)


def run(
    problem: AdditiveProblem,
    rules: ConstraintSet,
    arm: tuple[str, Scheduling],
    seed: int,
    budget: int,
    batch: int,
    options: dict[str, object],
) -> tuple[np.ndarray, float, float]:
    """Returns the objectives [budget, 2] in order, and seconds spent in ask and in tell."""
    name, scheduling = arm
    searcher = make_searcher(
        name,
        space=problem.space,
        constraints=rules,
        n_objectives=2,
        seed=seed,
        scheduling=scheduling,
        options=options if name == "genetic" else {},
    )
    points: list[tuple[float, ...]] = []
    asking = telling = 0.0
    while len(points) < budget:
        start = time.perf_counter()
        configs = searcher.ask(min(batch, budget - len(points)))
        asking += time.perf_counter() - start
        if not configs:
            break
        results = [Observation(config, problem.objectives(config)) for config in configs]
        points += [result.objectives for result in results if result.objectives is not None]
        start = time.perf_counter()
        searcher.tell(results)
        telling += time.perf_counter() - start
    return np.array(points), asking, telling


def main() -> None:
    """Prints one row per searcher and scheduling."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8, help="candidates asked for, and told, at a time")
    parser.add_argument("--population", type=int, default=32)
    parser.add_argument("--bound", type=float, help="constraint: relative cost at most this (0 to 1)")
    arguments = parser.parse_args()

    marks = sorted({max(1, arguments.budget * part // 4) for part in (1, 2, 4)})
    columns = "  ".join(f"HV after {mark}".rjust(15) for mark in marks)
    print(f"{arguments.layers} layers, {arguments.seeds} problems, population {arguments.population}")
    print(f"{'searcher':<24}{columns}  {'ask ms':>8}  {'tell ms':>8}   (mean ± standard deviation over problems)")
    for arm in ARMS:
        shares, asks, tells = [], [], []
        for seed in range(arguments.seeds):
            problem = AdditiveProblem.make(arguments.layers, seed)
            rules = ConstraintSet(problem.space)
            front = problem.supported_front()
            if arguments.bound is not None:
                rules = ConstraintSet(problem.space, [Constraint("cost", arguments.bound, problem.cost)])
                rules.check()
                front = front[front[:, 1] <= arguments.bound]
            options: dict[str, object] = {"population": arguments.population}
            points, asking, telling = run(problem, rules, arm, seed, arguments.budget, arguments.batch, options)
            best = problem.hypervolume(front)
            shares.append([problem.hypervolume(points[:mark]) / best for mark in marks])
            asks.append(1e3 * asking / len(points))
            tells.append(1e3 * telling / len(points))
        mean, spread = np.mean(shares, axis=0), np.std(shares, axis=0)
        cells = "  ".join(f"{m:.3f} ± {s:.3f}".rjust(15) for m, s in zip(mean, spread, strict=True))
        print(f"{' '.join(arm):<24}{cells}  {np.mean(asks):8.3f}  {np.mean(tells):8.3f}")


if __name__ == "__main__":
    main()
