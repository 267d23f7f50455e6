"""Networks that nothing here was written for go through every tier as they come from torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from qsearch.data import Split
from qsearch.evaluate import Target, make_evaluator
from qsearch.models import build_graph
from qsearch.models.torchvision_compat import import_torchvision
from qsearch.types import BitConfig

TIERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ptq": ("ptq", {}),
    "bank": ("brecq", {"preset": "bank", "iterations": 3}),
    "fast": ("brecq", {"preset": "fast", "iterations": 3}),
    "paper": ("brecq", {"preset": "paper", "iterations": 3, "drop_prob": 0.5}),
}


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v2"])
def target(request: pytest.FixtureRequest) -> Target:
    torch.manual_seed(0)
    network: nn.Module = import_torchvision().models.get_model(request.param, weights=None, num_classes=10)
    images = torch.randn(96, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network.train()
    with torch.no_grad():
        for _ in range(3):  # running statistics that fit
            network(images[:32])
    network.eval()
    with torch.no_grad():
        labels = network(images).argmax(1)
    parts = {"calibration": slice(0, 32), "validation": slice(32, 64), "test": slice(64, 96)}
    splits = {name: Split(name, images[part], labels[part]) for name, part in parts.items()}
    graph = build_graph(network, images[:2])
    with torch.no_grad():
        expected, folded = network(images), graph.module(images)
    assert float((folded - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    return Target(graph, splits, 32)


def uniform(target: Target, weights: int, activations: int) -> BitConfig:
    inner = len(target.graph.layers) - 2
    return BitConfig((8, *[weights] * inner, 8), (8, *[activations] * inner, 8))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_tier(target: Target) -> None:
    fine, coarse = uniform(target, 8, 8), uniform(target, 4, 6)
    for tier, (fidelity, options) in TIERS.items():
        evaluator = make_evaluator(fidelity, target, options)
        exact = evaluator.evaluate_float("validation")  # type: ignore[attr-defined]
        assert exact.accuracy == 100.0, tier  # the labels are its own predictions
        assert evaluator.evaluate(fine, "validation").accuracy >= 90.0, tier
        judged = [evaluator.prepare(config).error for config in (fine, coarse)]  # type: ignore[attr-defined]
        assert 0.0 < judged[0] < 0.05, tier
        assert judged[0] < judged[1] < 0.9, tier
