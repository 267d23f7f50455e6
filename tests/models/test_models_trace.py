"""Networks that cannot be searched are refused with an error that says where and why."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import nn

from qsearch.errors import ModelError
from qsearch.models import build_graph


class Branchy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.mean() > 0 else x


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stages = nn.Sequential(nn.ReLU(), nn.Sequential(Branchy()))
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)))


def test_control_flow_names_the_innermost_module() -> None:
    with pytest.raises(ModelError, match=r"module 'stages\.1\.0' \(Branchy\)") as error:
        build_graph(Outer(), nets.images(2))
    assert "control flow" in error.value.hint


def test_control_flow_at_the_top() -> None:
    with pytest.raises(ModelError, match=r"its top-level forward \(Branchy\)"):
        build_graph(Branchy(), nets.images(2, channels=4))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.fc((x + y).mean((2, 3)))


class Optional(Two):
    def forward(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return self.fc(x.mean((2, 3)) * scale)


class NoInput(Two):
    def forward(self) -> torch.Tensor:
        return self.fc(torch.ones(1, 3))


@pytest.mark.parametrize(("network", "count"), [(Two(), 2), (NoInput(), 0)])
def test_networks_without_exactly_one_input_are_refused(network: nn.Module, count: int) -> None:
    with pytest.raises(ModelError, match=f"takes {count} inputs"):
        build_graph(network, nets.images(2))


def test_an_input_with_a_default_is_no_second_input() -> None:
    graph = build_graph(Optional(), nets.images(2))
    with torch.no_grad():
        x = nets.images(4)
        torch.testing.assert_close(graph.module(x), graph.layer_module(0)(x.mean((2, 3)) * 2))


class Output(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> object:
        y = self.conv(x)
        return {"map": y, "dict": {"out": y}, "tuple": (y, y), "scalar": y.mean(), "first": y[0].flatten(1)}[self.kind]


@pytest.mark.parametrize("kind", ["map", "dict", "tuple", "scalar", "first"])
def test_outputs_that_are_not_logits_are_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"logits of shape \[batch, classes\] are expected"):
        build_graph(Output(kind), nets.images(2))


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"fails on a batch of shape \(2, 1, 8, 8\)") as error:
        build_graph(nets.Residual(), nets.images(2, channels=1))
    assert "channels" in error.value.hint


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no convolution or linear layer"):
        build_graph(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nets.images(2))


def test_unknown_add_policy() -> None:
    with pytest.raises(ModelError, match="add_policy 'nowhere'") as error:
        build_graph(nets.Residual(), nets.images(2), "nowhere")
    assert "both_inputs" in error.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_refused(value: float) -> None:
    network = nets.randomize(nets.Residual())
    with torch.no_grad():
        network.same.bn1.running_mean[1] = value
    with pytest.raises(ModelError, match=r"NaN or infinite values in 'same\.bn1\.running_mean'"):
        build_graph(network, nets.images(2))


def test_broken_logits_are_refused() -> None:
    network = nets.randomize(nets.Residual())
    with pytest.raises(ModelError, match="NaN or infinite values among its logits"):
        build_graph(network, nets.images(2) * 1e38)
