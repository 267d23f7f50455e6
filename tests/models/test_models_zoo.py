"""Networks as people have them: torchvision's, and some that torchvision lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import nets
import pytest
import torch
import torch.nn.functional as F
from factories import Block, CifarResNet, cifar_resnet20
from graph_laws import check_graph
from torch import nn

from qsearch.models import QuantGraph, build_graph, describe_graph
from qsearch.models.torchvision_compat import import_torchvision


def trained(network: nn.Module, x: torch.Tensor) -> nn.Module:
    """Gives batch norms the statistics of some images, by forward passes in training mode."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5
        elif isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.eval()
    with torch.no_grad():
        for _ in range(3):
            network(x)
    return network.eval()


def torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network: nn.Module = import_torchvision().models.get_model(name, weights=None, num_classes=10, **extra)
        return network

    return make


def narrow_vgg(batch_norm: bool) -> nn.Module:
    """VGG-11 with a classifier of torchvision's form but of few weights."""
    vgg = import_torchvision().models.vgg
    with torch.device("meta"):
        network: nn.Module = vgg.VGG(nn.Identity(), num_classes=10, init_weights=False)
    network.features = vgg.make_layers(vgg.cfgs["A"], batch_norm)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier[0], network.classifier[3] = nn.Linear(512, 64), nn.Linear(64, 32)
    network.classifier[6] = nn.Linear(32, 10)
    return network


def mobilenet_v1() -> nn.Module:
    """Depthwise and pointwise convolutions in plain nn.Sequential blocks (Howard et al. 2017), a third of its depth."""

    def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    blocks = (separable(16, 32, 1), separable(32, 64, 2), separable(64, 64, 1), separable(64, 128, 2))
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class PreActivationBlock(nn.Module):
    """BN, ReLU, convolution, twice; a projection reads the activated input (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if self.project is None else self.project(y)
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        y += shortcut
        return y


class PreActivationResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(PreActivationBlock(a, b, s) for a, b, s in ((8, 8, 1), (8, 16, 2), (16, 16, 1))))
        self.bn, self.head = nn.BatchNorm2d(16), nets.Head(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.bn(self.blocks(self.stem(x)))))


class Inception(nn.Module):
    """Four branches of different depth, written in one forward and concatenated."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.two_a, self.two_b = (nn.Conv2d(c, 4, 1) for c in (inputs, inputs, 4))
        self.three_a, self.three_b, self.three_c = (nn.Conv2d(c, 4, 3, padding=1) for c in (inputs, 4, 4))
        self.pooled = nn.Conv2d(inputs, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        two = F.relu(self.two_b(F.relu(self.two_a(x))))
        three = F.relu(self.three_c(F.relu(self.three_b(F.relu(self.three_a(x))))))
        pooled = F.relu(self.pooled(F.max_pool2d(x, 3, stride=1, padding=1)))
        return torch.cat([F.relu(self.one(x)), two, three, pooled], 1)


def inception() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Inception(8), Inception(16), nets.Head(16))


class Found(NamedTuple):
    """What a network consists of; ``units`` counts them by their number of layers."""

    layers: int
    tensors: int
    unsigned: int
    units: dict[int, int]
    notes: int = 0


def found(graph: QuantGraph) -> Found:
    units = Counter(len(unit.layers) for unit in graph.units)
    unsigned = sum(tensor.unsigned for tensor in graph.tensors)
    return Found(len(graph.layers), len(graph.tensors), unsigned, dict(units), len(graph.notes))


