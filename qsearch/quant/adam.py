"""Adam (Kingma and Ba 2015) on one tensor.

The loops of a reconstruction make few steps, often on a worker that does nothing else with an optimizer; torch's own
loads its compiler on the first step, which takes longer than reconstructing a small network.
"""

from __future__ import annotations

import torch


class Adam:
    """Moves one leaf tensor against its ``grad``.

    Args:
        tensor: What to move; its ``grad`` must be set when :meth:`step` is called.
        betas: Decay of the mean and of the mean square of the gradient.
        eps: Added to the root of the mean square.
    """

    def __init__(self, tensor: torch.Tensor, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.tensor = tensor
        self._betas, self._eps, self._steps = betas, eps, 0
        self._mean = torch.zeros_like(tensor, requires_grad=False)
        self._square = torch.zeros_like(self._mean)
        self._root = torch.empty_like(self._mean)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update with learning rate ``lr`` (algorithm 1 of the paper)."""
        gradient = self.tensor.grad
        if gradient is None:
            return
        self._steps += 1
        first, second = self._betas
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        correction = 1 - second**self._steps
        torch.sqrt(self._square, out=self._root).div_(correction**0.5).add_(self._eps)
        self.tensor.addcdiv_(self._mean, self._root, value=-lr / (1 - first**self._steps))
