"""The bit-serial overlay against hand-computed and published numbers."""

from __future__ import annotations

import pytest

from qsearch.hardware import METRICS, load_device
from qsearch.hardware.bismo import BismoDevice
from qsearch.types import LayerShape


def bismo(entry: object) -> BismoDevice:
    device = load_device(entry)  # type: ignore[arg-type]
    assert isinstance(device, BismoDevice)
    return device


# BISMO (TRETS 2019), PYNQ-Z1 build 8x256x8 at 200 MHz: 6.5 binary TOPS; resource model version 2 of its repository.
def test_published_peak_and_resources() -> None:
    device = bismo("bismo_edge")
    assert device.peak_binary_gops == pytest.approx(6553.6)
    assert device.effective_gops(4, 4) == pytest.approx(409.6)
    assert device.resources() == (29_678, 128)
    assert bismo({"preset": "bismo_edge", "buffers": {"weight_words": 2048}}).resources().bram == 8 * (8 + 16)


# Ultra96 build 10x256x10 at 300 MHz: 15.36 binary TOPS at less than 8 W, where the presets' energy comes from.
def test_energy_per_binary_operation_is_the_published_bound() -> None:
    ultra96 = bismo({"preset": "bismo_edge", "array": {"dm": 10, "dn": 10}, "freq_hz": 300_000_000})
    assert ultra96.peak_binary_gops == pytest.approx(15_360)
    watts = ultra96.peak_binary_gops * 1e9 * ultra96.description.energy.pj_per_binary_op * 1e-12
    assert watts == pytest.approx(8.0)


# 3x3 convolution, 128 to 128 channels, 28x28, w4a4 at 64 bit/cycle (the closed form of BISMO's runtime, by hand).
def test_edge_convolution_by_hand() -> None:
    layer = LayerShape("c", "conv", 128, 128, (3, 3), in_size=(28, 28), out_size=(28, 28))
    device = bismo("bismo_edge")
    table = device.build([layer])
    cost = dict(zip(METRICS, table.cost[:, 0, 3, 3], strict=True))
    assert device.place(layer).words * 256 == 1280  # the reduction of 1152 is padded
    assert cost["compute_cycles"] == 98 * 16 * 5 * 16 == 125_440
    activation_load, weight_load = 4 * 784 * 1280 // 64, 4 * 128 * 1280 // 64
    assert (activation_load, weight_load) == (62_720, 10_240)
    assert cost["dram_read_bits"] == 64 * (activation_load + weight_load)
    assert cost["cycles"] == 125_440
    assert cost["latency_s"] == pytest.approx(0.627e-3, abs=5e-7)
    assert cost["dram_write_bits"] == 784 * 128 * 32
    binary_ops = 125_440 * 2 * 8 * 256 * 8
    assert cost["e_core_j"] == pytest.approx(binary_ops * 8 / 15.36e12)
    assert cost["e_dram_j"] == pytest.approx((64 * 72_960 + 784 * 128 * 32) * 15e-12)
    # at one bit the activations' port is the bottleneck: 784 * 1280 / 64 against 98 * 16 * 5
    assert table.metric("cycles")[0, 0, 0] == 15_680
    assert table.metric("stall_cycles")[0, 0, 0] == 15_680 - 7_840


def test_depthwise_channels_share_a_word() -> None:
    layer = LayerShape("d", "conv", 192, 192, (3, 3), groups=192, in_size=(28, 28), out_size=(28, 28))
    device = bismo("bismo_cloud")
    at = device.place(layer)
    assert (at.channel_tiles, at.words, at.operand_words, at.weight_words) == (12, 1, 12, 192)
    cycles = device.build([layer]).metric("cycles")[0]
    # Bound by activation traffic: 192 / 16 words for each of 16 * 784 positions, whatever the weights' width.
    # Published (HAQ's table, this layer): 192 * (784 a + w - 1).
    for w in range(1, 9):
        for a in range(1, 9):
            assert cycles[w - 1, a - 1] == 12 * 16 * 784 * a
            assert cycles[w - 1, a - 1] == pytest.approx(192 * (784 * a + w - 1), rel=0.01)


def test_large_groups_run_one_after_another() -> None:
    layer = LayerShape("g", "conv", 256, 64, (3, 3), groups=4, in_size=(8, 8), out_size=(8, 8))
    at = bismo("bismo_edge").place(layer)  # Kd = 576 needs 3 words, N = 16 needs 2 column tiles
    assert (at.position_tiles, at.channel_tiles, at.words) == (8, 4 * 2, 3)
    assert (at.operand_words, at.weight_words) == (4 * 3, 64 * 3)


def test_wide_depthwise_kernels_do_not_overfill_a_word() -> None:
    layer = LayerShape("d", "conv", 32, 32, (7, 7), groups=32, in_size=(8, 8), out_size=(8, 8))
    at = bismo("bismo_edge").place(layer)  # 256 // 49 = 5 channels a word
    assert (at.channel_tiles, at.words, at.weight_words) == (7, 1, 35)


# HAQ's table, last layer (1280 to 1000, batch 16): 5000 cycles per weight bit, at most 21 more.
def test_fully_connected_is_bound_by_weights() -> None:
    cycles = bismo("bismo_cloud").build([LayerShape("fc", "linear", 1280, 1000)]).metric("cycles")[0]
    assert [cycles[w - 1, 7] for w in range(1, 9)] == [5000 * w for w in range(1, 9)]


def test_options_change_what_they_say() -> None:
    layer = LayerShape("c", "conv", 64, 96, in_size=(7, 7), out_size=(7, 7))

    def cycles(**dram: object) -> float:
        device = bismo({"preset": "bismo_cloud", "dram": dram})
        return float(device.build([layer]).metric("cycles")[0, 7, 0])

    assert cycles() == 8 * 96 * 16  # weights once per image
    assert cycles(refetch_conv_weights=False) == 8 * 6 * (49 + 15)  # once per batch: compute-bound, fill included
    assert cycles(result_bits_per_cycle=64) == 16 * 49 * 96 * 32 // 64
