"""Small networks that tests of several rooms share, and ways to make their numbers interesting."""

from __future__ import annotations

import torch
from torch import nn


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, and batch norms with statistics as if trained; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.2)
                    module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
                if module.affine:
                    module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                    module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.2)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / fan_in**0.5)
                if module.bias is not None:
                    module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
    return network.eval()


def images(n: int, channels: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Normal noise, ``[n, channels, size, size]``."""
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


class Head(nn.Module):
    """Global average pool and a classifier."""

    def __init__(self, channels: int, classes: int = 3) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(x), 1))


class Basic(nn.Module):
    """A residual block; its shortcut is a 1x1 convolution where channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


class Residual(nn.Module):
    """Stem, a block with identity shortcut, a block with projection shortcut, head: seven layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.same = Basic(4, 4)
        self.wider = Basic(4, 6)
        self.head = Head(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.wider(self.same(self.stem(x))))


class Lambda(nn.Module):
    """A convolution, a function of its output, and a head."""

    def __init__(self, function, channels: int = 4, head_channels: int | None = None) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.function = function
        self.conv2 = nn.Conv2d(head_channels or channels, 5, 3, padding=1)
        self.head = Head(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv2(self.function(self.conv(x))))


class SharedEntry(nn.Module):
    """The pooled tensor is quantized because of `other`; the block reads it only through a pooling and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.pool, self.bn, self.relu = nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.head = Head(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.stem(x)))
        return self.head(torch.cat([x + self.conv(self.relu(self.bn(x))), self.other(x)], 1))
