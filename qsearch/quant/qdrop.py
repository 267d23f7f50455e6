"""QDrop (Wei et al. 2022): while a unit is reconstructed, a part of its activation elements stays float.

The unit then has to be right for many activation errors between none and all, which makes the loss flatter and the
rounding hold on other images. As in the published code, the probability is that of an element *being quantized*.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class ElementDrop:
    """Draws which elements are quantized.

    Args:
        probability: Of being quantized, in [0, 1]; rounded to 1/256, so that one random byte decides an element.
        generator: CPU generator; elements of a tensor on another device are drawn there from a seed it gives.
    """

    def __init__(self, probability: float, generator: torch.Generator) -> None:
        self.threshold = round(256 * probability)
        self._generator = generator
        self._seeded: dict[torch.device, torch.Generator] = {torch.device("cpu"): generator}

    def quantized(self, like: torch.Tensor) -> torch.Tensor:
        """Boolean mask with the shape and the memory order of ``like``."""
        device = like.device
        if device not in self._seeded:
            seed = int(torch.randint(0, 2**62, (), generator=self._generator))
            self._seeded[device] = torch.Generator(device).manual_seed(seed)
        words = torch.empty((like.numel() + 7) // 8, dtype=torch.int64, device=device)
        words.random_(-(2**63), None, generator=self._seeded[device])
        drawn = torch.empty_like(like, dtype=torch.uint8)
        drawn.as_strided((drawn.numel(),), (1,)).copy_(words.view(torch.uint8)[: drawn.numel()])
        return drawn < self.threshold if self.threshold < 256 else torch.ones_like(drawn, dtype=torch.bool)


class TrainingQuantizer(nn.Module):
    """A quantizer at one activation tensor of a unit; in training mode it leaves some elements float.

    Attributes:
        float_values: What an element that is not quantized is replaced by; None leaves the element as it comes in.
            At the entry of a unit this is the value that the float network has there.

    Args:
        quantize: Maps a tensor to its quantized values.
        drop: Draws the elements; None quantizes all.
    """

    float_values: torch.Tensor | None = None

    def __init__(self, quantize: Callable[[torch.Tensor], torch.Tensor], drop: ElementDrop | None) -> None:
        super().__init__()
        self.quantize = quantize
        self.drop = drop

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Maps a tensor of any shape to the same shape."""
        quantized = self.quantize(values.float()).to(values.dtype)
        if self.drop is None or not self.training:
            return quantized
        other = values if self.float_values is None else self.float_values
        return torch.where(self.drop.quantized(values), quantized, other)