#: Factory, side of the image, and what is found. A summand of ResNet is stored once, in the sum; of a squeeze-excite
#: the gate and the gated value are both stored.
ZOO: dict[str, tuple[Callable[[], nn.Module], int, Found]] = {
    "resnet18": (torchvision("resnet18"), 32, Found(21, 18, 17, {1: 2, 2: 5, 3: 3})),
    "resnet50": (torchvision("resnet50"), 32, Found(54, 50, 49, {1: 2, 3: 12, 4: 4})),
    "mobilenet_v2": (torchvision("mobilenet_v2"), 32, Found(53, 53, 35, {1: 3, 2: 1, 3: 16})),
    "mobilenet_v3_small": (torchvision("mobilenet_v3_small"), 32, Found(54, 54, 15, {1: 4, 3: 2, 4: 1, 5: 8})),
    "mobilenet_v3_large": (torchvision("mobilenet_v3_large"), 32, Found(64, 64, 22, {1: 4, 2: 1, 3: 6, 5: 8})),
    "regnet_x_400mf": (torchvision("regnet_x_400mf"), 32, Found(72, 68, 67, {1: 2, 3: 18, 4: 4})),
    "regnet_y_400mf": (torchvision("regnet_y_400mf"), 32, Found(86, 82, 81, {1: 2, 5: 12, 6: 4})),
    "mnasnet0_5": (torchvision("mnasnet0_5"), 32, Found(53, 53, 35, {1: 5, 3: 16})),
    "vgg11": (lambda: narrow_vgg(False), 32, Found(11, 11, 10, {1: 11})),
    "vgg11_bn": (lambda: narrow_vgg(True), 32, Found(11, 11, 10, {1: 11})),
    "squeezenet1_1": (torchvision("squeezenet1_1"), 48, Found(26, 18, 17, {1: 2, 3: 8})),
    "efficientnet_b0": (torchvision("efficientnet_b0"), 32, Found(82, 82, 0, {1: 3, 4: 1, 5: 15})),
    "shufflenet_v2_x0_5": (torchvision("shufflenet_v2_x0_5"), 32, Found(57, 54, 34, {1: 3, 2: 3, 3: 16})),
    "densenet121": (torchvision("densenet121"), 32, Found(121, 121, 120, {1: 5, 2: 58}, notes=62)),
    "googlenet": (torchvision("googlenet"), 32, Found(58, 31, 30, {1: 22, 2: 18}, notes=2)),
    "mobilenet_v1": (mobilenet_v1, 32, Found(10, 10, 9, {1: 2, 2: 4})),
    "cifar_resnet20": (lambda: CifarResNet(3), 16, Found(20, 20, 19, {1: 2, 2: 9})),
    "pre_activation": (PreActivationResNet, 16, Found(9, 8, 7, {1: 2, 2: 2, 3: 1}, notes=4)),
    "inception": (inception, 16, Found(16, 10, 9, {1: 16})),
}


@pytest.mark.parametrize("name", ZOO)
def test_network(name: str) -> None:
    factory, size, expected = ZOO[name]
    torch.manual_seed(0)
    network = trained(factory(), nets.images(8, size=size))
    graph = build_graph(network, nets.images(2, size=size))
    assert found(graph) == expected
    check_graph(graph, network, nets.images(4, size=size, seed=1))
    assert describe_graph(graph)["digest"] == graph.digest


def test_cifar_resnet20_with_its_real_weights(shared_data: object) -> None:
    network = cifar_resnet20()
    x = nets.images(4, size=32)
    graph = build_graph(network, x[:2])
    check_graph(graph, network, x)
    assert [unit.name for unit in graph.units] == [
        "conv1", *(f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)), "linear",
    ]  # fmt: skip


def units_of(name: str) -> dict[str, list[str]]:
    factory, size, _ = ZOO[name]
    report = describe_graph(build_graph(factory().eval(), nets.images(2, size=size)))
    return {unit["name"]: unit["layers"] for unit in report["units"]}


def test_blocks_of_mobilenet_v2_are_units_with_and_without_skip() -> None:
    units = units_of("mobilenet_v2")
    for block in range(2, 18):
        convs = [f"features.{block}.conv.{i}" for i in ("0.0", "1.0", "2")]
        assert units[f"features.{block}.conv"] == convs
    assert units["features.1.conv"] == ["features.1.conv.0.0", "features.1.conv.1"]
    assert [name for name, layers in units.items() if len(layers) == 1] == [
        "features.0.0", "features.18.0", "classifier.1",
    ]  # fmt: skip


def test_a_squeeze_excite_stays_in_its_block() -> None:
    units = units_of("mobilenet_v3_small")
    squeezed = [layers for layers in units.values() if any(".fc1" in layer for layer in layers)]
    assert len(squeezed) == 9
    for layers in squeezed:
        assert any(".fc2" in layer for layer in layers)
        assert len(layers) >= 4


def test_layers_of_densenet_and_branches_of_inception_are_units() -> None:
    units = units_of("densenet121")
    assert units["features.denseblock2.denselayer7"] == [
        "features.denseblock2.denselayer7.conv1", "features.denseblock2.denselayer7.conv2",
    ]  # fmt: skip
    assert units["features.transition1.conv"] == ["features.transition1.conv"]
    units = units_of("googlenet")
    assert units["inception4b.branch2"] == ["inception4b.branch2.0.conv", "inception4b.branch2.1.conv"]


def test_blocks_of_cifar_resnets_share_their_class_but_nothing_else() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), Block(8, 8, 1), Block(8, 16, 2), nets.Head(16))
    graph = build_graph(trained(network, nets.images(8, size=16)), nets.images(2, size=16))
    assert [unit.name for unit in graph.units] == ["0", "1", "2", "3.fc"]
