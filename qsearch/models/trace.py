"""From a user's network to a folded fx graph: tracing with errors that name a module, batch-norm folding, shapes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qsearch.errors import ModelError
from qsearch.models.ops import METHOD_OUT_OF_PLACE, OUT_OF_PLACE

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
    """Traces a network symbolically, in evaluation mode, without in-place operations.

    The caller's module is not changed.

    Raises:
        ModelError: It cannot be traced; names the innermost module that failed.
    """
    module = copy.deepcopy(module).eval()
    for child in module.modules():
        if getattr(child, "inplace", False) is True:
            child.inplace = False  # type: ignore[assignment]
    tracer = _NamingTracer()
    try:
        graph = tracer.trace(module)
    except Exception as error:
        where = f"module {tracer.failed_in!r}" if tracer.failed_in else "its top-level forward"
        kind = type(tracer.root.get_submodule(tracer.failed_in)).__name__ if tracer.failed_in else type(module).__name__
        raise ModelError(f"the network cannot be traced: {where} ({kind}): {error}", _TRACE_HINT) from error
    traced = fx.GraphModule(module, graph)
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    extra = [n.name for n in placeholders[1:] if not n.args]
    if not placeholders or extra:
        raise ModelError(
            f"the network takes {len(placeholders)} inputs; one image tensor is expected",
            "wrap it in a module whose forward takes the image alone",
        )
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = OUT_OF_PLACE.get(node.target, node.target)
        elif node.op == "call_method":
            node.target = METHOD_OUT_OF_PLACE.get(str(node.target), node.target)
        if node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}
    graph.eliminate_dead_code()
    graph.lint()
    traced.recompile()
    return traced


def _calls(traced: fx.GraphModule) -> dict[str, list[fx.Node]]:
    calls: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    return calls


def fold_batch_norm(traced: fx.GraphModule) -> list[str]:
    """Folds every batch norm that directly follows a convolution or linear layer, in place.

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
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            kept.append(str(node.target))
            continue
        foldable = (
            len(source.users) == 1
            and len(calls[str(source.target)]) == 1
            and len(calls[str(node.target)]) == 1
            and norm.running_mean is not None
        )
        if not foldable:
            kept.append(str(node.target))
            continue
        fused = fuse_conv_bn_eval(layer, norm) if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval(layer, norm)
        _set_module(traced, str(source.target), fused)
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return kept


def _set_module(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


class _ShapeRecorder(fx.Interpreter):
    """Writes the shape of every tensor value into ``node.meta['shape']``."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor) and n.op != "get_attr":
            n.meta["shape"] = tuple(result.shape)
        return result


@torch.no_grad()
def record_shapes(traced: fx.GraphModule, example: torch.Tensor) -> None:
    """Runs one batch and notes the shape of every value.

    Args:
        traced: The graph.
        example: Images, float, ``[n, channels, height, width]``.

    Raises:
        ModelError: The network does not accept such images, or does not return ``[n, classes]``.
    """
    try:
        output = _ShapeRecorder(traced).run(example)
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
