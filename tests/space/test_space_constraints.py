"""Constraints against brute force: violations, attainable ranges, impossible bounds, repair, exact enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsearch.errors import SpaceError
from qsearch.space import Constraint, ConstraintSet, SearchSpace, mean_bits_table
from qsearch.types import BIT_ALPHABET, BitConfig, LayerShape

WIDTHS = len(BIT_ALPHABET)
BITS = np.array(BIT_ALPHABET, dtype=float)
fast = settings(max_examples=40, deadline=None)


def make_space(n_layers: int, seed: int, density: float = 0.7) -> SearchSpace:
    rng = np.random.default_rng(seed)
    layers = [
        LayerShape(f"l{i}", "conv", 4, int(rng.integers(2, 9)), (3, 3), in_size=(5, 5), tensor=i // 2)
        for i in range(n_layers)
    ]
    supported = rng.random((n_layers, WIDTHS, WIDTHS)) < density
    supported[:, -2, -2] = True
    return SearchSpace.build(layers, [[2, 4, 8]] * n_layers, [[2, 8]] * n_layers, supported)


def random_table(space: SearchSpace, seed: int, monotone: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.random((space.n_layers, WIDTHS, WIDTHS))
    return noise.cumsum(axis=1).cumsum(axis=2) if monotone else noise


def cost(constraint: Constraint, config: BitConfig) -> float:
    """The definition, in plain Python."""
    return constraint.constant + sum(
        float(constraint.table[i, BIT_ALPHABET.index(w), BIT_ALPHABET.index(a)])
        for i, (w, a) in enumerate(zip(config.weights, config.activations, strict=True))
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[SearchSpace, list[Constraint], list[BitConfig]]:
    """A small space, one to three bounds between the extremes of their costs, and all configurations."""
    seed = draw(st.integers(0, 2**31))
    space = make_space(draw(st.integers(1, 4)), seed)
    configs = space.enumerate()
    constraints = []
    for index in range(draw(st.integers(1, 3))):
        table = random_table(space, seed + index, draw(st.booleans()))
        free = Constraint(f"c{index}", 1.0, table, constant=draw(st.sampled_from([0.0, 2.5])))
        costs = [cost(free, config) for config in configs]
        share = draw(st.floats(0.0, 0.9))
        bound = min(costs) + share * (max(costs) - min(costs)) + 1e-6
        constraints.append(Constraint(f"c{index}", bound, table, free.constant))
    return space, constraints, configs


@fast
@given(problems())
def test_constraints_violation_is_the_sum_of_relative_excesses(
    problem: tuple[SearchSpace, list[Constraint], list[BitConfig]],
) -> None:
    space, constraints, configs = problem
    rules = ConstraintSet(space, constraints)
    expected = [sum(max(0.0, cost(c, config) - c.bound) / c.bound for c in constraints) for config in configs]
    np.testing.assert_allclose(rules.violations(configs), expected, atol=1e-8)
    vectors = np.stack([space.encode(config) for config in configs])
    assert np.array_equal(rules.vector_violations(vectors), rules.violations(configs))
    assert rules.violation(configs[0]) == rules.violations(configs)[0]


@fast
@given(problems())
def test_constraints_attainable_matches_brute_force(
    problem: tuple[SearchSpace, list[Constraint], list[BitConfig]],
) -> None:
    space, constraints, configs = problem
    rules = ConstraintSet(space, constraints)
    for constraint in constraints:
        costs = [cost(constraint, config) for config in configs]
        assert rules.attainable(constraint.name) == pytest.approx((min(costs), max(costs)))


@fast
@given(problems(), st.integers(0, 2**31))
def test_constraints_check_and_repair_agree_with_brute_force(
    problem: tuple[SearchSpace, list[Constraint], list[BitConfig]], seed: int
) -> None:
    space, constraints, configs = problem
    rules = ConstraintSet(space, constraints)
    rng = np.random.default_rng(seed)
    if np.any(rules.violations(configs) == 0.0):
        rules.check()
        for config in configs[:: max(1, len(configs) // 8)]:
            vector = space.encode(config)
            repaired = rules.repair(vector, rng)
            assert repaired is not None
            assert np.array_equal(space.repair(repaired), repaired)
            assert rules.violation(space.decode(repaired)) == 0.0
            if rules.violation(config) == 0.0:
                assert np.array_equal(repaired, vector)
    else:
        with pytest.raises(SpaceError):
            rules.check()
        assert rules.repair(space.encode(configs[0]), rng) is None
        assert len(rules.sample(rng, 3)) == 0


@fast
@given(problems(), st.integers(0, 2**31))
def test_constraints_walk_yields_exactly_the_feasible_configurations(
    problem: tuple[SearchSpace, list[Constraint], list[BitConfig]], seed: int
) -> None:
    space, constraints, configs = problem
    rules = ConstraintSet(space, constraints)
    found = [space.decode(vector) for vector in rules.walk(np.random.default_rng(seed), 100_000)]
    feasible = {config for config, v in zip(configs, rules.violations(configs), strict=True) if v == 0.0}
    assert len(found) == len(set(found))
    assert set(found) == feasible


@fast
@given(problems(), st.integers(0, 2**31))
def test_constraints_samples_are_feasible_and_repeatable(
    problem: tuple[SearchSpace, list[Constraint], list[BitConfig]], seed: int
) -> None:
    space, constraints, _ = problem
    rules = ConstraintSet(space, constraints)
    drawn = rules.sample(np.random.default_rng(seed), 5)
    assert np.all(rules.vector_violations(drawn) == 0.0)
    assert np.array_equal(drawn, rules.sample(np.random.default_rng(seed), 5))


def test_constraints_repair_of_a_monotone_cost_only_narrows() -> None:
    space = make_space(8, 5, density=1.0)
    table = random_table(space, 1, monotone=True)
    low, high = ConstraintSet(space, [Constraint("c", 1e9, table)]).attainable("c")
    rules = ConstraintSet(space, [Constraint("c", low + 0.3 * (high - low), table)])
    top = space.encode(space.max_config())
    results = [rules.repair(top, np.random.default_rng(seed)) for seed in range(5)]
    assert all(result is not None and np.all(result <= top) for result in results)
    assert len({result.tobytes() for result in results if result is not None}) > 1, "random genes, not always the same"
    # It stops as soon as the bound is met: little of the room is given away.
    costs = [cost(rules.constraints[0], space.decode(result)) for result in results if result is not None]
    assert max(costs) > low + 0.15 * (high - low)


def test_constraints_impossible_bound_prints_what_is_attainable() -> None:
    space = make_space(2, 0, density=1.0)
    table = mean_bits_table(space.layers, "weight")
    rules = ConstraintSet(space, [Constraint("mean_weight_bits", 1.5, table, unit="bits")])
    with pytest.raises(SpaceError) as caught:
        rules.check()
    assert "1.5" in caught.value.message
    assert "2 to 8 bits" in caught.value.message
    assert "2 bits or more" in caught.value.hint


def test_constraints_jointly_impossible_bounds_are_found_and_explained() -> None:
    # Each layer is either cheap in one or cheap in the other cost; each bound alone is easy.
    space = make_space(2, 0, density=1.0)
    wide = np.broadcast_to(BITS[:, None], (2, WIDTHS, WIDTHS)).copy()
    rules = ConstraintSet(
        space,
        [Constraint("up", 6.0, wide, unit="J"), Constraint("down", -12.0, -wide, unit="s")],
    )
    for name in ("up", "down"):
        low, _ = rules.attainable(name)
        assert low <= {"up": 6.0, "down": -12.0}[name]
    with pytest.raises(SpaceError, match="not all of them together") as caught:
        rules.check()
    text = caught.value.message
    assert "up <= 6 J (attainable: 4 to 16, 12 at least when the other bounds hold)" in text
    assert "down <= -12 s" in text
    # 12 is reachable exactly: with that bound the check passes.
    ConstraintSet(space, [Constraint("up", 12.0, wide), Constraint("down", -12.0, -wide)]).check()


def test_constraints_hundred_layers_with_pulling_bounds_are_solved_exactly() -> None:
    rng = np.random.default_rng(0)
    layers = [LayerShape(f"l{i}", "linear", 4, 4, tensor=i) for i in range(100)]
    space = SearchSpace.build(
        layers, [list(range(2, 9))] * 100, [list(range(2, 9))] * 100, np.ones((100, WIDTHS, WIDTHS), dtype=bool)
    )
    size = rng.random((100, 1, 1)) * np.broadcast_to(BITS[:, None], (100, WIDTHS, WIDTHS))
    harm = rng.random((100, 1, 1)) * 4.0 ** -np.broadcast_to(BITS[:, None], (100, WIDTHS, WIDTHS))
    middle = space.decode(rng.integers(0, space.sizes))
    bounds = [cost(Constraint("x", 0.0, table), middle) for table in (size, harm)]
    rules = ConstraintSet(space, [Constraint("size", bounds[0], size), Constraint("harm", bounds[1], harm)])
    rules.check()
    repaired = rules.repair(space.encode(space.max_config()), rng)
    assert repaired is not None
    assert rules.violation(space.decode(repaired)) == 0.0


def test_constraints_bound_equal_to_a_rounded_sum_counts_as_met() -> None:
    space = make_space(4, 2, density=1.0)
    table = mean_bits_table(space.layers, "weight")
    config = BitConfig((4,) * 4, (8,) * 4)
    assert ConstraintSet(space, [Constraint("m", 4.0, table)]).violation(config) == 0.0
    assert ConstraintSet(space, [Constraint("m", 4.0 - 1e-6, table)]).violation(config) > 0.0


@pytest.mark.parametrize("which", ["weight", "activation"])
def test_constraints_mean_bits_table_equals_the_mean_of_the_configuration(which: str) -> None:
    space = make_space(5, 9, density=1.0)
    table = mean_bits_table(space.layers, which)  # type: ignore[arg-type]
    for vector in space.sample(np.random.default_rng(0), 20):
        config = space.decode(vector)
        mean = config.mean_weight_bits if which == "weight" else config.mean_activation_bits
        assert cost(Constraint("m", 1.0, table), config) == pytest.approx(mean(space.layers))


def test_constraints_empty_set_accepts_everything() -> None:
    space = make_space(3, 4)
    rules = ConstraintSet(space)
    rules.check()
    vector = space.encode(space.max_config())
    assert rules.violation(space.max_config()) == 0.0
    repaired = rules.repair(vector, np.random.default_rng(0))
    assert repaired is not None
    assert np.array_equal(repaired, vector)
    walked = {space.decode(v) for v in rules.walk(np.random.default_rng(0), 100_000)}
    assert walked == set(space.enumerate())


def test_constraints_bad_tables_and_names_are_refused() -> None:
    space = make_space(2, 0)
    good = np.ones((2, WIDTHS, WIDTHS))
    with pytest.raises(SpaceError, match="given twice"):
        ConstraintSet(space, [Constraint("x", 1.0, good), Constraint("x", 2.0, good)])
    with pytest.raises(SpaceError, match="table of shape"):
        ConstraintSet(space, [Constraint("x", 1.0, good[:, :8])])
    with pytest.raises(SpaceError, match="finite"):
        ConstraintSet(space, [Constraint("x", float("nan"), good)])
    with pytest.raises(SpaceError, match="no cost for layer 'l0'"):
        ConstraintSet(space, [Constraint("x", 1.0, np.full_like(good, np.nan))])
    with pytest.raises(SpaceError, match="did you mean 'latency'"):
        ConstraintSet(space, [Constraint("latency", 1.0, good)]).attainable("latensy")


def test_constraints_unsupported_pairs_need_no_cost() -> None:
    space = make_space(2, 0, density=0.6)
    table = np.where(space.legal, 1.0, np.nan)
    rules = ConstraintSet(space, [Constraint("x", 2.0, table)])
    rules.check()
    assert rules.violations(space.enumerate()).max() == 0.0
    foreign = BitConfig((16, 16), (16, 16))
    assert rules.violation(foreign) == np.inf
