"""k-means codebooks against exhaustive search, published optimal quantizers, and laws."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsearch.errors import EvaluationError
from qsearch.quant.codebook import CodebookGrid, search_codebook, search_grid
from qsearch.quant.grids import WeightGrid, search_weight_grid
from qsearch.quant.schemes import WeightScheme


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(grid: CodebookGrid | WeightGrid, weight: torch.Tensor) -> float:
    return float((grid.quantize(weight) - weight).double().square().mean())


def exhaustive(values: list[float], weights: list[float], count: int) -> float:
    """Least weighted squared error over all partitions of the sorted values into runs."""
    order = np.argsort(values)
    x, w = np.array(values)[order], np.array(weights)[order]
    best = np.inf
    for cuts in combinations(range(1, len(x)), min(count, len(x)) - 1):
        total = 0.0
        for start, stop in pairwise((0, *cuts, len(x))):
            mean = np.average(x[start:stop], weights=w[start:stop])
            total += float((w[start:stop] * (x[start:stop] - mean) ** 2).sum())
        best = min(best, total)
    return best


@given(
    st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(0.1, 10)), min_size=1, max_size=9),
    st.integers(1, 2),
)
@settings(max_examples=60)
def test_small_tensors_are_solved_exactly(points: list[tuple[float, float]], bits: int) -> None:
    values, weights = (list(column) for column in zip(*points, strict=True))
    weight, importance = torch.tensor([values]), torch.tensor([weights])
    grid = search_codebook(weight, bits, importance)
    found = float(((grid.quantize(weight) - weight).double().square() * importance).sum())
    assert found <= exhaustive(values, weights, 2**bits) * (1 + 1e-4) + 1e-6


@pytest.mark.parametrize(("bits", "optimum"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_normal_weights_reach_the_lloyd_max_quantizer(bits: int, optimum: float) -> None:
    """Max 1960, "Quantizing for minimum distortion", table I: error of the best quantizer of a normal variable."""
    weight = noise(64, 2000)
    assert error(search_codebook(weight, bits), weight) == pytest.approx(optimum, rel=0.02)


def test_one_bit_is_two_centroids() -> None:
    weight = torch.tensor([[1.0, 1.0, 2.0, 10.0, 11.0, 12.0]])
    grid = search_codebook(weight, 1)
    assert grid.centroids.tolist() == pytest.approx([4 / 3, 11.0])
    assert grid.encode(weight).tolist() == [[0, 0, 0, 1, 1, 1]]


def test_one_codebook_serves_the_whole_layer() -> None:
    weight = noise(8, 3, 3, 3)
    grid = search_codebook(weight, 3)
    assert grid.centroids.shape == (8,)
    assert len(grid.quantize(weight).unique()) == 8
    assert grid.encode(weight).shape == weight.shape


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_codebook_is_not_worse_than_a_grid_with_as_many_values(bits: int) -> None:
    weight = noise(16, 100, seed=bits) ** 3
    tensor = search_weight_grid(weight, bits, WeightScheme(grid="affine", granularity="tensor"))
    assert error(search_codebook(weight, bits), weight) < error(tensor, weight)


def test_big_layers_are_close_to_the_exact_solution() -> None:
    """Binning only finds the start; Lloyd's steps use every weight."""
    weight = noise(40, 200) + (noise(40, 200, seed=1) > 1) * 4.0
    for bits in (2, 4):
        found = search_codebook(weight, bits)
        centroids = found.centroids.double()
        codes = found.encode(weight).long().flatten()
        means = torch.zeros_like(centroids).index_add_(0, codes, weight.flatten().double())
        torch.testing.assert_close(means / codes.bincount(minlength=2**bits), centroids, rtol=0, atol=1e-4)
        starts = torch.Generator().manual_seed(0)
        for _ in range(5):  # Lloyd from random starts does not find anything better
            other = weight.flatten()[torch.randperm(weight.numel(), generator=starts)[: 2**bits]].double().sort().values
            for _ in range(100):
                nearest = torch.bucketize(weight.flatten().double(), (other[1:] + other[:-1]) / 2)
                sums = torch.zeros_like(other).index_add_(0, nearest, weight.flatten().double())
                other = sums / nearest.bincount(minlength=2**bits).clamp_min(1)
            assert error(found, weight) <= error(CodebookGrid(bits, other.float()), weight) * 1.01


def test_importance_moves_centroids() -> None:
    weight = torch.tensor([[0.0, 1.0, 10.0, 11.0]])
    even = search_codebook(weight, 1).centroids.tolist()
    heavy = search_codebook(weight, 1, torch.tensor([[1.0, 3.0, 1.0, 9.0]])).centroids.tolist()
    assert even == [0.5, 10.5]
    assert heavy == pytest.approx([0.75, 10.9])
    assert search_codebook(weight, 1, torch.zeros(1, 4)).centroids.tolist() == even


@given(st.integers(1, 8), st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_laws(bits: int, row: list[float]) -> None:
    weight = torch.tensor([row])
    grid = search_codebook(weight, bits)
    assert grid.centroids.shape == (2**bits,)
    assert torch.equal(grid.centroids, grid.centroids.sort().values)
    codes = grid.encode(weight)
    assert torch.equal(codes, codes.round())
    assert 0 <= codes.min() <= codes.max() < 2**bits
    once = grid.quantize(weight)
    assert torch.equal(grid.quantize(once), once)
    distance = (weight[0, :, None] - grid.centroids).abs().amin(1)
    torch.testing.assert_close((once - weight).abs()[0], distance, rtol=1e-6, atol=0.1)
    if len(set(row)) <= 2**bits:
        torch.testing.assert_close(once, weight, rtol=1e-6, atol=1e-6)  # as many centroids as values: nothing is lost


def test_it_repeats_and_travels() -> None:
    weight = noise(30, 50).t()  # not contiguous
    one, two = search_codebook(weight, 4), search_codebook(weight, 4)
    assert torch.equal(one.centroids, two.centroids)
    assert torch.equal(one.to("cpu").quantize(weight), two.quantize(weight))


def test_the_scheme_chooses() -> None:
    weight = noise(4, 40)
    assert isinstance(search_grid(weight, 3, WeightScheme(grid="codebook")), CodebookGrid)
    assert isinstance(search_grid(weight, 3), WeightGrid)
    affine = search_grid(weight, 3, WeightScheme(grid="affine"), torch.ones(1, 40))
    assert isinstance(affine, WeightGrid)
    assert affine.low == 0


@pytest.mark.parametrize("bits", [0, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(EvaluationError, match=f"{bits} bits"):
        search_codebook(noise(2, 2), bits)
