"""Rounding a layer at every width, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace

import nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qsearch.models import QuantGraph, build_graph
from qsearch.quant import hessian as hessian_module
from qsearch.quant.bank import WIDTHS, QuantizedWeight, closed_form, nearest, unpack
from qsearch.quant.codebook import CodebookGrid
from qsearch.quant.grids import WeightGrid
from qsearch.quant.hessian import Hessians
from qsearch.quant.schemes import WeightScheme

CPU = torch.device("cpu")

SCHEMES = {
    "symmetric": WeightScheme(),
    "positive": WeightScheme(negative_scales=False),
    "narrow": WeightScheme(grid="narrow"),
    "affine": WeightScheme(grid="affine"),
    "codebook": WeightScheme(grid="codebook"),
    "group": WeightScheme(granularity="group", group_size=8),
    "tensor": WeightScheme(granularity="tensor"),
    "power of two": WeightScheme(power_of_two=True),
    "power of two, affine": WeightScheme(power_of_two=True, grid="affine"),
    "min-max": WeightScheme(range="min_max"),
}

LAYERS = {
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
}


class Layer:
    """A layer, correlated inputs, and its Hessian."""

    def __init__(self, name: str, seed: int = 0) -> None:
        network = nn.Sequential(nets.randomize(LAYERS[name](), seed), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        noise = nets.images(24, 4, 6, seed)
        self.x = 2 * nn.functional.avg_pool2d(noise + noise.sum(1, keepdim=True), 3, 1, 1) + 0.3 * noise
        self.graph: QuantGraph = build_graph(network, self.x[:2])
        self.module = self.graph.layer_module(0)
        self.weight = self.module.weight.detach()
        self.groups = self.graph.layers[0].groups

    def hessian(self) -> torch.Tensor:
        hessians = Hessians(self.graph, len(self.x))
        hessians.on_input(0, self.x)
        return hessians.take(0)

    def round(self, scheme: WeightScheme, widths: tuple[int, ...] = WIDTHS) -> dict[int, QuantizedWeight]:
        return closed_form(self.weight, self.hessian(), self.groups, scheme, widths)

    @torch.no_grad()
    def errors(self, weight: torch.Tensor) -> torch.Tensor:
        """Mean squared output error of every channel."""
        assert isinstance(self.module, nn.Conv2d)
        delta = nn.functional.conv2d(
            self.x, weight - self.weight, None, padding=self.module.padding, groups=self.groups
        )
        return delta.square().mean((0, 2, 3))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_lie_on_the_grid_and_the_output_error_beats_nearest_rounding(scheme: str, layer: str) -> None:
    case, chosen = Layer(layer), SCHEMES[scheme]
    found = case.round(chosen)
    assert sorted(found) == list(WIDTHS)
    ours = plain = 0.0
    before = float("inf")
    for bits, quantized in found.items():
        codes, grid = quantized.codes, quantized.grid
        low, high = (0, 2**bits - 1) if isinstance(grid, CodebookGrid) else (grid.low, grid.high)
        assert grid.bits == bits
        assert codes.shape == case.weight.shape
        assert torch.equal(codes, codes.round().clamp(low, high))
        assert torch.equal(grid.encode(quantized.values), codes), "values stand for their codes"
        error = float(case.errors(quantized.values).sum())
        assert error <= before * 1.05, "more bits, less error"
        before = error
        if 1 < bits <= 4:  # at 8 bits nothing is left to win
            ours += error
            plain += float(case.errors(nearest(case.weight, bits, chosen).values).sum())
    assert ours < 0.9 * plain


@pytest.mark.parametrize("scheme", SCHEMES)
def test_widths_are_solved_together_as_alone(scheme: str) -> None:
    case = Layer("grouped")
    together = case.round(SCHEMES[scheme])
    for bits in (1, 3, 8):
        alone = case.round(SCHEMES[scheme], (bits,))[bits]
        assert torch.equal(alone.codes, together[bits].codes)
        torch.testing.assert_close(alone.values, together[bits].values)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_packed_is_unpacked_bit_for_bit(scheme: str) -> None:
    for bits, quantized in Layer("grouped").round(SCHEMES[scheme]).items():
        tensors = quantized.pack("a")
        assert sum(t.nbytes for name, t in tensors.items() if name.endswith("codes")) == quantized.codes.numel()
        again = unpack(tensors, "a", CPU)
        assert type(again.grid) is type(quantized.grid)
        assert torch.equal(again.codes, quantized.codes)
        assert torch.equal(again.values, quantized.values)
        assert again.grid.bits == quantized.grid.bits == bits
        if isinstance(quantized.grid, WeightGrid) and isinstance(again.grid, WeightGrid):
            for name in ("low", "high", "group_size", "power_of_two"):
                assert getattr(again.grid, name) == getattr(quantized.grid, name)
                assert type(getattr(again.grid, name)) is type(getattr(quantized.grid, name))
            assert torch.equal(again.grid.scale, quantized.grid.scale)
            assert torch.equal(again.grid.zero, quantized.grid.zero)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from(sorted(SCHEMES)))
def test_nearest_rounding_survives_packing(seed: int, bits: int, scheme: str) -> None:
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    quantized = nearest(weight, bits, SCHEMES[scheme])
    again = unpack({**quantized.pack("x"), **quantized.pack("y")}, "y", CPU)
    assert torch.equal(again.values, quantized.values)
    assert torch.equal(quantized.grid.quantize(weight), quantized.values)


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_plan_holds_centred_codes_or_real_values(scheme: str) -> None:
    case = Layer("grouped")
    bias = torch.arange(6.0)
    for bits, quantized in case.round(SCHEMES[scheme]).items():
        plan = quantized.plan(bias)
        assert plan.bias is bias
        assert quantized.plan(None).bias is None
        if scheme == "codebook" or (isinstance(quantized.grid, WeightGrid) and quantized.grid.group_size):
            assert plan.multiplier is None
            assert torch.equal(plan.weight, quantized.values)
        else:
            assert plan.multiplier is not None
            whole = plan.weight * (2 if bits == 1 else 1)
            assert torch.equal(whole, whole.round()), "whole numbers, at 1 bit halves"
            torch.testing.assert_close(plan.weight * plan.multiplier.reshape(-1, 1, 1, 1), quantized.values)


@pytest.mark.parametrize("scheme", ["power of two", "power of two, affine"])
def test_powers_of_two_stay_powers_of_two(scheme: str) -> None:
    for quantized in Layer("conv").round(SCHEMES[scheme]).values():
        assert isinstance(quantized.grid, WeightGrid)
        exponents = quantized.grid.scale.abs().log2()
        assert torch.equal(exponents, exponents.round())


def test_a_tensor_has_one_scale() -> None:
    for quantized in Layer("conv").round(SCHEMES["tensor"]).values():
        assert isinstance(quantized.grid, WeightGrid)
        assert len(quantized.grid.scale.unique()) == 1


def test_groups_of_inputs_keep_their_proportions() -> None:
    """A refit moves all scales of a row by one factor."""
    case = Layer("conv")
    for bits in (2, 4):
        quantized = case.round(SCHEMES["group"], (bits,))[bits]
        assert isinstance(quantized.grid, WeightGrid)
        assert quantized.grid.scale.shape == (6, 5)  # 36 inputs by 8
        assert len(quantized.grid.scale[0].unique()) > 1


def test_every_row_takes_the_better_orientation() -> None:
    """Two's complement reaches one further down; a negative scale turns that around. 1 bit is symmetric already."""
    skewed = Layer("conv")
    with torch.no_grad():
        skewed.weight.copy_(skewed.weight.abs() * torch.tensor([1.0, -1, 1, -1, 1, -1]).reshape(-1, 1, 1, 1))
    both, positive = skewed.round(SCHEMES["symmetric"]), skewed.round(SCHEMES["positive"])
    for bits in WIDTHS:
        grid = both[bits].grid
        assert isinstance(grid, WeightGrid)
        signs = grid.scale[:, 0].sign().tolist()
        if bits == 1:
            assert signs == [1.0] * 6
            assert torch.equal(both[1].codes, positive[1].codes)
        else:
            ours, theirs = (skewed.errors(found[bits].values) for found in (both, positive))
            assert bool((ours <= theirs * 1.02 + 1e-12).all()), "the Hessian is damped, so up to that"
        if bits == 2:
            # All weights of even rows are positive: codes 0, 1 and 2 on a mirrored grid serve them better.
            assert signs == [-1.0, 1.0] * 3
            turned = both[2].codes * grid.scale.sign().reshape(-1, 1, 1, 1)
            assert float(turned[::2].max()) == 2.0
            assert float(ours[::2].sum()) < 0.8 * float(theirs[::2].sum())


