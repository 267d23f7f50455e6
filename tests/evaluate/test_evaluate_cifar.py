"""A user's own network and data: the pretrained ResNet-20 on CIFAR-10 (skipped where the files are absent)."""

from __future__ import annotations

from pathlib import Path

import factories
import pytest
import torch

from qsearch.data import load_datasets
from qsearch.errors import DataError, ModelError
from qsearch.evaluate import Target, build_target
from qsearch.evaluate.artifacts import ArtifactCache
from qsearch.evaluate.brecq import BRECQEvaluator
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.models import load_network
from qsearch.spec import DataSpec, ModelSpec
from qsearch.types import BitConfig


@pytest.fixture(scope="module")
def target(shared_data: Path) -> Target:
    model = ModelSpec(source="factories:cifar_resnet20")
    data = DataSpec(source="factories:cifar10", calibration=128, arguments={"validation": 1000, "test": 1000})
    return build_target(model, data)


def config(weights: int, activations: int = 8) -> BitConfig:
    """First and last layer at 8 bits."""
    return BitConfig((8, *[weights] * 18, 8), (8, *[activations] * 18, 8))


def test_graph(target: Target) -> None:
    graph = target.graph
    assert graph.notes == ()
    assert graph.float_parameters == 0
    assert (len(graph.layers), graph.classes, graph.input_shape) == (20, 10, (3, 32, 32))
    assert sum(layer.weight_count for layer in graph.layers) == 268_336
    assert sum(layer.macs for layer in graph.layers) == pytest.approx(40.55e6, rel=1e-3)
    assert [(unit.name, unit.layers) for unit in graph.units] == [
        ("conv1", (0,)),
        *((f"layer{s}.{b}", (6 * (s - 1) + 2 * b + 1, 6 * (s - 1) + 2 * b + 2)) for s in (1, 2, 3) for b in range(3)),
        ("linear", (19,)),
    ]
    # Every layer reads a tensor of its own: shortcuts without parameters read what the block's first layer reads.
    assert len(graph.tensors) == 20
    assert {tensor.group for tensor in graph.tensors} == set(range(20))
    assert [tensor.unsigned for tensor in graph.tensors] == [False] + [True] * 19


def test_ties_through_the_additions(shared_data: Path, target: Target) -> None:
    from qsearch.models import build_graph

    graph = build_graph(factories.cifar_resnet20(), target.splits["test"].images[:2], "both_inputs")
    groups = [graph.tensors[layer.tensor].group for layer in graph.layers]
    # The raw output of a block's second layer is tied to the block's input, which the first layer reads; every sum
    # is a tensor of its own. That makes nine more tensors and no fewer groups.
    assert len(graph.tensors) == 29
    assert len(set(groups)) == 20
    by_node = {tensor.node: tensor.group for tensor in graph.tensors}
    for unit in graph.units[1:-1]:
        assert by_node[graph.layer_nodes[unit.layers[1]]] == groups[unit.layers[0]]


def test_data(shared_data: Path) -> None:
    data = load_datasets("factories:cifar10", {"calibration": 100, "validation": 50, "test": 200})
    for name, count in (("calibration", 100), ("validation", 50), ("test", 200)):
        images, labels = data[name].tensors
        assert images.shape == (count, 3, 32, 32)
        assert labels.bincount().tolist() == [count // 10] * 10
    with pytest.raises(DataError, match="there are 10000"):
        load_datasets("factories:cifar10", {"validation": 5001, "test": 5000})


def test_8_bits_cost_nothing_and_2_bits_little(target: Target) -> None:
    """ptq on 128 calibration images; 32 bits of activations are float."""
    ptq = PTQEvaluator(target, {}, torch.device("cpu"), 0)
    exact = ptq.evaluate_float("test")
    assert exact.accuracy == pytest.approx(91.7, abs=1.5)
    # On 1,000 images a handful of borderline ones is half a point; the slow test below looks at all of them.
    assert abs(ptq.evaluate(config(8), "test").correct - exact.correct) <= 8
    assert ptq.evaluate(config(2, 32), "test").accuracy > 85
    assert ptq.evaluate(config(3, 8), "test").accuracy > exact.accuracy - 2.5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_published_accuracy_on_all_test_images(shared_data: Path) -> None:
    """91.73 % (published), and 8 bits stay within 0.3 points of it on all 10,000 images."""
    data = DataSpec(source="factories:cifar10", calibration=256, arguments={"validation": 5000, "test": 5000})
    whole = build_target(ModelSpec(source="factories:cifar_resnet20"), data)
    ptq = PTQEvaluator(whole, {}, torch.device("cpu"), 0)
    exact = [ptq.evaluate_float(split) for split in ("validation", "test")]
    assert sum(score.correct for score in exact) == 9173
    quantized = [ptq.evaluate(config(8), split) for split in ("validation", "test")]
    assert abs(sum(score.correct for score in quantized) - 9173) <= 30


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.timeout(900)
def test_every_tier_at_few_bits(shared_data: Path, tmp_path: Path) -> None:
    """1,024 calibration images, as published; all 10,000 test images have a standard error of 0.3 points."""
    data = DataSpec(source="factories:cifar10", calibration=1024, arguments={"validation": 5000, "test": 5000})
    target = build_target(ModelSpec(source="factories:cifar_resnet20"), data)
    cache = ArtifactCache(tmp_path)

    def accuracy(evaluator: PTQEvaluator, chosen: BitConfig) -> float:
        return sum(evaluator.evaluate(chosen, split).accuracy for split in ("validation", "test")) / 2

    ptq = PTQEvaluator(target, {}, torch.device("cpu"), 0, cache)
    assert accuracy(ptq, config(3, 32)) > 90.5
    assert accuracy(ptq, config(2, 32)) > 88.0
    for preset in ("bank", "fast"):
        brecq = BRECQEvaluator(target, {"preset": preset}, torch.device("cpu"), 0, cache)
        assert accuracy(brecq, config(2, 32)) > 88.8
        assert brecq.prepare(config(2, 32)).error < ptq.prepare(config(2, 32)).error


def test_absent_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSEARCH_SHARED_DATA", str(tmp_path))
    with pytest.raises(ModelError, match=r"resnet20_cifar10\.pt does not exist; set QSEARCH_SHARED_DATA"):
        load_network("factories:cifar_resnet20", None, {}, {})
    with pytest.raises(DataError, match=r"cifar10_train_0\.npz does not exist"):
        load_datasets("factories:cifar10", {})


def test_architecture_without_weights() -> None:
    network = factories.CifarResNet(3)
    assert sum(p.numel() for p in network.parameters()) == 269_722
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
