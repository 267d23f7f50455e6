"""Fisher-diagonal weights of a unit's output: which deviations of the output change the prediction.

BRECQ (Li et al. 2021, eq. 10) weights the squared output error with ``E[(dL / dz)^2]``. L is here the log-likelihood of
labels drawn from the float network's own prediction, which makes the expectation the Fisher information itself and
needs no label; the published code's KL to a quantized network is zero where that network is still exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from qsearch.models import QuantGraph
from qsearch.quant.network import Recorder


def fisher_weights(
    graph: QuantGraph,
    node: str,
    images: torch.Tensor,
    *,
    samples: int,
    floor: float,
    batch_size: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Squared gradients of the sampled log-likelihood at one node, normalised to mean 1.

    Args:
        graph: The float network, on the device of ``images``.
        node: Name of the node.
        images: ``[n, channels, height, width]``.
        samples: Labels drawn for each image.
        floor: Least weight, in [0, 1); keeps outputs of confidently classified images in the loss.
        batch_size: Images a pass.
        generator: CPU generator that draws the labels.

    Returns:
        Weights with the shape of the node's value for all images.
    """
    squared = []
    with torch.enable_grad():
        for batch in torch.split(images, batch_size):
            recorder = Recorder(graph, [node])
            logits: torch.Tensor = recorder.run(batch.detach().requires_grad_(True))
            value = recorder.values[node]
            labels = torch.multinomial(F.softmax(logits.detach(), 1).cpu(), samples, True, generator=generator)
            total = torch.zeros_like(value)
            for draw in labels.to(batch.device).unbind(1):
                loss = F.cross_entropy(logits, draw, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, value, retain_graph=True)
                total += gradient.square()
            squared.append(total.detach() / samples)
    weights = torch.cat(squared)
    mean = weights.mean()
    if not torch.isfinite(mean) or float(mean) <= 0.0:
        return torch.ones_like(weights)
    return floor + (1 - floor) * weights / mean
