"""Cross-layer equalization: the function stays, ranges become equal, and what cannot be equalized is left alone."""

from __future__ import annotations

import pickle

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qsearch.models import QuantGraph, build_graph
from qsearch.models.graph import graph_digest
from qsearch.quant.equalize import equalize
from qsearch.quant.grids import search_weight_grid
from qsearch.quant.schemes import WeightScheme


class Separable(nn.Module):
    """Pointwise, depthwise, pointwise and a classifier: a chain of three overlapping pairs, and one through flatten."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU, flatten: bool = False) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 6, 1)
        self.first, self.second, self.third = activation(), activation(), activation()
        self.pool = nn.AvgPool2d(4) if flatten else nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(24 if flatten else 6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.expand(x))
        x = self.third(self.project(self.second(self.depthwise(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


class Grouped(nn.Module):
    """Grouped and multiplying depthwise convolutions, functional ReLUs, a max-pooling, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 12, 3, groups=4)
        self.c = nn.Conv2d(12, 24, 1, groups=12, bias=False)
        self.fc1, self.fc2 = nn.Linear(24, 7), nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        x = torch.relu(self.c(F.leaky_relu(self.b(x), 0.1)))
        return self.fc2(self.fc1(x.mean([2, 3])).relu())


def spread(network: nn.Module, seed: int = 0) -> nn.Module:
    """Gives the output channels of every layer ranges that differ by orders of magnitude."""
    nets.randomize(network, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                factor = 10 ** (2 * torch.rand(len(module.weight), generator=generator) - 1)
                module.weight.mul_(factor.view(-1, *([1] * (module.weight.dim() - 1))))
    return network


def traced(network: nn.Module) -> QuantGraph:
    return build_graph(spread(network), nets.images(2))


def pairs_of(graph: QuantGraph) -> str:
    return next(note for note in graph.notes if note.startswith("cross-layer equalization"))


@pytest.mark.parametrize(
    ("network", "pairs"),
    [
        (Separable(), 3),
        (Separable(nn.LeakyReLU), 3),
        (Separable(nn.Identity, flatten=True), 3),
        (Grouped(), 4),
        (nets.Residual(), 2),  # only within the blocks: what a residual add reads has other readers
    ],
)
def test_the_float_network_stays_the_same(network: nn.Module, pairs: int) -> None:
    graph = traced(network)
    before = graph_digest(graph.module)
    equal = equalize(graph)
    assert graph_digest(graph.module) == graph.digest == before, "the graph that was given is not changed"
    assert pairs_of(equal) == f"cross-layer equalization: {pairs} pairs of layers"
    assert equal.digest != graph.digest
    assert equal.digest == graph_digest(equal.module)
    x = nets.images(16, seed=1)
    with torch.no_grad():
        expected, found = graph.module(x), equal.module(x)
    assert (expected - found).abs().max() <= 1e-4 * expected.abs().max()
    assert (equal.layers, equal.tensors, equal.units) == (graph.layers, graph.tensors, graph.units)


@pytest.mark.parametrize("flatten", [False, True])
def test_ranges_of_a_pair_become_equal(flatten: bool) -> None:
    """DFQ, eq. 11: after it, output channel i of the first and input channel i of the second have one range."""
    equal = equalize(traced(Separable(flatten=flatten)), iterations=200)
    expand, depthwise, project, fc = (equal.layer_module(i).weight.detach().abs() for i in range(4))
    torch.testing.assert_close(expand.amax((1, 2, 3)), depthwise.amax((1, 2, 3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(depthwise.amax((1, 2, 3)), project.amax((0, 2, 3)), rtol=1e-3, atol=0)
    inputs = fc.view(5, 6, -1).amax((0, 2))
    torch.testing.assert_close(project.amax((1, 2, 3)), inputs, rtol=1e-3, atol=0)


def test_one_pair_by_hand() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[16.0, -8.0], [0.5, 1.0]]))
        network[1].bias.copy_(torch.tensor([4.0, 3.0]))
        network[3].weight.copy_(torch.tensor([[1.0, -9.0]]))
    graph = build_graph(network, torch.ones(2, 1, 1, 2))
    equal = equalize(graph)
    # s = sqrt(16 * 1) / 1 = 4 and sqrt(1 * 9) / 9 = 1 / 3
    first, second = equal.layer_module(0), equal.layer_module(1)
    torch.testing.assert_close(first.weight.detach(), torch.tensor([[4.0, -2.0], [1.5, 3.0]]))
    torch.testing.assert_close(first.bias.detach(), torch.tensor([1.0, 9.0]))
    torch.testing.assert_close(second.weight.detach(), torch.tensor([[4.0, -3.0]]))


def test_per_tensor_quantization_gains() -> None:
    """What equalization is for (DFQ, table 1): one scale for a layer whose channels differ."""
    network = nets.randomize(Separable())
    factor = torch.logspace(-1.5, 1.5, 8)
    with torch.no_grad():  # the same function as before, with ranges that no single scale fits
        network.expand.weight.mul_(factor.view(-1, 1, 1, 1))
        network.expand.bias.mul_(factor)
        network.depthwise.weight.div_(factor.view(-1, 1, 1, 1))
    graph = build_graph(network, nets.images(2))
    x = nets.images(64, seed=2)

    def damage(graph: QuantGraph) -> float:
        module = pickle.loads(pickle.dumps(graph)).module
        expected = graph.module(x)
        with torch.no_grad():
            for layer in graph.layers:
                weight = module.get_submodule(layer.name).weight
                weight.copy_(search_weight_grid(weight, 6, WeightScheme(granularity="tensor")).quantize(weight))
            return float((module(x) - expected).square().mean() / expected.square().mean())

    assert damage(equalize(graph)) < 0.1 * damage(graph)


def test_relu6_is_left_alone_and_named() -> None:
    graph = traced(Separable(nn.ReLU6))
    equal = equalize(graph)
    assert pairs_of(equal).endswith(": 0 pairs of layers")
    assert [note for note in equal.notes if "ReLU6" in note] == [
        f"'{name}' (ReLU6) is not positive-homogeneous: no equalization across it"
        for name in ("first", "second", "third")
    ]
    for index in range(len(graph.layers)):
        assert torch.equal(graph.layer_module(index).weight, equal.layer_module(index).weight)
    assert equal.digest == graph.digest


@pytest.mark.parametrize(
    "function",
    [
        torch.sigmoid,
        F.relu6,
        lambda x: x + 1.0,
        lambda x: F.relu(x) + x,  # two readers
        lambda x: x[:, [1, 0, 3, 2]],  # channels change places
        lambda x: torch.cat([x, x], 1)[:, :4],
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:5],  # channels shift
    ],
)
def test_other_functions_are_not_crossed(function) -> None:  # type: ignore[no-untyped-def]
    graph = traced(nets.Lambda(function))
    equal = equalize(graph)
    assert torch.equal(graph.layer_module(0).weight, equal.layer_module(0).weight)
    x = nets.images(8, seed=1)
    torch.testing.assert_close(graph.module(x), equal.module(x), rtol=1e-4, atol=1e-5)


