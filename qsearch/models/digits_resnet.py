"""``qsearch:digits_resnet``: a small residual network, trained on the spot on the data of the study and cached."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.utils.data import Dataset

from qsearch.cache import cache_dir, write_atomically
from qsearch.errors import DataError
from qsearch.models.train import train_classifier
from qsearch.types import digest

_RECIPE_VERSION = 1


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (a 1x1 convolution where the shape changes), then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.conv2 = _conv(outputs, outputs, 3)
        self.shortcut = _conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        y = self.conv2(torch.relu(self.conv1(x)))
        return torch.relu(y + self.shortcut(x))


class SeparableBlock(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution with a residual add (equal shapes in and out)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = _conv(channels, channels, 3, groups=channels)
        self.pointwise = _conv(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``[n, channels, h, w]`` to the same shape."""
        return torch.relu(x + self.pointwise(torch.relu(self.depthwise(x))))


class DigitsResNet(nn.Module):
    """Eleven quantizable layers: stem, three residual blocks (one separable) and the classifier.

    Args:
        channels: Channels of the images.
        classes: Number of classes.
        width: Channels of the first stage.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem = _conv(channels, width, 3)
        self.block1 = ResidualBlock(width, width)
        self.block2 = ResidualBlock(width, 2 * width, stride=2)
        self.block3 = SeparableBlock(2 * width)
        self.block4 = ResidualBlock(2 * width, 2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images ``[n, channels, h, w]`` to logits ``[n, classes]``."""
        x = torch.relu(self.stem(x))
        x = self.block4(self.block3(self.block2(self.block1(x))))
        logits: torch.Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


def _stack(dataset: Dataset[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]
    return torch.stack([image for image, _ in pairs]), torch.tensor([int(label) for _, label in pairs])


def digits_resnet(
    data: Mapping[str, Dataset[tuple[torch.Tensor, int]]], epochs: int = 30, width: int = 16, seed: int = 0
) -> nn.Module:
    """Builds the network and trains it on ``data["train"]``; the trained weights are cached by content.

    Args:
        data: The splits of the study; only ``train`` is read.
        epochs: Passes over the training images.
        width: Channels of the first stage.
        seed: Seed of initialisation and training.

    Raises:
        DataError: The data has no ``train`` split.
    """
    if "train" not in data:
        raise DataError(
            "qsearch:digits_resnet is trained on the spot, but the data has no 'train' split",
            "return a 'train' dataset from the data factory, or use a model that brings its weights",
        )
    images, labels = _stack(data["train"])
    network_shape = {"channels": images.shape[1], "classes": int(labels.max()) + 1, "width": width}
    recipe = {
        **network_shape,
        "recipe": _RECIPE_VERSION,
        "epochs": epochs,
        "seed": seed,
        "torch": torch.__version__,
        "train": hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest(),
    }
    path = cache_dir() / "models" / f"digits_resnet-{digest(recipe)[:16]}.safetensors"
    if path.is_file():
        network = DigitsResNet(**network_shape)
        try:
            network.load_state_dict(load_file(path))
            return network.eval()
        except Exception as error:  # what a damaged file raises is not documented; it is trained again and replaced
            logging.getLogger(__name__).warning("%s is damaged and is trained again: %s", path, error)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsResNet(**network_shape)
    train_classifier(network, images, labels, epochs=epochs, seed=seed)
    content = save({name: value.contiguous() for name, value in network.state_dict().items()})
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return network
