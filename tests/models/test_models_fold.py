"""Batch-norm folding and the rewriting of in-place operations leave the network's function as it was."""

from __future__ import annotations

from collections.abc import Callable

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qsearch.errors import ModelError
from qsearch.models import build_graph


class ConvNorms(nn.Module):
    def __init__(self, bias: bool, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=bias)
        self.bn1 = nn.BatchNorm2d(4, eps=1e-2)
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1, groups=groups, bias=bias)
        self.bn2 = nn.BatchNorm2d(8, affine=False)
        self.fc1 = nn.Linear(8, 6, bias=bias)
        self.bn3 = nn.BatchNorm1d(6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x))).mean((2, 3))
        return self.fc2(self.bn3(self.fc1(x)).relu())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_folded_network_computes_the_same(bias: bool, groups: int) -> None:
    network, x = nets.randomize(ConvNorms(bias, groups)), nets.images(16)
    graph = build_graph(network, x[:2])
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(graph.module(x), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in graph.module.modules())
    assert [layer.has_bias for layer in graph.layers] == [True, True, True, True]
    assert graph.notes == ()


def test_folding_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0), nn.Flatten()).eval()
    with torch.no_grad():
        network[0].weight.fill_(3.0)
        network[1].running_mean.fill_(5.0)
        network[1].running_var.fill_(4.0)
        network[1].weight.fill_(0.5)
        network[1].bias.fill_(7.0)
    layer = build_graph(network, torch.ones(2, 1, 1, 1)).layer_module(0)
    assert layer.weight.item() == pytest.approx(3 * 0.5 / 2)
    assert layer.bias is not None
    assert layer.bias.item() == pytest.approx((0 - 5) * 0.5 / 2 + 7)


def test_two_batch_norms_in_a_row_are_both_folded() -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    network, x = nets.randomize(nn.Sequential(*layers)), nets.images(6)
    graph = build_graph(network, x[:2])
    with torch.no_grad():
        torch.testing.assert_close(graph.module(x), network(x), rtol=1e-4, atol=1e-4)
    assert graph.notes == ()


class Tokens(nn.Module):
    """A batch norm over tokens follows a linear layer: its channels are not the layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 5)
        self.norm = nn.BatchNorm1d(3)
        self.fc = nn.Linear(15, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.embed(x.mean(2))).flatten(1))


class Branching(nn.Module):
    """The convolution's output is read before and after the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.head(self.bn(y) * y)


class NormFirst(nn.Module):
    def __init__(self, track: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.live = nn.BatchNorm2d(4, track_running_stats=track)
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.live(self.conv(self.bn(x))))


@pytest.mark.parametrize(
    ("network", "kept"), [(Tokens(), ["norm"]), (Branching(), ["bn"]), (NormFirst(True), ["bn"])], ids=lambda v: str(v)
)
def test_batch_norm_that_cannot_be_folded_stays_and_is_noted(network: nn.Module, kept: list[str]) -> None:
    nets.randomize(network)
    x = nets.images(6)
    graph = build_graph(network, x[:2])
    with torch.no_grad():
        torch.testing.assert_close(graph.module(x), network(x), rtol=1e-4, atol=1e-4)
    assert [note.split()[0].strip("'") for note in graph.notes] == kept
    assert "no layer to fold into" in graph.notes[0]
    norm = network.get_submodule(kept[0])
    assert graph.float_parameters == sum(p.numel() for p in norm.parameters())


def test_batch_norm_without_statistics_is_not_folded() -> None:
    graph = build_graph(nets.randomize(NormFirst(track=False)), nets.images(4))
    assert any("'live'" in note for note in graph.notes)


def relu_method(x: torch.Tensor) -> torch.Tensor:
    x.relu_()  # the value that the method returns is not used
    return x


def relu_function(x: torch.Tensor) -> torch.Tensor:
    F.relu(x, inplace=True)
    return x * 2


def relu_underscore(x: torch.Tensor) -> torch.Tensor:
    torch.relu_(x)
    return x + 1


def chained(x: torch.Tensor) -> torch.Tensor:
    y = x.clamp_(-0.5, 0.5).add_(0.25)
    return x + y  # both names are the same tensor


class ReadAgain(nn.Module):
    """The input of an in-place module is read again: as x, it is non-negative by then."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(x)
        z = self.relu(y - 0.3)
        return x + z


@pytest.mark.parametrize("function", [relu_method, relu_function, relu_underscore, chained, ReadAgain()], ids=str)
def test_in_place_operations_keep_their_effect(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    network, x = nets.randomize(nets.Lambda(function)), nets.images(8)
    graph = build_graph(network, x[:2])
    with torch.no_grad():
        torch.testing.assert_close(graph.module(x), network(x.clone()), rtol=1e-4, atol=1e-4)
    for node in graph.module.graph.nodes:
        name = node.target if isinstance(node.target, str) else node.target.__name__
        assert not name.endswith("_"), node.format_node()
        assert node.kwargs.get("inplace") is not True, node.format_node()
    assert not any(getattr(m, "inplace", False) for m in graph.module.modules())
    if isinstance(function, ReadAgain):
        assert function.relu.inplace is True  # the user's own network is as it was


def alias(x: torch.Tensor) -> torch.Tensor:
    before = x
    x += 1  # changes what `before` sees; torch.fx records an ordinary sum
    return x + before


def view(x: torch.Tensor) -> torch.Tensor:
    x[:, :2].mul_(3)
    return x


def chance(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5, training=True)


@pytest.mark.parametrize("function", [alias, view, chance])
def test_what_tracing_gets_wrong_is_refused(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="does not compute what the network computes") as error:
        build_graph(nets.randomize(nets.Lambda(function)), nets.images(2))
    assert "out of place" in error.value.hint


def test_the_caller_keeps_his_network() -> None:
    network = nets.randomize(nets.Residual()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    build_graph(network, nets.images(2))
    assert network.training
    assert all(m.inplace for m in network.modules() if isinstance(m, nn.ReLU) and m is not network.stem[1])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_training_mode_is_left_before_tracing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(144, 2))
    nets.randomize(network)
    x = nets.images(4)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(build_graph(network.train(), x).module(x), expected, rtol=1e-4, atol=1e-4)


def test_parametrized_weights_become_plain() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    network = nn.Sequential(conv, nn.Flatten(), nn.Linear(144, 2)).eval()
    x = nets.images(4)
    graph = build_graph(network, x)
    assert graph.layers[0].weight_count == 3 * 4 * 9
    assert type(graph.layer_module(0)) is nn.Conv2d
    with torch.no_grad():
        torch.testing.assert_close(graph.layer_module(0).weight, conv.weight)
        torch.testing.assert_close(graph.module(x), network(x))


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.state = torch.ones(2, requires_grad=True) * 2  # not a leaf

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be copied"):
        build_graph(Uncopyable(), nets.images(2))
