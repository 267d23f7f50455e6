"""The network as a list of steps that runs a candidate without building a module.

Quantized tensors travel as integer codes held in float32, with their step beside them: a layer multiplies codes with
codes, so that its accumulator is an exact integer whatever the order of the sum, as long as it stays below 2**24. Then
one multiplication by ``step * weight scale`` and one addition of the bias give the layer's output, as integer hardware
does. Scores therefore hardly depend on threads, memory layout or machine.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from qsearch.models import QuantGraph
from qsearch.models.ops import Ops
from qsearch.quant.grids import ActivationGrid

#: Bytes of the largest activation tensor of one chunk; larger chunks fall out of the processor's cache.
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one layer computes.

    Attributes:
        weight: Centred integer codes ``[out_channels, ...]`` as float32, or real values.
        multiplier: ``[out_channels]``, what a unit of the accumulator is worth; None when ``weight`` holds real values.
        bias: ``[out_channels]``, or None.
        token: Names everything that made this plan, apart from what comes before the layer; plans with equal tokens
            behind equal prefixes are equal. None where nobody can say.
    """

    weight: torch.Tensor
    multiplier: torch.Tensor | None
    bias: torch.Tensor | None
    token: str | None = None

    def adjusted(self, factor: torch.Tensor, shift: torch.Tensor, reason: str) -> LayerPlan:
        """The layer whose output is ``factor * output + shift``, per channel; ``reason`` tells how both were found."""
        bias = shift if self.bias is None else self.bias * factor + shift
        token = None if self.token is None else f"{self.token}, {reason}"
        if self.multiplier is None:
            weight = self.weight * factor.reshape(-1, *([1] * (self.weight.dim() - 1)))
            return LayerPlan(weight, None, bias, token)
        return LayerPlan(self.weight, self.multiplier * factor, bias, token)


@dataclass(frozen=True)
class Plan:
    """One candidate: what is not named stays float.

    Attributes:
        layers: By layer index.
        grids: By activation-tensor index.
    """

    layers: Mapping[int, LayerPlan] = field(default_factory=dict)
    grids: Mapping[int, ActivationGrid] = field(default_factory=dict)

    def with_layers(self, layers: Mapping[int, LayerPlan]) -> Plan:
        """The same plan with some layers replaced."""
        return replace(self, layers={**self.layers, **layers})


@dataclass(slots=True)
class Value:
    """A tensor on its way: real numbers, or codes and their step.

    Attributes:
        data: ``[n, ...]``.
        step: What one code is worth; None for real numbers.
    """

    data: torch.Tensor
    step: float | None = None

    def real(self) -> torch.Tensor:
        """The real numbers."""
        return self.data if self.step is None else self.data * self.step


#: Live values by node name.
State = dict[str, Any]

#: Sees (and may replace) the output of a layer for all chunks at once: ``hook(layer, outputs) -> outputs``.
LayerHook = Callable[[int, list[torch.Tensor]], list[torch.Tensor]]


class Observer:
    """Sees values as they are made; does nothing by itself."""

    def on_input(self, layer: int, values: torch.Tensor) -> None:
        """Real values that a layer reads."""

    def on_tensor(self, tensor: int, values: torch.Tensor) -> None:
        """Real values of an activation tensor, before it is quantized."""


@dataclass(frozen=True, slots=True)
class _Step:
    node: fx.Node
    kind: str
    inputs: tuple[str, ...]
    layer: int | None
    tensor: int | None
    dies: tuple[str, ...]  # values that nobody reads after this step


