"""Statistics correction: every layer's output gets back the mean and deviation, per channel, of the float network.

Quantized weights shift and shrink what a layer returns, and errors of the layers before add to it. Layer by layer, the
deviation goes into the layer's scales and the mean into its bias, so the weights keep their integer codes; the float
statistics never change. The correction of a stitched network is worth tens of points at 2 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qsearch.quant.program import Plan, Program, State, per_channel

#: A channel's deviation is never changed by more than this factor.
RATIO_LIMITS = (0.5, 2.0)

#: Channels that hardly vary in the float network (dead ones) keep their scale.
LEAST_DEVIATION = 1e-4


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of every channel, ``[channels]`` each."""

    mean: torch.Tensor
    deviation: torch.Tensor


def moments(outputs: Sequence[torch.Tensor]) -> Moments:
    """Statistics of a layer's output over images and positions.

    Args:
        outputs: Chunks ``[n, channels, height, width]`` or ``[n, ..., channels]``.
    """
    count = sum(_rows(chunk).shape[0] for chunk in outputs)
    mean = sum((_rows(chunk).sum(0) for chunk in outputs), torch.zeros(1, device=outputs[0].device)) / count
    square = sum(
        ((_rows(chunk) - mean).square_().sum(0) for chunk in outputs), torch.zeros(1, device=outputs[0].device)
    )
    return Moments(mean, (square / count).sqrt())


def _rows(chunk: torch.Tensor) -> torch.Tensor:
    channels_last = chunk.permute(0, 2, 3, 1) if chunk.dim() == 4 else chunk
    return channels_last.reshape(-1, channels_last.shape[-1])


class FloatMoments:
    """A layer hook that keeps the statistics of the float network."""

    def __init__(self) -> None:
        self.of: dict[int, Moments] = {}

    def __call__(self, layer: int, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Notes the statistics of one layer."""
        self.of[layer] = moments(outputs)
        return outputs


class Correction:
    """A layer hook that corrects a quantized network as it runs.

    Args:
        program: The network.
        plan: The candidate; float layers are corrected, too (their inputs changed).
        reference: Statistics of the float network.
        deviation: Also correct the deviation, not the mean only (impossible for power-of-two scales).
        fit: Chunks, from the first, that the statistics are taken from; the others are corrected with them.
    """

    def __init__(self, program: Program, plan: Plan, reference: dict[int, Moments], deviation: bool, fit: int) -> None:
        self._program = program
        self._plan = plan
        self._reference = reference
        self._deviation = deviation
        self._fit = fit
        self.layers = dict(plan.layers)

    def __call__(self, layer: int, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Corrects one layer, in place, and notes what was changed."""
        found, wanted = moments(outputs[: self._fit]), self._reference[layer]
        factor = torch.ones_like(found.mean)
        if self._deviation:
            ratio = (wanted.deviation / found.deviation.clamp_min(1e-12)).clamp(*RATIO_LIMITS)
            factor = torch.where(wanted.deviation < LEAST_DEVIATION, factor, ratio)
        shift = wanted.mean - factor * found.mean
        plan = self._plan.layers.get(layer) or self._program.float_layer(layer)
        self.layers[layer] = plan.adjusted(factor, shift, f"corrected, deviation {self._deviation}")
        module = self._program.graph.layer_module(layer)
        scale, offset = per_channel(factor, module), per_channel(shift, module)
        return [output.mul_(scale).add_(offset) for output in outputs]


def float_moments(program: Program, states: Sequence[State]) -> dict[int, Moments]:
    """Statistics of the float network; the states are consumed."""
    hook = FloatMoments()
    program.advance(states, Plan(), 0, len(program.steps), hook)
    return hook.of
