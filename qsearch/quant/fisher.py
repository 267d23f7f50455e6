"""Fisher-diagonal weights of a unit's output: which deviations of the output change the prediction.

BRECQ (Li et al. 2021, eq. 10) weights the squared output error with ``E[(dL / dz)^2]``. Three ways to take that:

- none: all outputs count alike. The default of the published code (``opt_mode="mse"``).
- published (:func:`published_weights`): L is the divergence of the partly quantized network from the float one, and the
  floor of 1 on ``|dL / dz|`` makes the weights nearly equal (measured on ResNet-20: between 1.00 and 1.07).
- corrected (:func:`fisher_weights`): L is the log-likelihood of labels drawn from the float network's own prediction,
  which makes the expectation the Fisher information itself and needs no label. The divergence of a network from itself
  has no gradient, so the published L says nothing as long as nothing is wrong yet.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from qsearch.errors import EvaluationError
from qsearch.models import QuantGraph
from qsearch.quant.reconstruct import Stream


class _From(fx.Interpreter):
    """Runs the float network; gradients are taken from one node on, whose value may be given.

    Attributes:
        value: The node's value, a leaf; set by the run.
    """

    value: torch.Tensor | None = None

    def __init__(self, graph: QuantGraph, node: str, replacement: torch.Tensor | None = None) -> None:
        super().__init__(graph.module)
        self._node = node
        self._replacement = replacement

    def run_node(self, n: fx.Node) -> Any:
        with torch.set_grad_enabled(self.value is not None):
            result = super().run_node(n)
        if n.name != self._node:
            return result
        self.value = (result if self._replacement is None else self._replacement).detach().requires_grad_(True)
        return self.value


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
    """Squared gradients of the sampled log-likelihood at one node of the float network, normalised to mean 1.

    Args:
        graph: The float network, on the device of ``images``.
        node: Name of the node.
        images: ``[n, channels, height, width]``.
        samples: Labels drawn for each image.
        floor: Least weight, in [0, 1); keeps outputs of confidently classified images in the loss.
        batch_size: Images a pass; does not change the result.
        generator: CPU generator that draws the labels.

    Returns:
        Weights with the shape of the node's value for all images.

    Raises:
        EvaluationError: There is no such node.
    """
    squared = []
    for batch in torch.split(images, batch_size):
        run = _From(graph, node)
        logits: torch.Tensor = run.run(batch)
        value = _value(run)
        labels = torch.multinomial(F.softmax(logits.detach(), 1).cpu(), samples, True, generator=generator)
        total = torch.zeros_like(value)
        for draw in labels.to(batch.device).unbind(1):
            with torch.enable_grad():
                loss = F.cross_entropy(logits, draw, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, value, retain_graph=True)
            total += gradient.square()
        squared.append(total / samples)
    weights = torch.cat(squared)
    mean = weights.mean()
    if not torch.isfinite(mean) or float(mean) <= 0.0:
        return torch.ones_like(weights)
    return floor + (1 - floor) * weights / mean


def published_weights(
    graph: QuantGraph, node: str, images: torch.Tensor, quantized: Stream, *, batch_size: int = 32
) -> torch.Tensor:
    """``(|g| + 1)^2`` with the gradient g of the divergence at a unit's output, as the published code computes it.

    g is the gradient of ``KL(float || quantized)``, averaged over the images of a batch (so the weights depend on
    ``batch_size``); the quantized network has all units up to this one quantized, and the rest float.

    Args:
        graph: The float network, on the device of ``images``.
        node: Name of the node that leaves the unit.
        images: ``[n, channels, height, width]``.
        quantized: Values of the node in the quantized network, ``[n, ...]``.
        batch_size: Images a pass.

    Returns:
        Weights with the shape of the node's value for all images.

    Raises:
        EvaluationError: There is no such node.
    """
    weights = []
    for index in torch.split(torch.arange(len(images)), batch_size):
        batch = images[index.to(images.device)]
        with torch.no_grad():
            expected = F.softmax(graph.module(batch), 1)
        run = _From(graph, node, quantized[index].to(images.device).contiguous())
        logits: torch.Tensor = run.run(batch)
        with torch.enable_grad():
            divergence = F.kl_div(F.log_softmax(logits, 1), expected, reduction="batchmean")
        (gradient,) = torch.autograd.grad(divergence, _value(run))
        weights.append((gradient.abs() + 1.0).square())
    return torch.cat(weights)


def _value(run: _From) -> torch.Tensor:
    if run.value is None:
        raise EvaluationError(
            "Fisher weights are asked for at a node that the network does not have", "give a unit's exit"
        )
    return run.value
