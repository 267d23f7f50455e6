"""A user's own network and data, as a study file names them: ``factories:cifar_resnet20``, ``factories:cifar10``.

Pretrained ResNet-20 on CIFAR-10. The files are found through ``$QSEARCH_SHARED_DATA``, or in ``shared/data`` beside the
checkout; ``README.md`` there describes them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

MEAN = np.float32([0.485, 0.456, 0.406])
STD = np.float32([0.229, 0.224, 0.225])

TRAIN_IMAGES = 10_000  # of the first file; the others are optional
TEST_IMAGES = 10_000


def shared_file(name: str) -> Path:
    """Path of one file of the real data."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("QSEARCH_SHARED_DATA") or beside) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; set QSEARCH_SHARED_DATA to the directory of real data")
    return path


class Block(nn.Module):
    """Two 3x3 convolutions; the shortcut takes every second pixel and pads channels with zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        y += x
        return F.relu(y)


class CifarResNet(nn.Module):
    """ResNet for 32 x 32 images (He et al. 2015, section 4.2), ``6 * blocks + 2`` layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.size(3)).view(x.size(0), -1))


def cifar_resnet20() -> nn.Module:
    """The pretrained ResNet-20, top-1 91.73 % on the 10,000 test images."""
    network = CifarResNet(3)
    network.load_state_dict(torch.load(shared_file("resnet20_cifar10.pt"), map_location="cpu", weights_only=True))
    return network.eval()


def _load(name: str, start: int, stop: int) -> TensorDataset:
    with np.load(shared_file(name)) as archive:
        pixels, labels = archive["delta"][start:stop], archive["labels"][start:stop]
    # Undoes the reversible transform of the file: differences along rows and columns, then channels minus green.
    pixels = pixels.cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)
    pixels[:, 0] += pixels[:, 1]
    pixels[:, 2] += pixels[:, 1]
    images = (pixels.astype(np.float32) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def cifar10(
    calibration: int = 1024, validation: int = 5000, test: int = 5000, offset: int = 0
) -> dict[str, TensorDataset]:
    """Calibration from the training images; validation and test are disjoint parts of the 10,000 test images.

    The network has seen all training images, so its accuracy on them says nothing; hence validation is a part of the
    test images. Every class turns up every ten images, so each part is balanced, and so are the calibration images
    from any ``offset`` on.
    """
    if offset < 0 or offset + calibration > TRAIN_IMAGES:
        raise ValueError(f"{calibration} calibration images from {offset} on, but there are {TRAIN_IMAGES}")
    if validation + test > TEST_IMAGES:
        raise ValueError(f"validation and test have {validation + test} images, but there are {TEST_IMAGES}")
    return {
        "calibration": _load("cifar10_train_0.npz", offset, offset + calibration),
        "validation": _load("cifar10_test.npz", 0, validation),
        "test": _load("cifar10_test.npz", TEST_IMAGES - test, TEST_IMAGES),
    }