class Program:
    """The steps of one network.

    Args:
        graph: The network, on the device it shall run on.
    """

    def __init__(self, graph: QuantGraph) -> None:
        self.graph = graph
        self._modules = dict(graph.module.named_modules())
        self.device = next(graph.module.parameters()).device
        ops = Ops(graph.module)
        layer_of = {name: i for i, name in enumerate(graph.layer_nodes)}
        tensor_of = {tensor.node: tensor.index for tensor in graph.tensors}
        nodes = list(graph.module.graph.nodes)
        last_use: dict[str, int] = {}
        for position, node in enumerate(nodes):
            for source in node.all_input_nodes:
                last_use[source.name] = position
        kinds: dict[fx.Node, str] = {}
        for node in nodes:
            kinds[node] = self._kind(node, ops, layer_of, kinds)
        self.steps: list[_Step] = []
        for position, node in enumerate(nodes):
            dies = [s.name for s in dict.fromkeys(node.all_input_nodes) if last_use[s.name] == position]
            if node.name not in last_use and node.op != "output":
                dies.append(node.name)
            self.steps.append(
                _Step(
                    node,
                    kinds[node],
                    tuple(n.name for n in ops.tensor_inputs(node)),
                    layer_of.get(node.name),
                    tensor_of.get(node.name),
                    tuple(dies),
                )
            )
        #: Activation tensor whose values a node holds, through operations that keep its grid.
        self.holds = {n.name: tensor_of[source] for n in nodes if (source := ops.source(n).name) in tensor_of}
        self.position = {step.node.name: i for i, step in enumerate(self.steps)}
        self._float = [self._float_plan(i) for i in range(len(graph.layers))]
        self._constants = self._run_constants()

    def _kind(self, node: fx.Node, ops: Ops, layer_of: Mapping[str, int], kinds: Mapping[fx.Node, str]) -> str:
        if node.op in ("placeholder", "output", "get_attr"):
            return node.op
        if node.name in layer_of:
            return "layer"
        if all(kinds[source] in ("get_attr", "constant") for source in node.all_input_nodes):
            return "constant"
        if not ops.tensor_inputs(node):
            # Something of a size, or one part of a split.
            return "part" if ops.source(node) is not node else "other"
        if "shape" not in node.meta and any(
            user.target is operator.getitem and ops.source(user) is not user for user in node.users
        ):
            return "split"
        if ops.keeps_grid(node):
            return "keeps_grid"
        if ops.keeps_sign(node):
            return "average"
        if ops.is_add(node) and not node.kwargs and len(node.all_input_nodes) == len(node.args) == 2:
            return "add"
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.ReLU) or node.target in (F.relu, torch.relu, "relu"):
            return "relu"
        return "other"

    def _float_plan(self, index: int) -> LayerPlan:
        module = self.graph.layer_module(index)
        bias = None if module.bias is None else module.bias.detach()
        return LayerPlan(layout(module.weight.detach()), None, bias, "float")

    def _run_constants(self) -> State:
        """Parameters read directly, and what is computed from them alone; the same for every candidate."""
        found: State = {}
        for step in self.steps:
            if step.kind == "get_attr":
                value: Any = self.graph.module
                for part in str(step.node.target).split("."):
                    value = getattr(value, part)
                found[step.node.name] = value
            elif step.kind == "constant":
                found[step.node.name] = self._call(step.node, lambda n: found[n.name])
        return found

    def _call(self, node: fx.Node, lookup: Callable[[fx.Node], Any]) -> Any:
        args = fx.node.map_arg(node.args, lookup)
        kwargs = fx.node.map_arg(node.kwargs, lookup)
        if node.op == "call_module":
            return self._modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            # Maps have their channels last here, where `view` cannot flatten them.
            method = "reshape" if node.target == "view" and isinstance(args[0], torch.Tensor) else str(node.target)
            return getattr(args[0], method)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def float_layer(self, index: int) -> LayerPlan:
        """The float plan of a layer."""
        return self._float[index]

    def cuts(self) -> list[str]:
        """Nodes after which no other value is live, in order: what comes after depends on their value alone."""
        live: set[str] = set()
        found = []
        for step in self.steps[:-1]:
            if step.kind in ("get_attr", "constant"):
                continue
            live.add(step.node.name)
            live.difference_update(step.dies)
            if live == {step.node.name} and "shape" in step.node.meta:
                found.append(step.node.name)
        return found

    def start(self, images: torch.Tensor) -> State:
        """The state before the first step.

        Args:
            images: ``[n, channels, height, width]``.
        """
        return {"": Value(layout(images))}

    def advance(
        self,
        states: Sequence[State],
        plan: Plan,
        first: int,
        last: int,
        hook: LayerHook | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Runs steps ``first .. last - 1`` on every state, in place.

        Args:
            states: One for each chunk of images, all at step ``first``.
            plan: The candidate.
            first: Index of the first step.
            last: Index after the last step.
            hook: Sees the outputs of every layer.
            observer: Sees inputs of layers and activation tensors.
        """
        for step in self.steps[first:last]:
            if step.kind in ("get_attr", "constant", "output"):
                continue
            if observer is not None and step.layer is not None:
                for state in states:
                    observer.on_input(step.layer, state[step.inputs[0]].real())
            if step.layer is not None and hook is not None:
                outputs = hook(step.layer, [self._layer(step, state, plan) for state in states])
                for state, output in zip(states, outputs, strict=True):
                    self._keep(step, state, Value(output), plan)
            else:
                for state in states:
                    self._keep(step, state, self._run(step, state, plan), plan)
            if observer is not None and step.tensor is not None:
                for state in states:
                    observer.on_tensor(step.tensor, state[step.node.name].real())

    def _keep(self, step: _Step, state: State, value: Any, plan: Plan) -> None:
        if step.tensor is not None and value.step is None and (grid := plan.grids.get(step.tensor)) is not None:
            value = encode(value.data, grid)
        state[step.node.name] = value
        for name in step.dies:
            state.pop(name, None)

    def _run(self, step: _Step, state: State, plan: Plan) -> Any:
        if step.kind == "layer":
            return Value(self._layer(step, state, plan))
        if step.kind == "placeholder":
            return state.pop("")
        if step.kind in ("keeps_grid", "average"):
            value = state[step.inputs[0]]
            result = self._call(step.node, lambda n: self._lookup(n, state, raw=step.inputs[0]))
            if not isinstance(result, torch.Tensor):
                return result
            if step.kind == "average" and value.step is not None:
                return Value(result * value.step)
            return Value(result, value.step)
        if step.kind == "split":
            whole = state[step.inputs[0]]
            parts = self._call(step.node, lambda n: self._lookup(n, state, raw=step.inputs[0]))
            return tuple(Value(part, whole.step) for part in parts)
        if step.kind == "part":
            source = step.node.all_input_nodes[0].name
            return self._call(step.node, lambda n: self._lookup(n, state, raw=source))
        if step.kind == "add":
            first, second = (state[name] for name in step.inputs) if len(step.inputs) == 2 else (None, None)
            if first is not None and second is not None and first.data.shape == second.data.shape:
                if first.step is not None:
                    first, second = second, first
                if first.step is None:
                    alpha = 1.0 if second.step is None else second.step
                    return Value(torch.add(first.data, second.data, alpha=alpha))
        if step.kind == "relu" and step.tensor is not None and (grid := plan.grids.get(step.tensor)) is not None:
            value = state[step.inputs[0]]
            if grid.zero_point == 0 and value.step is None:
                return value  # clipping at code 0 does it
        result = self._call(step.node, lambda n: self._lookup(n, state))
        return Value(result) if isinstance(result, torch.Tensor) else result

    def _lookup(self, node: fx.Node, state: State, raw: str | None = None) -> Any:
        if node.name in self._constants:
            return self._constants[node.name]
        value = state[node.name]
        if isinstance(value, Value):
            return value.data if node.name == raw else value.real()
        if isinstance(value, tuple) and node.name != raw:
            return tuple(part.real() if isinstance(part, Value) else part for part in value)
        return value

    def _layer(self, step: _Step, state: State, plan: Plan) -> torch.Tensor:
        index = step.layer if step.layer is not None else -1
        module = self.graph.layer_module(index)
        layer = plan.layers.get(index) or self._float[index]
        value: Value = state[step.inputs[0]]
        if layer.multiplier is None:
            return linear(module, value.real(), layer.weight, layer.bias)
        output = linear(module, value.data, layer.weight, None)
        scale = layer.multiplier if value.step is None else layer.multiplier * value.step
        output = output.mul_(per_channel(scale, module))
        return output if layer.bias is None else output.add_(per_channel(layer.bias, module))

    def logits(self, images: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, height, width]``."""
        state = self.start(images)
        self.advance([state], plan, 0, len(self.steps))
        return self.result(state)

    def result(self, state: State) -> torch.Tensor:
        """Logits in a state in which every step was run."""
        value: torch.Tensor = state[self.steps[-1].node.all_input_nodes[0].name].real()
        return value

    def chunk_size(self, batch_size: int) -> int:
        """Images that are run at a time: no more than fit the processor's cache, on a GPU a whole batch."""
        if self.device.type != "cpu":
            return batch_size
        shapes = [node.meta["shape"] for node in self.graph.module.graph.nodes if "shape" in node.meta]
        largest = max(4 * torch.Size(shape[1:]).numel() for shape in shapes)
        chunk = 8
        while chunk * 2 <= batch_size and chunk * 2 * largest <= CHUNK_BYTES:
            chunk *= 2
        return min(chunk, batch_size)


def layout(tensor: torch.Tensor) -> torch.Tensor:
    """The memory layout in which convolutions are fastest: channels last for maps and kernels."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.contiguous()


def linear(module: nn.Module, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What ``module`` (a convolution or linear layer) computes with another weight and bias."""
    if isinstance(module, nn.Conv2d):
        return F.conv2d(values, weight, bias, module.stride, module.padding, module.dilation, module.groups)
    return F.linear(values, weight, bias)


def per_channel(vector: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """A vector ``[out_channels]`` in the shape in which it meets the output of a layer."""
    return vector.reshape(-1, 1, 1) if isinstance(module, nn.Conv2d) else vector


def encode(values: torch.Tensor, grid: ActivationGrid) -> Value:
    """Centred codes of real values (halves to even)."""
    codes = (values / grid.scale).round_().clamp_(grid.low - grid.zero_point, grid.high - grid.zero_point)
    return Value(codes, grid.scale)
