"""The exact solvers against brute force, on cases where the relaxation, the tolerance or the bound would mislead."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from qsearch.errors import SpaceError
from qsearch.space import Constraint, ConstraintSet, SearchSpace, feasible
from qsearch.types import BIT_ALPHABET, LayerShape

WIDTHS = len(BIT_ALPHABET)


def make_space(n_layers: int, layers_per_tensor: int = 2, density: float = 1.0, seed: int = 0) -> SearchSpace:
    layers = [LayerShape(f"l{i}", "linear", 4, 4, tensor=i // layers_per_tensor) for i in range(n_layers)]
    supported = np.random.default_rng(seed).random((n_layers, WIDTHS, WIDTHS)) < density
    supported[:, :, BIT_ALPHABET.index(2)] = True
    return SearchSpace.build(layers, [[2, 4, 6, 8]] * n_layers, [[2, 4, 8]] * n_layers, supported)


def project(space: SearchSpace, tables: list[np.ndarray]) -> np.ndarray:
    return np.stack([space.project(table) for table in tables])


def costs_of_all(space: SearchSpace, tables: np.ndarray) -> np.ndarray:
    """Returns [C, number of configurations]."""
    vectors = np.stack([space.encode(config) for config in space.enumerate()])
    activations, weights = space.expand(vectors)
    layers = np.arange(space.n_layers)
    costs: np.ndarray = tables[:, layers, activations[:, space.group_of], weights].sum(axis=2)
    return costs


@pytest.mark.parametrize("seed", range(12))
def test_space_solver_finds_the_only_feasible_point_and_proves_there_is_none(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = make_space(4, density=0.8, seed=seed)
    tables = project(space, [rng.random((4, WIDTHS, WIDTHS)) for _ in range(3)])
    costs = costs_of_all(space, tables)
    # The configuration with the smallest largest cost: the bounds just admit it, and hardly any other.
    best = int(costs.max(axis=0).argmin())
    limits = np.full(3, costs[:, best].max())
    point = feasible.solve(space, tables, limits)
    assert point is not None
    activations, weights = point
    assert np.all(tables[:, np.arange(4), activations[space.group_of], weights].sum(axis=1) <= limits + 1e-9)
    assert feasible.solve(space, tables, limits * (1 - 1e-7)) is None


@pytest.mark.parametrize("seed", range(6))
def test_space_solver_minimises_an_objective_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = make_space(4, density=0.8, seed=seed)
    tables = project(space, [rng.random((4, WIDTHS, WIDTHS)) for _ in range(3)])
    costs = costs_of_all(space, tables)
    limits = np.quantile(costs[:2], 0.3, axis=1)
    met = np.all(costs[:2] <= limits[:, None], axis=0)
    point = feasible.solve(space, tables[:2], limits, objective=tables[2])
    assert point is not None
    activations, weights = point
    found = tables[2, np.arange(4), activations[space.group_of], weights].sum()
    assert found == pytest.approx(costs[2, met].min(), rel=1e-4)


def test_space_solver_does_not_accept_what_its_tolerance_lets_through() -> None:
    layers = [LayerShape("x", "linear", 4, 4)]
    space = SearchSpace.build(layers, [[2, 4, 8]], [[8]], np.ones((1, WIDTHS, WIDTHS), dtype=bool))
    # Width 2 misses the bound by 5e-8, less than the solver's 1e-6, and the objective prefers it.
    tables = np.array([[[[1.0 + 5e-8, 1.0, 5.0]]]])
    objective = np.array([[[0.0, 1.0, 2.0]]])
    point = feasible.solve(space, tables, np.ones(1), objective)
    assert point is not None
    assert point[1].tolist() == [1]


@pytest.mark.parametrize(("status", "message"), [(1, "Node limit reached."), (4, "A numerical difficulty.")])
def test_space_solver_that_gives_up_says_so(monkeypatch: pytest.MonkeyPatch, status: int, message: str) -> None:
    gave_up = SimpleNamespace(x=None, status=status, message=message)
    monkeypatch.setattr("scipy.optimize.milp", lambda *args, **kwargs: gave_up)
    space = make_space(2)
    with pytest.raises(SpaceError, match=f"could not decide.*{message}"):
        feasible.solve(space, project(space, [np.ones((2, WIDTHS, WIDTHS))]), np.ones(1))


@pytest.mark.parametrize("layers_per_tensor", [1, 3, 30])
def test_space_walk_under_one_bound_never_meets_a_dead_end(layers_per_tensor: int) -> None:
    rng = np.random.default_rng(1)
    space = make_space(30, layers_per_tensor, density=0.7)
    table = rng.random((30, WIDTHS, WIDTHS))
    low, high = ConstraintSet(space, [Constraint("c", 1.0, table)]).attainable("c")
    rules = ConstraintSet(space, [Constraint("c", low + 1e-3 * (high - low), table)])
    # One node per gene, pinned ones included, leads to the first configuration.
    assert len(list(rules.walk(rng, max_nodes=space.n_layers + space.n_groups))) == 1
    assert list(rules.walk(rng, max_nodes=space.n_layers + space.n_groups - 1)) == []


def test_space_repair_stays_legal_where_few_pairs_are_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight step that is legal beside the old activation width must not be taken beside the new one.

    Single steps reach every bound here; falling back to a known point would hide that a step went wrong.
    """

    def no_fallback(*args: object) -> None:
        pytest.fail("single steps were not enough")

    monkeypatch.setattr(ConstraintSet, "_approach", no_fallback)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        space = make_space(12, layers_per_tensor=4, density=0.5, seed=seed)
        table = rng.random((12, WIDTHS, WIDTHS)).cumsum(axis=1).cumsum(axis=2)
        low, high = ConstraintSet(space, [Constraint("c", 1.0, table)]).attainable("c")
        rules = ConstraintSet(space, [Constraint("c", low + 0.2 * (high - low), table)])
        for vector in space.sample(rng, 10):
            repaired = rules.repair(vector, rng)
            assert repaired is not None
            assert np.array_equal(space.repair(repaired), repaired)
            assert rules.violation(space.decode(repaired)) == 0.0


def test_space_repair_goes_to_the_wider_of_two_equally_near_weights() -> None:
    mask = np.ones((1, WIDTHS, WIDTHS), dtype=bool)
    mask[0, BIT_ALPHABET.index(4), BIT_ALPHABET.index(8)] = False
    layers = [LayerShape("x", "linear", 4, 4)]
    space = SearchSpace.build(layers, [[2, 4, 6]], [[4, 8]], mask)
    assert space.repair([1, 1]).tolist() == [1, 2]
    assert space.repair([0, 1]).tolist() == [0, 1]
