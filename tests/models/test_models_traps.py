"""Traps of post-training quantization that lie in the graph; the numbers are those of the list of traps we keep."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
import torch.nn.functional as F
from graph_laws import check_graph, node_values
from torch import nn
from torch.nn.utils import parametrizations

from qsearch.models import QuantGraph, build_graph
from qsearch.models.torchvision_compat import import_torchvision


def graph_of(network: nn.Module, add_policy: str = "after_relu", size: int = 8) -> QuantGraph:
    nets.randomize(network)
    graph = build_graph(network, nets.images(2, size=size), add_policy)
    check_graph(graph, network, nets.images(8, size=size, seed=1))
    return graph


def stored(graph: QuantGraph) -> list[str]:
    return [tensor.node for tensor in graph.tensors]


def read_by(graph: QuantGraph, layer: str) -> str:
    return graph.tensors[next(one.tensor for one in graph.layers if one.name == layer)].node


@pytest.mark.parametrize("add_policy", ["after_relu", "both_inputs"])
def test_trap_01_what_an_addition_reads_and_makes(add_policy: str) -> None:
    graph = graph_of(nets.Residual(), add_policy)
    # The sum is stored behind its ReLU, under either policy; summands only where both inputs are asked for.
    assert read_by(graph, "wider.conv1") == "same_relu_1"
    summands = {"same_conv2", "wider_conv2", "wider_shortcut"}
    assert summands & set(stored(graph)) == (summands if add_policy == "both_inputs" else set())
    assert not {"add", "add_1"} & set(stored(graph))
    group = {tensor.node: tensor.group for tensor in graph.tensors}
    if add_policy == "both_inputs":  # the two inputs of an adder have one width, and may differ in sign
        assert group["same_conv2"] == group["stem_1"]
        assert group["wider_conv2"] == group["wider_shortcut"]
        unsigned = {tensor.node: tensor.unsigned for tensor in graph.tensors}
        assert (unsigned["same_conv2"], unsigned["stem_1"]) == (False, True)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_trap_02_a_shared_input_is_one_tensor(name: str) -> None:
    network = import_torchvision().models.get_model(name, weights=None, num_classes=10)
    graph = graph_of(network, size=32)
    first, second = {
        "resnet18": ("layer2.0.conv1", "layer2.0.downsample.0"),
        "shufflenet_v2_x0_5": ("stage2.0.branch1.0", "stage2.0.branch2.0"),
    }[name]
    assert read_by(graph, first) == read_by(graph, second)
    assert len(stored(graph)) == len(set(stored(graph)))
    assert {layer.tensor for layer in graph.layers} == set(range(len(graph.tensors)))


def test_trap_02_halves_of_a_split_are_one_tensor() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
            self.head = nets.Head(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = torch.split(torch.relu(self.stem(x)), 2, dim=1)
            return self.head(self.a(left) * self.b(right))

    graph = graph_of(Split())
    assert read_by(graph, "a") == read_by(graph, "b") == "relu"
    assert graph.tensors[graph.layers[1].tensor].unsigned


class Joined(nn.Module):
    """A concatenation whose parts are also read alone; grid-preserving operations stand around it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.alone, self.twin, self.join = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(8, 2, 1)
        self.fc = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = F.max_pool2d(torch.relu(self.left(x)), 2), F.max_pool2d(torch.relu(self.right(x)), 2)
        joined = self.join(F.pad(torch.cat([left, right], 1), (1, 1, 1, 1))[:, :, 1:-1, 1:-1])
        total = joined + self.alone(left) + self.twin(right)
        return self.fc(F.avg_pool2d(F.relu(total), 4).flatten(1))


def test_trap_03_parts_of_a_concatenation_share_a_width() -> None:
    graph = graph_of(Joined())
    group = {tensor.node: tensor.group for tensor in graph.tensors}
    assert (read_by(graph, "alone"), read_by(graph, "twin")) == ("relu", "relu_1")
    assert group["relu"] == group["relu_1"]
    assert read_by(graph, "join") == "cat"


def test_trap_03_grid_preserving_operations_make_no_tensor_and_averages_do() -> None:
    graph = graph_of(Joined())
    # Not the poolings, the padding, the slice, the flattening; the average is off the grid of what it averages.
    assert stored(graph) == ["x", "relu", "relu_1", "cat", "avg_pool2d"]
    values = node_values(graph, nets.images(4))
    assert set(values["max_pool2d"].unique().tolist()) <= set(values["relu"].unique().tolist())
    assert not set(values["avg_pool2d"].unique().tolist()) <= set(values["relu_2"].unique().tolist())


