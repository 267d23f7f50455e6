"""Building the genes: ties, pins, arc consistency, and errors that name the layer."""

from __future__ import annotations

import numpy as np
import pytest

from qsearch.errors import SpaceError
from qsearch.space import SearchSpace
from qsearch.types import BIT_ALPHABET, LayerShape

WIDTHS = len(BIT_ALPHABET)


def layer(name: str, tensor: int, channels: int = 4) -> LayerShape:
    return LayerShape(name, "conv", channels, channels, (3, 3), in_size=(8, 8), out_size=(8, 8), tensor=tensor)


def pairs(*allowed: tuple[int, int]) -> np.ndarray:
    """One layer's [9, 9] mask that holds exactly the given (w, a) pairs."""
    mask = np.zeros((WIDTHS, WIDTHS), dtype=bool)
    for w, a in allowed:
        mask[BIT_ALPHABET.index(w), BIT_ALPHABET.index(a)] = True
    return mask


EVERYTHING = np.ones((WIDTHS, WIDTHS), dtype=bool)


def test_space_layers_reading_one_tensor_share_a_gene() -> None:
    layers = [layer("main", 0), layer("downsample", 0), layer("next", 1)]
    space = SearchSpace.build(layers, [[2, 8]] * 3, [[2, 4, 8], [4, 8], [2, 8]], np.stack([EVERYTHING] * 3))
    assert [gene.layers for gene in space.activation_genes] == [(0, 1), (2,)]
    assert space.activation_genes[0].choices == (4, 8)
    assert space.gene_names == ("a:main", "w:main", "w:downsample", "a:next", "w:next")


def test_space_tie_groups_join_tensors_and_leave_others_alone() -> None:
    layers = [layer("a", 0), layer("b", 1), layer("c", 7)]
    # The tie group is called 7 as well: it must not swallow tensor 7, which is in no group.
    space = SearchSpace.build(layers, [[4]] * 3, [[2, 4]] * 3, np.stack([EVERYTHING] * 3), {0: 7, 1: 7})
    assert [gene.layers for gene in space.activation_genes] == [(0, 1), (2,)]
    assert space.cardinality == 4


def test_space_arc_consistency_drops_what_cannot_be_used() -> None:
    # a=2 has no partner in the second layer; then w=1 of the first layer, which needs a=2, goes too.
    first, second = pairs((1, 2), (4, 4), (8, 8)), pairs((4, 4), (8, 4), (8, 8))
    space = SearchSpace.build(
        [layer("p", 0), layer("q", 0)], [[1, 4, 8]] * 2, [[2, 4, 8]] * 2, np.stack([first, second])
    )
    assert space.activation_genes[0].choices == (4, 8)
    assert space.weight_genes[0].choices == (4, 8)
    assert space.weight_genes[1].choices == (4, 8)
    assert space.cardinality == 1 * 2 + 1 * 1


def test_space_every_kept_choice_is_part_of_a_legal_configuration() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        masks = rng.random((3, WIDTHS, WIDTHS)) < 0.5
        layers = [layer("x", 0), layer("y", 0), layer("z", 1)]
        try:
            space = SearchSpace.build(layers, [[1, 4, 8]] * 3, [[2, 4, 16]] * 3, masks)
        except SpaceError:
            continue
        configs = space.enumerate()
        for index, gene in enumerate(space.weight_genes):
            assert {config.weights[index] for config in configs} == set(gene.choices)
        for gene in space.activation_genes:
            assert {config.activations[gene.layers[0]] for config in configs} == set(gene.choices)


def test_space_a_pin_is_no_gene() -> None:
    space = SearchSpace.build(
        [layer("first", 0), layer("last", 1)], [[8], [2, 8]], [[8], [8]], np.stack([EVERYTHING] * 2)
    )
    assert space.gene_names == ("w:last",)
    rows = space.describe()
    assert [row["pinned"] for row in rows] == ["w a", "a"]
    assert rows[1]["weights"] == "2 8"


def test_space_choices_are_sorted_and_made_distinct() -> None:
    space = SearchSpace.build([layer("x", 0)], [[8, 2, 8, 4]], [[16, 8]], EVERYTHING[None])
    assert space.weight_genes[0].choices == (2, 4, 8)
    assert space.activation_genes[0].choices == (8, 16)


def test_space_error_names_layers_without_a_common_activation_width() -> None:
    with pytest.raises(SpaceError) as caught:
        SearchSpace.build([layer("p", 0), layer("q", 0)], [[4]] * 2, [[2, 4], [8]], np.stack([EVERYTHING] * 2))
    for word in ("'p'", "'q'", "{2, 4}", "{8}"):
        assert word in str(caught.value)


def test_space_error_names_the_layer_the_wish_and_the_supported_pairs() -> None:
    masks = np.stack([EVERYTHING, pairs((8, 8), (4, 8))])
    with pytest.raises(SpaceError) as caught:
        SearchSpace.build([layer("good", 0), layer("bad", 0)], [[2]] * 2, [[4, 8]] * 2, masks)
    text = str(caught.value)
    assert "'bad'" in text
    assert "'good'" not in text
    assert "{2}" in text
    assert "{4, 8}" in text
    assert "w {4, 8} with a 8" in text


def test_space_error_names_all_layers_that_only_fail_together() -> None:
    masks = np.stack([pairs((4, 4)), pairs((4, 8))])
    with pytest.raises(SpaceError, match="suits all layers") as caught:
        SearchSpace.build([layer("p", 0), layer("q", 0)], [[4]] * 2, [[4, 8]] * 2, masks)
    assert "'p'" in str(caught.value)
    assert "'q'" in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "activations", "shape", "message"),
    [
        ([[9]], [[8]], (1, WIDTHS, WIDTHS), "width 9 is not known"),
        ([[]], [[8]], (1, WIDTHS, WIDTHS), "no weight width"),
        ([[8]], [[8], [8]], (1, WIDTHS, WIDTHS), "2 lists of activation widths for 1 layers"),
        ([[8]], [[8]], (1, 8, 8), "shape"),
    ],
)
def test_space_malformed_requests_are_refused(
    weights: list[list[int]], activations: list[list[int]], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        SearchSpace.build([layer("x", 0)], weights, activations, np.ones(shape, dtype=bool))
    assert caught.value.hint


def test_space_without_layers_is_refused() -> None:
    with pytest.raises(SpaceError, match="no layers"):
        SearchSpace.build([], [], [], np.ones((0, WIDTHS, WIDTHS), dtype=bool))
