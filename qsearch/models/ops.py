"""What the operations of a traced graph do to a quantized tensor: keep its grid, keep its sign, join branches."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

_GRID_PRESERVING_MODULES = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.modules.dropout._DropoutNd,
    nn.ZeroPad2d,
    nn.ChannelShuffle,
    nn.PixelShuffle,
)
_GRID_PRESERVING_FUNCTIONS = {
    F.max_pool2d,
    F.dropout,
    F.dropout2d,
    F.pad,
    F.adaptive_max_pool2d,
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.max_pool2d,
    torch.channel_shuffle,
    torch.pixel_shuffle,
    operator.getitem,
}
_GRID_PRESERVING_METHODS = {
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze",
}  # fmt: skip

#: They return parts of their input in a tuple; ``getitem`` takes one out.
_SPLIT_FUNCTIONS = {torch.chunk, torch.split, torch.tensor_split, torch.unbind}
_SPLIT_METHODS = {"chunk", "split", "split_with_sizes", "tensor_split", "unbind"}

_NON_NEGATIVE_MODULES = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softplus)
_NON_NEGATIVE_FUNCTIONS = {F.relu, F.relu6, torch.relu, torch.sigmoid, F.sigmoid, F.hardsigmoid, F.softmax, torch.abs}
_NON_NEGATIVE_METHODS = {"relu", "sigmoid", "softmax", "abs"}

_SIGN_KEEPING_MODULES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_SIGN_KEEPING_FUNCTIONS = {F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean}
_SIGN_KEEPING_METHODS = {"mean"}

_ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
    nn.Sigmoid, nn.Tanh, nn.Mish, nn.Softplus,
)  # fmt: skip
_ACTIVATION_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.hardtanh, F.mish,
    torch.relu, torch.sigmoid, torch.tanh, torch.clamp,
}  # fmt: skip
_ACTIVATION_METHODS = {"relu", "sigmoid", "tanh", "clamp"}

_ADD_FUNCTIONS = {operator.add, torch.add}
_CAT_FUNCTIONS = {torch.cat, torch.concat}
_PRODUCT_FUNCTIONS = {operator.mul, torch.mul}


class Ops:
    """Classifies the nodes of one traced module."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._modules = dict(module.named_modules())

    def _is(self, node: fx.Node, modules: tuple[type, ...], functions: set[Any], methods: set[str]) -> bool:
        if node.op == "call_module":
            return isinstance(self._modules[str(node.target)], modules)
        if node.op == "call_function":
            return node.target in functions
        return node.op == "call_method" and node.target in methods

    def keeps_grid(self, node: fx.Node) -> bool:
        """True when the output holds only values of the first input (and zeros)."""
        if node.op == "call_function" and node.target is F.pad and not _pads_with_zeros(node):
            return False
        return self._is(node, _GRID_PRESERVING_MODULES, _GRID_PRESERVING_FUNCTIONS, _GRID_PRESERVING_METHODS)

    def keeps_sign(self, node: fx.Node) -> bool:
        """True for an average over values of the first input."""
        return self._is(node, _SIGN_KEEPING_MODULES, _SIGN_KEEPING_FUNCTIONS, _SIGN_KEEPING_METHODS)

    def is_activation(self, node: fx.Node) -> bool:
        """True for an element-wise non-linearity."""
        return self._is(node, _ACTIVATION_MODULES, _ACTIVATION_FUNCTIONS, _ACTIVATION_METHODS)

    def is_add(self, node: fx.Node) -> bool:
        """True for the sum of two tensors of the graph (a bias or a constant does not count)."""
        return self._is(node, (), _ADD_FUNCTIONS, {"add"}) and len(self.tensor_inputs(node)) == 2

    def is_cat(self, node: fx.Node) -> bool:
        """True for a concatenation."""
        return self._is(node, (), _CAT_FUNCTIONS, set())

    def is_product(self, node: fx.Node) -> bool:
        """True for an element-wise product of two tensors, such as a squeeze-excite gate and what it scales."""
        return self._is(node, (), _PRODUCT_FUNCTIONS, {"mul"})

    def tensor_inputs(self, node: fx.Node) -> list[fx.Node]:
        """Inputs computed from the image, in argument order (parameters, constants and sizes left out)."""
        return [n for n in node.all_input_nodes if "shape" in n.meta]

    def is_non_negative(self, node: fx.Node) -> bool:
        """True when no value of the node can be negative, judged from the graph, never from data."""
        if self._is(node, _NON_NEGATIVE_MODULES, _NON_NEGATIVE_FUNCTIONS, _NON_NEGATIVE_METHODS):
            return True
        if self._clips_below_at(node) >= 0:
            return True
        if self.keeps_grid(node) or self.keeps_sign(node):
            carried = self._carried(node)
            return carried is not None and self.is_non_negative(carried)
        inputs = self.tensor_inputs(node)
        joins = self.is_add(node) or self.is_cat(node) or self.is_product(node)
        if joins and len(inputs) == len(node.all_input_nodes) and not _has_negative_number(node):
            return bool(inputs) and all(self.is_non_negative(n) for n in inputs)
        return False

    def _clips_below_at(self, node: fx.Node) -> float:
        """The lower bound of a clamp or hard tanh; minus infinity where there is none."""
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            return float(module.min_val) if isinstance(module, nn.Hardtanh) else -math.inf
        if not self._is(node, (), {torch.clamp, torch.clip, F.hardtanh}, {"clamp", "clip"}):
            return -math.inf
        keyword = "min_val" if node.target is F.hardtanh else "min"
        bound = node.args[1] if len(node.args) > 1 else node.kwargs.get(keyword)
        return float(bound) if isinstance(bound, int | float) else -math.inf

    def source(self, node: fx.Node) -> fx.Node:
        """Walks back through grid-preserving operations to the node that made the values."""
        while self.keeps_grid(node) and (carried := self._carried(node)) is not None:
            node = carried
        return node

    def _carried(self, node: fx.Node) -> fx.Node | None:
        """The tensor whose values a grid- or sign-preserving operation passes on, also out of a split."""
        if inputs := self.tensor_inputs(node):
            return inputs[0]
        parts = node.args[0] if node.target is operator.getitem else None
        if isinstance(parts, fx.Node) and self._is(parts, (), _SPLIT_FUNCTIONS, _SPLIT_METHODS):
            return next(iter(self.tensor_inputs(parts)), None)
        return None


def _has_negative_number(node: fx.Node) -> bool:
    """True when a factor (or ``alpha`` of ``torch.add``) may turn the sign."""
    values = [*node.args, *(value for key, value in node.kwargs.items() if key not in ("dim", "axis"))]
    return node.target not in _CAT_FUNCTIONS and any(isinstance(v, int | float) and not v >= 0 for v in values)


def _pads_with_zeros(node: fx.Node) -> bool:
    """True for a padding with zeros or with values of the tensor itself."""
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return mode != "constant" or value in (None, 0)
