"""The cost table by itself: index, size rule, lookups and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from qsearch.errors import DeviceError
from qsearch.hardware import METRICS, CostTable, code, layer_size_bytes
from qsearch.types import BIT_ALPHABET, BitConfig, LayerShape

LAYERS = 3


def numbered(constant: float = 0.0) -> CostTable:
    """A table whose entry is 1000 * metric + 100 * layer + 10 * w index + a index; (w2, a3) is missing in layer 1."""
    axes = np.indices((len(METRICS), LAYERS, 9, 9))
    cost = 1000.0 * axes[0] + 100.0 * axes[1] + 10.0 * axes[2] + axes[3]
    supported = np.ones((LAYERS, 9, 9), dtype=bool)
    supported[1, 1, 2] = False
    cost[:, 1, 1, 2] = np.nan
    return CostTable("toy", cost, supported, ("one", "two", "three"), np.full(len(METRICS), constant), {"batch": 1})


def test_code_is_the_position_in_the_alphabet() -> None:
    assert code(BIT_ALPHABET).tolist() == list(range(9))
    assert code([[16, 1], [8, 2]]).tolist() == [[8, 0], [7, 1]]


@pytest.mark.parametrize("bits", [0, -1, 9, 15, 17, 1000])
def test_code_refuses_widths_without_a_column(bits: int) -> None:
    with pytest.raises(DeviceError, match=f"{bits} bits"):
        code([8, bits])


def test_code_refuses_fractions() -> None:
    with pytest.raises(DeviceError, match="integers"):
        code([4.0])


def test_size_bytes_by_hand() -> None:
    conv = LayerShape("c", "conv", 3, 5, (3, 3), has_bias=False)  # 135 weights
    assert layer_size_bytes(conv, 8) == 135 + 5 * 4
    assert layer_size_bytes(conv, 3) == 51 + 5 * 4  # 405 bits = 50.6 bytes
    assert layer_size_bytes(conv, 1) == 17 + 5 * 4
    head = LayerShape("h", "linear", 512, 10)  # 5120 weights, scale and bias per row
    assert layer_size_bytes(head, 4) == 2560 + 10 * 8
    depthwise = LayerShape("d", "conv", 64, 64, (3, 3), groups=64)  # 576 weights
    assert layer_size_bytes(depthwise, 2) == 144 + 64 * 8
    with pytest.raises(DeviceError, match="'c'"):
        layer_size_bytes(conv, 0)


def test_totals_gather_and_sum() -> None:
    table = numbered(constant=7.0)
    config = BitConfig((1, 8, 16), (2, 8, 1))
    # cycles (metric 0): layer 0 at w index 0, a index 1; layer 1 at 7, 7; layer 2 at 8, 0
    assert table.total(config, "cycles") == 1 + (100 + 77) + (200 + 80) + 7
    assert table.total(config, "compute_cycles") == 3000 + 458 + 7
    batch = table.totals([[1, 8, 16], [2, 2, 2]], [[2, 8, 1], [2, 2, 2]], "cycles")
    assert batch.tolist() == [465.0, 11 + 111 + 211 + 7]


def test_an_unsupported_pair_names_layer_and_pair() -> None:
    table = numbered()
    assert np.isfinite(table.totals([[2, 3, 2]], [[3, 3, 3]], "cycles")).all()  # missing in layer 'two' only
    with pytest.raises(DeviceError, match=r"'two': w2 a3 is not supported") as caught:
        table.totals([[8, 8, 8], [2, 2, 2]], [[8, 8, 8], [3, 3, 3]], "cycles")
    assert "80 pairs" in caught.value.hint


def test_a_short_list_of_supported_pairs_is_spelled_out() -> None:
    supported = np.zeros((1, 9, 9), dtype=bool)
    supported[0, [3, 7], [7, 7]] = True
    cost = np.where(supported, 1.0, np.nan) * np.ones((len(METRICS), 1, 1, 1))
    with pytest.raises(DeviceError) as caught:
        CostTable("toy", cost, supported, ("one",)).total(BitConfig((4,), (4,)), "cycles")
    assert caught.value.hint == "supported there: w4 a8, w8 a8"


@pytest.mark.parametrize(
    ("weights", "activations"), [([[8, 8]], [[8, 8]]), ([8, 8, 8], [8, 8, 8]), ([[8] * 3], [[8] * 2])]
)
def test_totals_refuse_other_shapes(weights: list[list[int]], activations: list[list[int]]) -> None:
    with pytest.raises(DeviceError, match=r"\[B, 3\]"):
        numbered().totals(weights, activations, "cycles")


def test_an_unknown_metric_gets_a_hint() -> None:
    with pytest.raises(DeviceError, match="latency_s"):
        numbered().metric("latency")


def test_arrays_are_private_and_read_only() -> None:
    supported = np.ones((1, 9, 9), dtype=bool)
    cost = np.ones((len(METRICS), 1, 9, 9))
    table = CostTable("toy", cost, supported, ("one",))
    cost[:] = 5
    assert table.metric("cycles").max() == 1
    for array in (table.cost, table.supported, table.constant, table.metric("cycles")):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_inconsistent_tables_are_refused() -> None:
    supported, cost = np.ones((1, 9, 9), dtype=bool), np.ones((len(METRICS), 1, 9, 9))
    with pytest.raises(DeviceError, match="shape"):
        CostTable("toy", cost[:-1], supported, ("one",))
    with pytest.raises(DeviceError, match="NaN"):
        CostTable("toy", np.where(np.arange(9) == 3, np.nan, cost), supported, ("one",))
    with pytest.raises(DeviceError, match="constants finite"):
        CostTable("toy", cost, supported, ("one",), np.full(len(METRICS), np.inf))
