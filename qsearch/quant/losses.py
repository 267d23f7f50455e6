"""The loss of a reconstruction: how far a unit's output is from what the float network has there."""

from __future__ import annotations

import torch


def output_error(outputs: torch.Tensor, targets: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """Squared error, summed over channels and averaged over images and positions (BRECQ, Li et al. 2021, eq. 10).

    Args:
        outputs: ``[n, channels, ...]``.
        targets: Same shape.
        importance: Fisher weight of every element, same shape; None counts all alike.
    """
    squared = (outputs - targets).square()
    return (squared if importance is None else squared * importance).sum(1).mean()


def output_gradient(
    outputs: torch.Tensor, targets: torch.Tensor, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """Derivative of :func:`output_error` with respect to ``outputs``, same shape.

    A backward pass can start here; the loss itself need not be computed. ``targets`` is overwritten: memory that is
    fresh from the system costs more than the arithmetic.
    """
    gradient = torch.sub(outputs, targets, out=targets).mul_(2.0 * outputs.shape[1] / outputs.numel())
    return (gradient if importance is None else gradient.mul_(importance)).to(outputs.dtype)