@pytest.mark.parametrize("scheme", ["symmetric", "affine", "group", "codebook"])
@pytest.mark.parametrize("layer", ["conv", "grouped"])
def test_a_wide_layer_in_blocks(scheme: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks ignore the correlation across them, but that inside of them still helps."""
    case = Layer(layer)
    whole = case.round(SCHEMES[scheme])
    monkeypatch.setattr(hessian_module, "MAX_COLUMNS", 9)
    cut = case.round(SCHEMES[scheme])
    ours, best, plain = (
        sum(float(case.errors(found[b].values).sum()) for b in (2, 3, 4))
        for found in (cut, whole, {b: nearest(case.weight, b, SCHEMES[scheme]) for b in (2, 3, 4)})
    )
    assert ours < 0.9 * plain
    assert best < plain
    for bits, quantized in cut.items():
        assert torch.equal(quantized.grid.encode(quantized.values), quantized.codes), bits
        assert quantized.codes.shape == case.weight.shape


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(["positive", "affine", "codebook", "tensor"]))
def test_uncorrelated_inputs_give_nearest_rounding(seed: int, bits: int, scheme: str) -> None:
    """Without refits, which may move a scale."""
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    chosen = SCHEMES[scheme]
    found = closed_form(weight, torch.eye(3)[None], 1, chosen, (bits,))[bits]
    expected = nearest(weight, bits, chosen)
    if scheme in ("codebook", "tensor"):
        assert torch.equal(found.codes, expected.codes)
    # A refit of the scale can only lower the error.
    ours, plain = (float((each.values - weight).square().sum()) for each in (found, expected))
    assert ours <= plain * (1 + 1e-5) + 1e-9


def test_dead_inputs_and_dead_rows() -> None:
    case = Layer("conv")
    case.x[:, 1] = 0.0
    with torch.no_grad():
        case.weight[2] = 0.0
    for scheme in SCHEMES.values():
        for bits, quantized in case.round(scheme, (1, 3)).items():
            assert bool(torch.isfinite(quantized.values).all())
            if bits > 1 and scheme.grid != "codebook" and scheme.granularity != "tensor":
                assert float(quantized.values[2].abs().max()) == 0.0


def test_one_bit_is_a_pair_of_equal_magnitude() -> None:
    for scheme in (s for n, s in SCHEMES.items() if n not in ("codebook", "group")):
        values = Layer("conv").round(scheme, (1,))[1].values.flatten(1).abs()
        torch.testing.assert_close(values, values[:, :1].expand_as(values))
        assert float(values.min()) > 0


def test_the_weight_itself_is_left_alone() -> None:
    case = Layer("conv")
    before = case.weight.clone()
    for scheme in SCHEMES.values():
        for quantized in case.round(scheme, (2, 8)).values():
            quantized.plan(None)
    assert torch.equal(case.weight, before)


def test_replacing_codes_keeps_the_grid() -> None:
    quantized = Layer("conv").round(SCHEMES["symmetric"], (4,))[4]
    other = replace(quantized, codes=quantized.codes.flip(0))
    assert torch.equal(other.values, quantized.grid.decode(quantized.codes.flip(0)))