def test_a_linear_layer_over_the_width_is_not_mistaken_for_one_over_channels() -> None:
    class OverWidth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.over = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
            self.head = nets.Head(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.over(F.relu(self.conv(x))))  # 8 channels, and 8 columns

    graph = traced(OverWidth())
    equal = equalize(graph)
    assert torch.equal(graph.layer_module(0).weight, equal.layer_module(0).weight)


def test_trap_13_dead_channels_stay() -> None:
    """A channel of zeros, or of next to nothing with a large bias, has no range to equalize."""
    network = spread(Separable())
    with torch.no_grad():
        network.expand.weight[0] = 0.0
        network.expand.weight[1] = 1e-20
        network.depthwise.weight[2] = 0.0
    graph = build_graph(network, nets.images(2))
    equal = equalize(graph)
    for index in range(4):
        layer = equal.layer_module(index)
        assert torch.isfinite(layer.weight).all()
        assert layer.bias is not None
        assert layer.bias.abs().max() < 1e3
    assert torch.equal(equal.layer_module(0).weight[:2], graph.layer_module(0).weight[:2])
    x = nets.images(8, seed=1)
    torch.testing.assert_close(graph.module(x), equal.module(x), rtol=1e-4, atol=1e-4)


def test_a_graph_that_travelled_is_equalized_alike() -> None:
    graph = traced(Separable())
    assert equalize(pickle.loads(pickle.dumps(graph))).digest == equalize(graph).digest


def test_rounds_are_counted() -> None:
    graph = traced(Separable())
    assert equalize(graph, iterations=0).digest == graph.digest
    assert equalize(graph, iterations=1).digest != equalize(graph, iterations=20).digest
    assert equalize(graph, iterations=500).digest == equalize(graph, iterations=1000).digest
