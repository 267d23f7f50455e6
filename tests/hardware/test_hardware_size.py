"""Stored size: what the quantizer keeps beside the weights is counted, and is what the quantizer makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qsearch.errors import DeviceError
from qsearch.hardware import SizeRules, layer_size_bytes
from qsearch.quant.codebook import CodebookGrid, search_grid
from qsearch.quant.schemes import weight_scheme
from qsearch.spec import QuantizerSpec
from qsearch.types import LayerShape

CONV = LayerShape("c", "conv", 8, 6, (3, 3), has_bias=False)  # 6 rows of 72 inputs: 432 weights
HEAD = LayerShape("h", "linear", 50, 10)  # 10 rows of 50 inputs and a bias: 500 weights
DEPTHWISE = LayerShape("d", "conv", 64, 64, (3, 3), groups=64)  # 64 rows of 9 inputs and a bias: 576 weights


def rules(**weights: Any) -> SizeRules:
    return SizeRules.from_spec(QuantizerSpec.model_validate({"weights": weights}))


def test_the_default_is_a_scale_for_every_output_channel() -> None:
    assert rules() == SizeRules()
    for layer in (CONV, HEAD, DEPTHWISE):
        for w in range(1, 9):
            assert layer_size_bytes(layer, w) == layer_size_bytes(layer, w, SizeRules())
    assert layer_size_bytes(CONV, 4) == 216 + 6 * 4
    assert layer_size_bytes(HEAD, 4) == 250 + 10 * 4 + 10 * 4


@pytest.mark.parametrize(
    ("weights", "conv", "head", "depthwise"),
    [
        ({"granularity": "tensor"}, 216 + 4, 250 + 4 + 40, 288 + 4 + 256),
        ({"granularity": "group"}, 216 + 6 * 3 * 4, 250 + 10 * 2 * 4 + 40, 288 + 64 * 4 + 256),
        ({"granularity": "group", "group_size": 8}, 216 + 6 * 9 * 4, 250 + 10 * 7 * 4 + 40, 288 + 64 * 2 * 4 + 256),
        ({"grid": "affine"}, 216 + 6 * 5, 250 + 10 * 5 + 40, 288 + 64 * 5 + 256),
        ({"grid": "narrow"}, 216 + 6 * 4, 250 + 10 * 4 + 40, 288 + 64 * 4 + 256),
        ({"power_of_two": True}, 216 + 6, 250 + 10 + 40, 288 + 64 + 256),
        ({"grid": "affine", "power_of_two": True, "granularity": "tensor"}, 216 + 2, 250 + 2 + 40, 288 + 2 + 256),
        ({"grid": "codebook"}, 216 + 16 * 4, 250 + 16 * 4 + 40, 288 + 16 * 4 + 256),
    ],
)
def test_sizes_by_hand(weights: dict[str, Any], conv: int, head: int, depthwise: int) -> None:
    chosen = rules(**weights)
    assert [layer_size_bytes(layer, 4, chosen) for layer in (CONV, HEAD, DEPTHWISE)] == [conv, head, depthwise]


def test_a_codebook_doubles_with_every_bit() -> None:
    chosen = rules(grid="codebook", granularity="group")
    assert [layer_size_bytes(CONV, w, chosen) - 54 * w for w in (1, 2, 8)] == [8, 16, 1024]


def test_no_bits_no_size() -> None:
    with pytest.raises(DeviceError, match="'c'"):
        layer_size_bytes(CONV, 0, rules(grid="codebook"))


@given(
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(1, 90),
    st.sampled_from(["symmetric", "narrow", "affine", "codebook"]),
    st.sampled_from(["tensor", "channel", "group"]),
    st.sampled_from([1, 7, 32]),
    st.booleans(),
)
def test_trap_17_the_size_is_that_of_what_is_simulated(
    bits: int, outputs: int, inputs: int, grid: str, granularity: str, group_size: int, bias: bool
) -> None:
    """Scales, zero points and centroids that the quantizer makes are counted one by one."""
    settings = {"grid": grid, "granularity": granularity, "group_size": group_size, "range": "min_max"}
    spec = QuantizerSpec.model_validate({"weights": settings})
    layer = LayerShape("l", "linear", inputs, outputs, has_bias=bias)
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(inputs))
    made = search_grid(weight, bits, weight_scheme(spec))
    if isinstance(made, CodebookGrid):
        kept = 4 * made.centroids.numel()
    else:
        scales = 1 if granularity == "tensor" else made.scale.numel()
        kept = scales * (5 if grid == "affine" and bits > 1 else 4)
    expected = -(-outputs * inputs * bits // 8) + kept + 4 * outputs * bias
    assert layer_size_bytes(layer, bits, SizeRules.from_spec(spec)) == expected


@given(st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_more_bits_are_never_smaller(outputs: int, inputs: int, affine: bool) -> None:
    layer = LayerShape("l", "linear", inputs, outputs)
    for grid in ("affine" if affine else "symmetric", "codebook"):
        sizes = [layer_size_bytes(layer, w, rules(grid=grid)) for w in range(1, 9)]
        assert sizes == sorted(sizes)
