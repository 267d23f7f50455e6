"""Calibration: samples of every activation tensor, taken from the float network on unlabelled images."""

from __future__ import annotations

import torch

from qsearch.errors import EvaluationError
from qsearch.models import QuantGraph
from qsearch.quant.network import Recorder

#: Values kept of each activation tensor, spread evenly over images, channels and positions.
SAMPLES_PER_TENSOR = 1 << 16


@torch.no_grad()
def sample_activations(graph: QuantGraph, images: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Runs the float network over the calibration images and keeps values of every activation tensor.

    The extremes of every batch are always kept, so that the range search starts from the true range.

    Args:
        graph: The network, on the device of ``images``.
        images: ``[n, channels, height, width]``.
        batch_size: Images a forward pass.

    Returns:
        One flat tensor of values for each of ``graph.tensors``, on the CPU.

    Raises:
        EvaluationError: A tensor holds NaN or infinite values.
    """
    kept: list[list[torch.Tensor]] = [[] for _ in graph.tensors]
    batches = torch.split(images, batch_size)
    quota = max(1, SAMPLES_PER_TENSOR // len(batches))
    for batch in batches:
        recorder = Recorder(graph, [tensor.node for tensor in graph.tensors])
        recorder.run(batch)
        for tensor in graph.tensors:
            values = recorder.values[tensor.node].flatten()
            stride = max(1, len(values) // quota)
            if stride > 1 and stride % 2 == 0:
                stride += 1  # an even stride would keep hitting the same columns of power-of-two maps
            extremes = torch.stack(torch.aminmax(values))
            if not torch.isfinite(extremes).all():
                raise EvaluationError(
                    f"activation {tensor.node!r} is NaN or infinite on the calibration images",
                    "are the images normalised as they were in training?",
                )
            kept[tensor.index].append(torch.cat([values[::stride], extremes]).cpu())
    return [torch.cat(parts) for parts in kept]
