"""A short supervised training for the embedded example networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def _shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shifts every image by -1, 0 or 1 pixel in both directions, zeros entering."""
    n, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1))
    dy, dx = (torch.randint(0, 3, (n, 1), generator=generator) for _ in range(2))
    rows = (dy + torch.arange(height))[:, None, :, None]
    columns = (dx + torch.arange(width))[:, None, None, :]
    batch = torch.arange(n)[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return padded[batch, channel, rows, columns]


def train_classifier(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float = 0.1,
    seed: int = 0,
) -> None:
    """Trains in place: SGD with Nesterov momentum, one-cycle schedule, label smoothing, one-pixel shifts.

    Args:
        network: Returns logits ``[n, classes]``; left in evaluation mode.
        images: ``[n, channels, height, width]``, float.
        labels: ``[n]``, int64.
        epochs: Passes over the images.
        batch_size: Images a step.
        lr: Peak learning rate.
        seed: Seeds order and shifts; equal seeds give equal weights on one machine.
    """
    # The sums of a backward pass depend on the number of threads; a resumed study must find the same network.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _train(network, images, labels, epochs, batch_size, lr, seed)
    finally:
        torch.set_num_threads(threads)
    network.eval()


def _train(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, len(images) // batch_size)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for step in range(steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            logits = network(_shift(images[batch], generator))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
