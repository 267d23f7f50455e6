"""Reconstruction units: residual blocks are found, and every layer lies in exactly one unit."""

from __future__ import annotations

from itertools import pairwise

import nets
import pytest
import torch
from torch import nn

from qsearch.models import QuantGraph, build_graph
from qsearch.models.digits_resnet import DigitsResNet
from qsearch.models.torchvision_compat import import_torchvision


def check_units(graph: QuantGraph) -> None:
    """Laws of every division into units."""
    layers = [layer for unit in graph.units for layer in unit.layers]
    assert sorted(layers) == list(range(len(graph.layers)))
    order = {node.name: i for i, node in enumerate(graph.module.graph.nodes)}
    tensors = {tensor.node for tensor in graph.tensors}
    for unit in graph.units:
        assert [order[a] < order[b] for a, b in pairwise(unit.nodes)] == [True] * (len(unit.nodes) - 1)
        assert unit.exit == unit.nodes[-1]
        assert unit.entry not in unit.nodes
        nodes = {node.name: node for node in graph.module.graph.nodes}
        for name in unit.nodes:
            for source in nodes[name].all_input_nodes:  # one way in
                assert source.name in (*unit.nodes, unit.entry) or source.op == "get_attr", (unit, name)
            if name != unit.exit:  # one way out
                assert {user.name for user in nodes[name].users} <= set(unit.nodes), (unit, name)
        for layer in unit.layers:
            assert graph.layer_nodes[layer] in unit.nodes
        if unit.entry_tensor is not None:
            assert graph.tensors[unit.entry_tensor].node in tensors


def summary(graph: QuantGraph) -> list[tuple[str, tuple[int, ...]]]:
    return [(unit.name, unit.layers) for unit in graph.units]


def test_digits_resnet() -> None:
    graph = build_graph(DigitsResNet(), torch.zeros(2, 1, 8, 8))
    check_units(graph)
    assert summary(graph) == [
        ("stem.0", (0,)),
        ("block1", (1, 2)),
        ("block2", (3, 4, 5)),  # with the convolution of its shortcut
        ("block3", (6, 7)),
        ("block4", (8, 9)),
        ("classifier", (10,)),
    ]
    # The exit of a block is behind its last ReLU.
    assert [graph.units[i].exit for i in (1, 2)] == [graph.units[i + 1].entry for i in (1, 2)]


class PreActivation(nn.Module):
    """The block's input is normalised and rectified inside the block; the shortcut carries it raw."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.bn, self.relu = nn.BatchNorm2d(4), nn.ReLU()
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.conv2(torch.relu(self.conv1(self.relu(self.bn(x))))))


def test_pre_activation_block_is_entered_raw() -> None:
    graph = build_graph(PreActivation(), nets.images(2))
    check_units(graph)
    assert summary(graph) == [("stem", (0,)), ("conv1+conv2", (1, 2)), ("head.fc", (3,))]
    assert graph.units[1].entry == "stem"
    assert graph.units[1].entry_tensor is None  # the value that enters is not quantized, the ReLU's inside is


def test_a_block_knows_that_its_entry_is_quantized_for_others() -> None:
    graph = build_graph(nets.SharedEntry(), nets.images(2))
    check_units(graph)
    unit = next(unit for unit in graph.units if unit.name == "conv")
    assert unit.entry == "pool"
    assert unit.entry_tensor is not None
    assert graph.tensors[unit.entry_tensor].node == "relu"


class Nested(nn.Module):
    """An inner residual block inside an outer one: the smaller region wins, the rest is split into layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.head = nets.Head(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        z = torch.relu(y + self.c(torch.relu(self.b(y))))
        return self.head(torch.relu(x + self.d(z)))


def test_the_smaller_of_nested_blocks_wins() -> None:
    graph = build_graph(Nested(), nets.images(2))
    check_units(graph)
    assert summary(graph) == [("a", (0,)), ("b+c", (1, 2)), ("d", (3,)), ("head.fc", (4,))]


class Leaky(nn.Module):
    """The inside of the block is read from outside, so it cannot be reconstructed as one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.head = nets.Head(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.a(x))
        return self.head(torch.cat([x + self.b(inner), inner], 1))


def test_a_block_with_two_exits_is_split() -> None:
    graph = build_graph(Leaky(), nets.images(2))
    check_units(graph)
    assert summary(graph) == [("a", (0,)), ("b", (1,)), ("head.fc", (2,))]


class TwoInOne(nn.Module):
    """Two blocks written in one forward, with a constant and a sum with a parameter in between."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.offset = nn.Parameter(torch.ones(3))
        self.head = nets.Head(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x + self.convs[1](torch.relu(self.convs[0](x))))
        x = x + self.offset.view(1, 3, 1, 1)
        x = torch.relu(x + self.convs[3](torch.relu(self.convs[2](x) * self.offset.view(1, 3, 1, 1))))
        return self.head(x)


def test_blocks_are_found_in_one_forward() -> None:
    graph = build_graph(TwoInOne(), nets.images(2))
    assert summary(graph) == [("convs", (0, 1)), ("convs", (2, 3)), ("head.fc", (4,))]
    assert len({(unit.entry, unit.exit) for unit in graph.units}) == 3


def test_a_sum_with_a_parameter_is_no_residual_addition() -> None:
    graph = build_graph(TwoInOne(), nets.images(2), "both_inputs")
    assert not any("view" in tensor.node for tensor in graph.tensors)


#: name, side of the image, layers, units with more than one layer.
TORCHVISION = [
    ("resnet18", 32, 21, 8),
    ("mobilenet_v2", 32, 53, 10),
    ("mobilenet_v3_small", 32, 54, 6),
    ("shufflenet_v2_x0_5", 32, 57, 0),
    ("densenet121", 32, 121, 0),
    ("squeezenet1_0", 64, 26, 0),
    ("regnet_y_400mf", 32, 86, 16),
    ("efficientnet_b0", 32, 82, 9),
    ("googlenet", 64, 58, 0),
    ("convnext_tiny", 32, 59, 18),
]


@pytest.mark.parametrize(("name", "size", "layers", "blocks"), TORCHVISION, ids=[row[0] for row in TORCHVISION])
def test_torchvision_networks(name: str, size: int, layers: int, blocks: int) -> None:
    extra = {"init_weights": False} if name == "googlenet" else {}
    network = import_torchvision().models.get_model(name, weights=None, num_classes=10, **extra)
    graph = build_graph(network, nets.images(2, size=size))
    check_units(graph)
    assert (len(graph.layers), sum(len(unit.layers) > 1 for unit in graph.units)) == (layers, blocks)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "regnet_y_400mf"])
def test_both_inputs_gives_every_tensor_a_width(name: str) -> None:
    network = import_torchvision().models.get_model(name, weights=None, num_classes=10)
    graph = build_graph(network, nets.images(2, size=32), "both_inputs")
    check_units(graph)
    read = {graph.tensors[layer.tensor].group for layer in graph.layers}
    assert {tensor.group for tensor in graph.tensors} <= read
