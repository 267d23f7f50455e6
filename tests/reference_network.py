"""The reference of the quantized arithmetic: a plain module that quantizes in real numbers, step by step.

No codes, no folded operations, no reuse: ``torch.fake_quantize_per_tensor_affine`` stands behind every activation
tensor, and weights are real numbers that lie on their grid. Slow, and simple enough to be believed.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from qsearch.models import QuantGraph
from qsearch.quant.grids import ActivationGrid
from qsearch.quant.program import LayerPlan, Plan


class FakeQuantize(nn.Module):
    """Quantizes what passes through it, or passes it on while no grid is set."""

    grid: ActivationGrid | None = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.grid is None:
            return values
        g = self.grid
        return torch.fake_quantize_per_tensor_affine(values, g.scale, g.zero_point, g.low, g.high)


def quantizer(tensor: int) -> str:
    return f"quantizer_{tensor}"


class FakeQuantNetwork:
    """The folded network with a quantizer at every activation tensor.

    Args:
        graph: The network; it is copied.
        plan: The candidate.
    """

    def __init__(self, graph: QuantGraph, plan: Plan) -> None:
        self.graph = graph
        self.module = copy.deepcopy(graph.module).eval().requires_grad_(False)
        nodes = {node.name: node for node in self.module.graph.nodes}
        for tensor in graph.tensors:
            self._insert(nodes[tensor.node], quantizer(tensor.index))
            self.module.get_submodule(quantizer(tensor.index)).grid = plan.grids.get(tensor.index)
        self.module.graph.lint()
        self.module.recompile()
        for index, layer in plan.layers.items():
            module = self.module.get_submodule(graph.layers[index].name)
            module.weight = nn.Parameter(real_weight(layer), requires_grad=False)
            module.bias = None if layer.bias is None else nn.Parameter(layer.bias, requires_grad=False)

    def _insert(self, node: fx.Node, name: str) -> None:
        """Makes every reader of ``node`` read its quantized value instead."""
        self.module.add_submodule(name, FakeQuantize())
        with self.module.graph.inserting_after(node):
            quantized = self.module.graph.call_module(name, (node,))
        node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, height, width]``."""
        logits: torch.Tensor = self.module(images)
        return logits


def real_weight(layer: LayerPlan) -> torch.Tensor:
    """Real weights ``[out_channels, ...]`` of a plan, in torch's default memory order."""
    weight = layer.weight
    if layer.multiplier is not None:
        weight = weight * layer.multiplier.reshape(-1, *([1] * (weight.dim() - 1)))
    return weight.contiguous()


class Everything(fx.Interpreter):
    """All values of a run, by node name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        self.values[n.name] = result = super().run_node(n)
        return result
