"""Reconstruction units: residual blocks are found, and every layer lies in exactly one unit."""

from __future__ import annotations

import nets
import pytest
import torch
from graph_laws import check_units
from torch import nn

from qsearch.models import QuantGraph, build_graph
from qsearch.models.digits_resnet import DigitsResNet
from qsearch.models.torchvision_compat import import_torchvision


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


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "regnet_y_400mf"])
def test_both_inputs_gives_every_tensor_a_width(name: str) -> None:
    network = import_torchvision().models.get_model(name, weights=None, num_classes=10)
    graph = build_graph(network, nets.images(2, size=32), "both_inputs")
    check_units(graph)
    read = {graph.tensors[layer.tensor].group for layer in graph.layers}
    assert {tensor.group for tensor in graph.tensors} <= read


class Inverted(nn.Module):
    """Expand, depthwise, optionally a squeeze-excite, project; no skip."""

    def __init__(self, squeeze: bool) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze = nn.ModuleList((nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1))) if squeeze else None
        self.project = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.expand(x))))
        if self.squeeze is not None:
            gate = torch.relu(self.squeeze[0](x.mean((2, 3), keepdim=True)))
            x = x * torch.sigmoid(self.squeeze[1](gate))
        return self.project(x)


class InALine(nn.Module):
    def __init__(self, *blocks: nn.Module, tail: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nets.Head(tail)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))))


@pytest.mark.parametrize("squeeze", [False, True])
def test_an_inverted_residual_without_skip_is_one_unit(squeeze: bool) -> None:
    graph = build_graph(InALine(Inverted(squeeze), Inverted(squeeze)), nets.images(2))
    check_units(graph)
    size = 5 if squeeze else 3
    assert summary(graph) == [
        ("stem", (0,)),
        ("blocks.0", tuple(range(1, 1 + size))),
        ("blocks.1", tuple(range(1 + size, 1 + 2 * size))),
        ("head.fc", (1 + 2 * size,)),
    ]


def chain(*sizes: int) -> nn.Sequential:
    layers = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(sum(sizes))]
    return nn.Sequential(*layers)


def test_a_module_of_five_layers_is_not_grouped() -> None:
    graph = build_graph(InALine(chain(4), chain(5), chain(2), chain(1)), nets.images(2))
    check_units(graph)
    assert [unit.layers for unit in graph.units] == [
        (0,), (1, 2, 3, 4), (5,), (6,), (7,), (8,), (9,), (10, 11), (12,), (13,),
    ]  # fmt: skip


def test_the_innermost_module_is_grouped_and_a_stage_of_them_is_not() -> None:
    graph = build_graph(InALine(nn.Sequential(chain(2), chain(2))), nets.images(2))
    assert summary(graph) == [("stem", (0,)), ("blocks.0.0", (1, 2)), ("blocks.0.1", (3, 4)), ("head.fc", (5,))]


def test_first_and_last_layer_stay_by_themselves() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
        nn.Flatten(),
        nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)),
    )
    graph = build_graph(network, nets.images(2))
    check_units(graph)
    assert [unit.layers for unit in graph.units] == [(0,), (1,), (2,), (3,)]


class Halves(nn.Module):
    """Each block changes one half of its channels, as in ShuffleNetV2; a split makes a tuple, which enters no unit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.head = nets.Head(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.relu(self.stem(x)).chunk(2, 1)
        return self.head(torch.relu(left + self.conv2(torch.relu(self.conv1(right)))))


def test_a_unit_is_entered_by_a_tensor_and_not_by_a_tuple() -> None:
    graph = build_graph(Halves(), nets.images(2))
    check_units(graph)
    assert [(unit.entry, unit.layers) for unit in graph.units[:2]] == [("x", (0,)), ("relu", (1, 2))]
