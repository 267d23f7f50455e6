"""What the operations of a traced graph do to a quantized tensor: keep its grid, keep its sign, join branches."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

#: In-place operators and their out-of-place twins; in-place ones would corrupt captured activations.
OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
}
METHOD_OUT_OF_PLACE = {"add_": "add", "mul_": "mul", "relu_": "relu", "clamp_": "clamp", "sub_": "sub"}

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
    operator.getitem,
}
_GRID_PRESERVING_METHODS = {
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze",
}  # fmt: skip

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
        return self._is(node, _GRID_PRESERVING_MODULES, _GRID_PRESERVING_FUNCTIONS, _GRID_PRESERVING_METHODS)

    def is_activation(self, node: fx.Node) -> bool:
        """True for an element-wise non-linearity."""
        return self._is(node, _ACTIVATION_MODULES, _ACTIVATION_FUNCTIONS, _ACTIVATION_METHODS)

    def is_add(self, node: fx.Node) -> bool:
        """True for the sum of two tensors of the graph (a bias or a constant does not count)."""
        return self._is(node, (), _ADD_FUNCTIONS, {"add"}) and len(self.tensor_inputs(node)) == 2

    def is_cat(self, node: fx.Node) -> bool:
        """True for a concatenation."""
        return self._is(node, (), _CAT_FUNCTIONS, set())

    def tensor_inputs(self, node: fx.Node) -> list[fx.Node]:
        """Inputs that are values of the graph, in argument order (parameters and sizes left out)."""
        return [n for n in node.all_input_nodes if n.op != "get_attr" and "shape" in _meta(n)]

    def is_non_negative(self, node: fx.Node) -> bool:
        """True when no value of the node can be negative, judged from the graph, never from data."""
        if self._is(node, _NON_NEGATIVE_MODULES, _NON_NEGATIVE_FUNCTIONS, _NON_NEGATIVE_METHODS):
            return True
        inputs = self.tensor_inputs(node)
        if self.keeps_grid(node) or self._is(
            node, _SIGN_KEEPING_MODULES, _SIGN_KEEPING_FUNCTIONS, _SIGN_KEEPING_METHODS
        ):
            return bool(inputs) and self.is_non_negative(inputs[0])
        is_product = self._is(node, (), {operator.mul, torch.mul}, {"mul"})
        if (self.is_add(node) or self.is_cat(node) or is_product) and len(inputs) == len(node.all_input_nodes):
            return bool(inputs) and all(self.is_non_negative(n) for n in inputs)
        return False

    def source(self, node: fx.Node) -> fx.Node:
        """Walks back through grid-preserving operations to the node that made the values."""
        while self.keeps_grid(node) and self.tensor_inputs(node):
            node = self.tensor_inputs(node)[0]
        return node


def _meta(node: fx.Node) -> dict[str, Any]:
    return {"shape": node.meta["shape"]} if "shape" in node.meta else {}
