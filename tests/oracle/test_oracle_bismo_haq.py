"""The BISMO cloud preset against HAQ's published lookup table (mit-han-lab/haq, MIT)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qsearch.hardware import load_device
from qsearch.types import BitConfig, LayerShape

#: MobileNetV2's inverted residuals (Sandler et al., CVPR 2018, table 2): expansion, channels, repeats, stride.
SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(size: int = 224, classes: int = 1000) -> list[LayerShape]:
    """The 53 layers of MobileNetV2 at width 1, in order."""
    layers: list[LayerShape] = []

    def conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int, side: int) -> int:
        out = -(-side // stride)
        name = f"{len(layers)}"
        shapes = ((kernel, kernel), (stride, stride), groups, (side, side), (out, out))
        layers.append(LayerShape(name, "conv", inputs, outputs, *shapes, tensor=len(layers)))
        return out

    side, channels = conv(3, 32, 3, 2, 1, size), 32
    for expansion, outputs, repeats, first_stride in SETTINGS:
        for repeat in range(repeats):
            hidden = expansion * channels
            if expansion > 1:
                conv(channels, hidden, 1, 1, 1, side)
            side = conv(hidden, hidden, 3, first_stride if repeat == 0 else 1, hidden, side)
            conv(hidden, outputs, 1, 1, 1, side)
            channels = outputs
    conv(channels, 1280, 1, 1, 1, side)
    layers.append(LayerShape(f"{len(layers)}", "linear", 1280, classes, tensor=len(layers)))
    return layers


@pytest.fixture(scope="module")
def published(shared_data: Path) -> NDArray[np.int64]:
    """Cycles per batch of 16 images, [layer, w - 1, a - 1]."""
    (file,) = (shared_data / "hardware" / "haq").glob("*.npy")
    table: NDArray[np.int64] = np.load(file, allow_pickle=False)
    assert table.shape == (53, 8, 8)
    return table


@pytest.fixture(scope="module")
def modelled() -> NDArray[np.float64]:
    """The preset's cycles on the same axes."""
    table = load_device("bismo_cloud").build(mobilenet_v2())
    assert table.provenance["batch"] == 16
    return table.metric("cycles")[:, :8, :8]


def test_mean_error_per_entry(published: NDArray[np.int64], modelled: NDArray[np.float64]) -> None:
    error = np.abs(modelled / published - 1)
    assert error.mean() <= 0.06
    assert np.median(error) <= 0.02
    assert error.max() <= 0.45  # small maps at one activation bit, where HAQ's generator adds its stages


@pytest.mark.parametrize("bits", [8, 4])
def test_uniform_networks(published: NDArray[np.int64], modelled: NDArray[np.float64], bits: int) -> None:
    ratio = modelled[:, bits - 1, bits - 1].sum() / published[:, bits - 1, bits - 1].sum()
    assert abs(ratio - 1) <= 0.02


def test_depthwise_rows(published: NDArray[np.int64], modelled: NDArray[np.float64]) -> None:
    """Depthwise layers of 28x28 and larger are bound by activation traffic, to 1 % of the published cycles."""
    rows = [1, 4, 7, 10, 13, 16]
    np.testing.assert_allclose(modelled[rows], published[rows], rtol=0.01)


def test_fully_connected_row(published: NDArray[np.int64], modelled: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(modelled[-1], published[-1], atol=21)


def test_ranking_of_mixed_networks(published: NDArray[np.int64]) -> None:
    """What a search needs: random candidates keep their order (rank correlation) and their latency (2.5 %)."""
    table = load_device("bismo_cloud").build(mobilenet_v2())
    rng = np.random.default_rng(0)
    weights, activations = rng.integers(2, 9, (2, 500, 53))
    ours = table.totals(weights, activations, "cycles")
    theirs = published[np.arange(53), weights - 1, activations - 1].sum(axis=1)
    assert np.abs(ours / theirs - 1).max() <= 0.025
    ranks = [np.argsort(np.argsort(values)) for values in (ours, theirs)]
    assert np.corrcoef(ranks)[0, 1] >= 0.99
    first = BitConfig(tuple(weights[0].tolist()), tuple(activations[0].tolist()))
    assert table.total(first, "latency_s") == pytest.approx(ours[0] / 200e6)
