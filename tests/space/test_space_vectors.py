"""Laws of vectors and configurations, on random spaces small enough to enumerate by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qsearch.errors import SpaceError
from qsearch.space import SearchSpace
from qsearch.types import BIT_ALPHABET, BitConfig, LayerShape

WIDTHS = len(BIT_ALPHABET)
fast = settings(max_examples=60, deadline=None)


def layer(name: str, tensor: int = 0) -> LayerShape:
    return LayerShape(name, "linear", 4, 4, tensor=tensor)


@st.composite
def spaces(draw: st.DrawFn, max_layers: int = 4) -> SearchSpace:
    """A random space: shared tensors, ties, pins and random supported pairs; a few hundred configurations at most."""
    n = draw(st.integers(1, max_layers))
    layers = [layer(f"l{index}", draw(st.integers(0, index))) for index in range(n)]
    lists = st.lists(st.sampled_from(BIT_ALPHABET), min_size=1, max_size=3, unique=True)
    weights = [draw(lists) for _ in range(n)]
    activations = [draw(lists) for _ in range(n)]
    density = draw(st.sampled_from([0.4, 0.7, 1.0]))
    supported = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random((n, WIDTHS, WIDTHS)) < density
    ties = {0: 0, 1: 0} if draw(st.booleans()) else None
    try:
        return SearchSpace.build(layers, weights, activations, supported, ties)
    except SpaceError:
        assume(False)
        raise


def brute_force(space: SearchSpace) -> set[BitConfig]:
    """All legal configurations, from the definition: choices, ties and the mask of pairs."""
    result = set()
    for active in itertools.product(*(gene.choices for gene in space.activation_genes)):
        a = tuple(active[group] for group in space.group_of)
        for w in itertools.product(*(gene.choices for gene in space.weight_genes)):
            if all(
                space.legal[i, BIT_ALPHABET.index(w[i]), BIT_ALPHABET.index(a[i])] for i in range(len(space.layers))
            ):
                result.add(BitConfig(w, a))
    return result


@fast
@given(spaces())
def test_space_enumerate_and_cardinality_match_brute_force(space: SearchSpace) -> None:
    configs = space.enumerate()
    assert len(configs) == len(set(configs)) == space.cardinality
    assert set(configs) == brute_force(space)
    assert all(space.is_legal(config) for config in configs)


@fast
@given(spaces())
def test_space_encode_inverts_decode(space: SearchSpace) -> None:
    for config in space.enumerate():
        vector = space.encode(config)
        assert vector.shape == (space.n_genes,)
        assert space.decode(vector) == config
        assert np.array_equal(space.repair(vector), vector)
        assert space.canonical(config) == config


@fast
@given(spaces(), st.integers(0, 2**32 - 1))
def test_space_repair_is_legal_idempotent_and_nearest(space: SearchSpace, seed: int) -> None:
    vectors = np.random.default_rng(seed).integers(-2, 6, (8, space.n_genes))
    repaired = space.repair(vectors)
    assert np.array_equal(space.repair(repaired), repaired)
    clipped = np.clip(vectors, 0, space.sizes - 1)
    for before, after in zip(clipped, repaired, strict=True):
        wish, config = space.decode(before), space.decode(after)
        assert space.is_legal(config)
        assert config.activations == wish.activations
        for index, gene in enumerate(space.weight_genes):
            column = space.legal[index, :, BIT_ALPHABET.index(config.activations[index])]
            options = [w for w in gene.choices if column[BIT_ALPHABET.index(w)]]
            best = min(options, key=lambda w: (abs(w - wish.weights[index]), -w))
            assert config.weights[index] == best
        assert np.array_equal(space.repair(before), after), "one by one and in a batch"


@fast
@given(spaces())
def test_space_corner_configurations_bound_all_others(space: SearchSpace) -> None:
    low, high = space.min_config(), space.max_config()
    assert space.is_legal(low)
    assert space.is_legal(high)
    for config in space.enumerate():
        assert all(a <= b <= c for a, b, c in zip(low.activations, config.activations, high.activations, strict=True))


@fast
@given(spaces())
def test_space_uniform_configurations_are_legal_and_distinct(space: SearchSpace) -> None:
    configs = space.uniform()
    assert len(configs) == len(set(configs)) >= 1
    assert all(space.is_legal(config) for config in configs)


def test_space_uniform_finds_exactly_the_uniform_pairs_when_all_are_choices() -> None:
    everything = np.ones((2, WIDTHS, WIDTHS), dtype=bool)
    space = SearchSpace.build([layer("x"), layer("y", 1)], [[2, 4, 8]] * 2, [[4, 8]] * 2, everything)
    assert [(c.weights[0], c.activations[0]) for c in space.uniform()] == [
        (4, 4),
        (8, 8),
        (2, 4),
        (2, 8),
        (4, 8),
        (8, 4),
    ]


@fast
@given(spaces(), st.integers(0, 2**32 - 1))
def test_space_samples_are_legal_and_repeatable(space: SearchSpace, seed: int) -> None:
    first = space.sample(np.random.default_rng(seed), 20)
    assert np.array_equal(first, space.sample(np.random.default_rng(seed), 20))
    assert np.array_equal(space.repair(first), first)


def test_space_sampling_is_uniform_over_legal_configurations() -> None:
    # Activation 4 leaves 9 weight combinations, activation 8 only 1: drawing activations evenly would be wrong.
    mask = np.ones((2, WIDTHS, WIDTHS), dtype=bool)
    mask[:, :, BIT_ALPHABET.index(8)] = False
    mask[:, BIT_ALPHABET.index(8), BIT_ALPHABET.index(8)] = True
    space = SearchSpace.build([layer("x"), layer("y")], [[2, 4, 8]] * 2, [[4, 8]] * 2, mask)
    assert space.cardinality == 10
    draws = space.sample(np.random.default_rng(0), 20_000)
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    assert len(counts) == 10
    # Expected 2000 each, standard deviation 42: five of them.
    assert np.all(np.abs(counts - 2000) < 212)


def test_space_of_a_hundred_layers_counts_exactly() -> None:
    layers = [layer(f"l{index}", index) for index in range(100)]
    everything = np.ones((100, WIDTHS, WIDTHS), dtype=bool)
    space = SearchSpace.build(layers, [list(range(2, 9))] * 100, [list(range(2, 9))] * 100, everything)
    assert space.cardinality == 7**200
    drawn = space.sample(np.random.default_rng(1), 50)
    assert np.array_equal(np.stack([space.encode(space.decode(vector)) for vector in drawn]), drawn)
    with pytest.raises(SpaceError, match="more than the limit"):
        space.enumerate()


def test_space_of_one_configuration_has_empty_vectors() -> None:
    space = SearchSpace.build([layer("x")], [[8]], [[8]], np.ones((1, WIDTHS, WIDTHS), dtype=bool))
    assert space.n_genes == 0
    assert space.cardinality == 1
    config = BitConfig((8,), (8,))
    assert space.decode(space.encode(config)) == config
    assert space.sample(np.random.default_rng(0), 3).shape == (3, 0)
    assert space.uniform() == space.enumerate() == [config]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BitConfig((4, 4, 3), (8, 8, 8)), "'z': weight width 3 is not in the space"),
        (BitConfig((4, 4, 4), (8, 8, 2)), "'z': activation width 2 is not in the space"),
        (BitConfig((4, 4, 4), (8, 4, 8)), "'y' has activation width 4, but it shares"),
        (BitConfig((4, 4, 8), (8, 8, 4)), "'z': weight width 8 with activation width 4 is not supported"),
        (BitConfig((4, 4), (8, 8)), "2 layers, the space has 3"),
    ],
)
def test_space_encode_names_the_layer_that_does_not_fit(config: BitConfig, message: str) -> None:
    mask = np.ones((3, WIDTHS, WIDTHS), dtype=bool)
    mask[2, BIT_ALPHABET.index(8), BIT_ALPHABET.index(4)] = False
    space = SearchSpace.build([layer("x"), layer("y"), layer("z", 1)], [[4, 8]] * 3, [[4, 8]] * 3, mask)
    with pytest.raises(SpaceError, match=message):
        space.encode(config)
    assert not space.is_legal(config)


def test_space_canonical_moves_foreign_widths_to_the_nearest_choice() -> None:
    space = SearchSpace.build(
        [layer("x"), layer("y")], [[2, 4, 8]] * 2, [[4, 8]] * 2, np.ones((2, WIDTHS, WIDTHS), dtype=bool)
    )
    # 3 is as near to 2 as to 4, 6 as near to 4 as to 8: the wider one; the shared tensor takes the wider wish.
    assert space.canonical(BitConfig((3, 16), (2, 6))) == BitConfig((4, 8), (8, 8))


@pytest.mark.parametrize("vector", [[0], [0, 0, 0], [0, 9], [0, -1], [0.5, 0.0]])
def test_space_decode_refuses_vectors_of_another_space(vector: list[float]) -> None:
    space = SearchSpace.build([layer("x")], [[2, 4]], [[4, 8]], np.ones((1, WIDTHS, WIDTHS), dtype=bool))
    with pytest.raises(SpaceError):
        space.decode(np.array(vector))