class Styles(nn.Module):
    """Every way to write a ReLU: a module used again and again, in place, functional, a method, behind `+=`."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(6))
        self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6()
        self.head = nets.Head(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norms[0](self.convs[0](x)))
        y = F.relu(self.norms[1](self.convs[1](x)), inplace=True)
        y = self.norms[2](self.convs[2](y)).relu_()
        y = self.relu6(self.norms[3](self.convs[3](y)))
        y = self.norms[4](self.convs[4](y))
        y += x
        y = self.relu(y)
        return self.head(torch.relu_(self.norms[5](self.convs[5](y))))


def test_trap_04_tensors_lie_behind_the_relu_however_it_is_written() -> None:
    network = Styles()
    graph = graph_of(network)
    assert not graph.notes
    assert [read_by(graph, f"convs.{i}") for i in range(6)] == ["x", "relu", "relu_1", "relu_", "relu6", "relu_2"]
    assert [tensor.unsigned for tensor in graph.tensors] == [False, *[True] * 6]
    assert float(node_values(graph, nets.images(8) * 100)["relu6"].max()) == 6


def test_trap_08_folding_uses_running_statistics_and_changes_none() -> None:
    network = Styles()
    nets.randomize(network)
    network.norms[2].eps = 0.1
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    with torch.no_grad():
        graph = build_graph(network, nets.images(2))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training
    assert not any(module.training for module in graph.module.modules())
    check_graph(graph, network.eval(), nets.images(8, seed=1))
    norm, conv = network.norms[2], network.convs[2]
    scale = norm.weight / torch.sqrt(norm.running_var + 0.1)
    folded = graph.layer_module([layer.name for layer in graph.layers].index("convs.2"))
    torch.testing.assert_close(folded.weight, conv.weight * scale.reshape(-1, 1, 1, 1))


class NormAfter(nn.Module):
    """Batch norms after a concatenation, an addition and a pooling, none of which can take it in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(6, 3, 1)
        self.norms = nn.ModuleList((nn.BatchNorm2d(6), nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
        self.drop, self.head = nn.Dropout(0.9), nets.Head(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        x = self.c(torch.relu(self.norms[0](torch.cat([a, self.b(x)], 1))))
        x = self.norms[1](x + a)
        return self.head(self.drop(self.norms[2](F.avg_pool2d(x, 2))))


def test_trap_08_a_norm_after_a_join_stays_and_dropout_is_off() -> None:
    network = NormAfter()
    graph = graph_of(network)
    assert graph.notes == tuple(
        f"'norms.{i}' is a BatchNorm2d: kept float (batch norm with no layer to fold into)" for i in range(3)
    )
    x = nets.images(4)
    with torch.no_grad():
        assert torch.equal(graph.module(x), graph.module(x))


class Awkward(nn.Module):
    """Tied, normalised, transposed and grouped convolutions, each with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.b.weight = self.a.weight
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.wide = nn.Conv2d(6, 12, 3, groups=3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (4, 4, 4, 6, 12))
        self.head = nets.Head(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip((self.stem, self.a, self.b, self.up, self.wide), self.norms, strict=True):
            x = torch.relu(norm(layer(x)))
        return self.head(x)


def test_trap_19_shared_normalised_transposed_and_grouped_weights() -> None:
    network = Awkward()
    graph = graph_of(network)
    assert [(layer.name, layer.groups, layer.reduction) for layer in graph.layers] == [
        ("stem", 1, 27), ("a", 2, 18), ("b", 2, 18), ("wide", 3, 18), ("head.fc", 1, 12),
    ]  # fmt: skip
    assert graph.notes == (
        "'up' is a ConvTranspose2d: kept float",
        "'norms.3' is a BatchNorm2d: kept float (batch norm with no layer to fold into)",
        "'b' shares its weight with 'a': quantized and stored apart from it",
    )
    copied = copy.deepcopy(graph)
    x = nets.images(4)
    with torch.no_grad():
        assert torch.equal(copied.module(x), graph.module(x))
        # What is written into one layer of a copy reaches neither its twin nor the original.
        twin, original = copied.layer_module(2).weight.clone(), graph.layer_module(1).weight.clone()
        copied.layer_module(1).weight.zero_()
    assert torch.equal(copied.layer_module(2).weight, twin)
    assert torch.equal(graph.layer_module(1).weight, original)
    assert network.a.weight is network.b.weight
