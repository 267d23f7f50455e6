"""Networks of many kinds, and random candidates for them; shared by the tests of the engine."""

from __future__ import annotations

import random
from collections.abc import Callable

import nets
import torch
import torch.nn.functional as F
from torch import nn

from qsearch.models import QuantGraph, build_graph
from qsearch.models.digits_resnet import DigitsResNet
from qsearch.models.torchvision_compat import import_torchvision
from qsearch.quant.bank import nearest
from qsearch.quant.grids import search_activation_grid
from qsearch.quant.program import Observer, Plan, Program
from qsearch.quant.schemes import ActivationScheme, WeightScheme


class Scaled(nn.Module):
    """A residual block whose branch is scaled by what is computed from a parameter alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(-1, 1, 4))
        self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head(x + self.conv(x) * self.gain.exp().view(1, 4, 1, 1))


class Odd(nn.Module):
    """Strings as padding, dilation, even kernels, groups, a padded tensor, a double use, tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (5, 3), padding="same", dilation=(1, 2))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=2)
        self.grouped = nn.Conv2d(8, 8, 2, padding="valid", groups=2, bias=False)
        self.twice = nn.Conv2d(8, 8, 1)  # called twice, hence float
        self.tokens = nn.Linear(8, 6)
        self.fc = nn.Linear(6 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu6(self.depthwise(x))
        x = self.grouped(F.pad(x, (0, 0, 1, 1)))
        x = self.twice(F.silu(self.twice(x)))
        x = self.tokens((x + x).flatten(2).transpose(1, 2)[:, :9])
        x = F.relu(x).transpose(1, 2).reshape(x.size(0), 6, 3, 3)
        return self.fc(torch.flatten(F.max_pool2d(x, 2, 1), 1))


class SplitBlock(nn.Module):
    """Halves of one tensor go different ways; sizes are read from the tensor (as in ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        first, second = x.chunk(2, dim=1)
        x = torch.cat([self.left(first), F.relu(self.right(second))], 1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        x = F.max_pool2d(F.relu(self.last(x)), 2)
        return self.fc(x.view(x.size(0), -1))


class Sums(nn.Module):
    """Long-lived tensors: a dense chain in which everything is added to everything later."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [F.relu(self.stem(x))]
        for conv in self.convs:
            found.append(F.relu(conv(sum(found[1:], found[0]))))
        return self.head(found[-1] + found[0])


class Gate(nn.Module):
    """Squeeze-excite around a depthwise convolution, with a hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.last = nn.Conv2d(8, 8, 1)
        self.head = nets.Head(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.hardswish(self.stem(x))
        y = F.relu(self.depthwise(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return self.head(x + self.last(y * gate))


def zoo(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network: nn.Module = import_torchvision().models.get_model(name, weights=None, num_classes=5)
        return network

    return make


def small_densenet() -> nn.Module:
    network: nn.Module = import_torchvision().models.DenseNet(8, (2, 3), 16, num_classes=5)
    return network


#: Builder and image size by name.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "digits": (lambda: DigitsResNet(3), 8),
    "residual": (nets.Residual, 8),
    "scaled": (Scaled, 8),
    "pooled": (nets.SharedEntry, 8),
    "odd": (Odd, 8),
    "split": (SplitBlock, 8),
    "sums": (Sums, 8),
    "gate": (Gate, 8),
    "densenet": (small_densenet, 32),
    "resnet18": (zoo("resnet18"), 32),
    "mobilenet_v2": (zoo("mobilenet_v2"), 32),
    "mobilenet_v3_small": (zoo("mobilenet_v3_small"), 32),
    "shufflenet_v2_x0_5": (zoo("shufflenet_v2_x0_5"), 64),
}

SMALL = ("digits", "residual", "scaled", "pooled", "odd", "split", "sums", "gate")


def make(name: str, policy: str = "after_relu", n: int = 6, seed: int = 0) -> tuple[QuantGraph, torch.Tensor]:
    """A network with random weights, and images."""
    build, size = NETWORKS[name]
    x = nets.images(n, size=size, seed=seed)
    return build_graph(nets.randomize(build(), seed), x[:2], policy), x


class Samples(Observer):
    """Values of every activation tensor."""

    def __init__(self) -> None:
        self.of: dict[int, list[torch.Tensor]] = {}

    def on_tensor(self, tensor: int, values: torch.Tensor) -> None:
        self.of.setdefault(tensor, []).append(values.flatten())


@torch.no_grad()
def tensor_samples(program: Program, x: torch.Tensor) -> dict[int, torch.Tensor]:
    samples = Samples()
    program.advance([program.start(x)], Plan(), 0, len(program.steps), observer=samples)
    return {tensor: torch.cat(values) for tensor, values in samples.of.items()}


@torch.no_grad()
def random_plan(
    program: Program,
    x: torch.Tensor,
    rng: random.Random,
    widths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8),
    float_share: float = 0.0,
    weights: WeightScheme | None = None,
    activations: ActivationScheme | None = None,
    activation_widths: tuple[int, ...] | None = None,
) -> Plan:
    """A candidate with a random width for every layer and every tensor; some of them may stay float."""
    graph = program.graph
    samples = tensor_samples(program, x)
    layers, grids = {}, {}
    for index in range(len(graph.layers)):
        if rng.random() >= float_share:
            module = graph.layer_module(index)
            bias = None if module.bias is None else module.bias.detach()
            layers[index] = nearest(module.weight.detach(), rng.choice(widths), weights or WeightScheme()).plan(bias)
    for tensor in graph.tensors:
        if rng.random() >= float_share:
            grids[tensor.index] = search_activation_grid(
                samples[tensor.index],
                rng.choice(activation_widths or widths),
                tensor.unsigned,
                activations or ActivationScheme(),
            )
    return Plan(layers, grids)
