"""From a user's network to a folded fx graph: tracing with errors that name a module, batch-norm folding, shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qsearch.errors import ModelError
from qsearch.models.plain import copy_network, has_hooks, is_plain_layer

_TRACE_HINT = (
    "control flow that depends on tensor values cannot be traced; rewrite that forward without it, or wrap the part "
    "in a module of torch.nn that torch.fx treats as a leaf"
)


class _NamingTracer(fx.Tracer):
    """Remembers the innermost module in which tracing failed."""

    def __init__(self) -> None:
        super().__init__()
        self.failed_in: str | None = None

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = self.path_of_module(m)
            raise


def trace(module: nn.Module) -> fx.GraphModule:
    """Traces a copy of a network symbolically, in evaluation mode.

    Raises:
        ModelError: It cannot be copied or traced; names the innermost module that failed.
    """
    module = copy_network(module)
    tracer = _NamingTracer()
    try:
        graph = tracer.trace(module)
    except Exception as error:
        where = f"module {tracer.failed_in!r}" if tracer.failed_in else "its top-level forward"
        kind = type(tracer.root.get_submodule(tracer.failed_in)).__name__ if tracer.failed_in else type(module).__name__
        raise ModelError(f"the network cannot be traced: {where} ({kind}): {error}", _TRACE_HINT) from error
    _drop_stochastic_depth(graph)
    traced = fx.GraphModule(module, graph).eval()
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    extra = [n.name for n in placeholders[1:] if not n.args]
    if not placeholders or extra:
        raise ModelError(
            f"the network takes {len(placeholders)} inputs; one image tensor is expected",
            "wrap it in a module whose forward takes the image alone",
        )
    return traced


def _drop_stochastic_depth(graph: fx.Graph) -> None:
    """Removes torchvision's function of that name, which does nothing in evaluation mode and cannot travel alone."""
    for node in list(graph.nodes):
        if getattr(node.target, "__module__", "") == "torchvision.ops.stochastic_depth":
            values = {**dict(zip(("input", "p", "mode", "training"), node.args, strict=False)), **node.kwargs}
            if values.get("training", True) is False and isinstance(source := values["input"], fx.Node):
                node.replace_all_uses_with(source)
                graph.erase_node(node)


def _calls(traced: fx.GraphModule) -> dict[str, list[fx.Node]]:
    calls: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    return calls


def fold_batch_norm(traced: fx.GraphModule) -> list[str]:
    """Folds every batch norm that directly follows a convolution or linear layer, in place; shapes must be recorded.

    Uses running statistics and eps: ``w' = w * gamma / sqrt(var + eps)``, ``b' = (b - mean) * gamma /
    sqrt(var + eps) + beta``.

    Returns:
        Names of the batch norms that could not be folded (they stay, in float).
    """
    modules = dict(traced.named_modules())
    calls = _calls(traced)
    kept = []
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.modules.batchnorm._BatchNorm):
            continue
        norm = modules[str(node.target)]
        source = node.args[0]
        layer = modules.get(str(source.target)) if isinstance(source, fx.Node) and source.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not is_plain_layer(layer) or has_hooks(norm):
            kept.append(str(node.target))
            continue
        foldable = (
            len(source.users) == 1
            and len(calls[str(source.target)]) == 1
            and len(calls[str(node.target)]) == 1
            and norm.running_mean is not None
            # The channels of a batch norm are axis 1; those of a linear layer are the last axis.
            and (isinstance(layer, nn.Conv2d) or len(source.meta["shape"]) == 2)
        )
        if not foldable:
            kept.append(str(node.target))
            continue
        fused = fuse_conv_bn_eval(layer, norm) if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval(layer, norm)
        _set_module(traced, str(source.target), fused)
        modules[str(source.target)] = fused  # another batch norm may follow
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return kept


def untie_layers(traced: fx.GraphModule) -> list[str]:
    """Gives every layer parameters of its own, in place: layers that share them get different bit-widths and scales.

    Returns:
        What the user should know about it.
    """
    owners: dict[nn.Parameter, str] = {}
    notes = []
    for node in traced.graph.nodes:
        if node.op == "get_attr" and isinstance(value := _attribute(traced, str(node.target)), nn.Parameter):
            owners.setdefault(value, str(node.target).rpartition(".")[0])
    for name in _calls(traced):
        module = traced.get_submodule(name)
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            owner = owners.setdefault(parameter, name)
            if owner == name or not (_is_layer(module) or _is_layer(traced.get_submodule(owner))):
                continue
            setattr(module, leaf, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
            if leaf == "weight" and _is_layer(module):
                notes.append(f"{name!r} shares its weight with {owner!r}: quantized and stored apart from it")
    return notes


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def _attribute(root: nn.Module, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(path), leaf)


def unused_modules(network: nn.Module, traced: fx.GraphModule) -> list[str]:
    """Outermost modules of a network that hold parameters but do not reach its logits, such as auxiliary heads.

    Args:
        network: The network that was traced.
        traced: Its trace without dead code, before anything was folded.
    """
    used = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    used |= {str(node.target).rpartition(".")[0] for node in traced.graph.nodes if node.op == "get_attr"}
    touched = {path for name in used for path in _prefixes(name)}
    names = [
        name
        for name, child in network.named_modules()
        if any(True for _ in child.parameters(recurse=False)) and used.isdisjoint(_prefixes(name))
    ]
    outermost = [next(path for path in _prefixes(name) if path not in touched) for name in names if name]
    return list(dict.fromkeys(outermost))


def _prefixes(name: str) -> list[str]:
    """``["a", "a.b", "a.b.c"]`` of ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _set_module(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


class _ShapeRecorder(fx.Interpreter):
    """Writes the shape of every tensor that depends on the image's values into ``node.meta['shape']``."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self._from_image: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta.pop("shape", None)
        if n.op == "placeholder" or not self._from_image.isdisjoint(n.all_input_nodes):
            if isinstance(result, torch.Tensor):
                n.meta["shape"] = tuple(result.shape)
                self._from_image.add(n)
            elif isinstance(result, tuple | list) and any(isinstance(part, torch.Tensor) for part in result):
                self._from_image.add(n)  # split, chunk, ...; sizes are tuples too, but of numbers
        return result


@torch.no_grad()
def record_shapes(traced: fx.GraphModule, example: torch.Tensor) -> torch.Tensor:
    """Runs one batch and notes the shape of every value that depends on the image.

    Args:
        traced: The graph.
        example: Images, float, ``[n, channels, height, width]``.

    Returns:
        The logits ``[n, classes]``.

    Raises:
        ModelError: The network does not accept such images, or does not return ``[n, classes]``.
    """
    try:
        output = _ShapeRecorder(traced).run(example.clone())
    except Exception as error:
        raise ModelError(
            f"the network fails on a batch of shape {tuple(example.shape)}: {error}",
            "do the images of the data have the channels and size that the network was made for?",
        ) from error
    if not isinstance(output, torch.Tensor) or output.dim() != 2 or output.shape[0] != example.shape[0]:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(
            f"the network returns {got}; logits of shape [batch, classes] are expected",
            "wrap it in a module that returns only the classification logits",
        )
    return output
