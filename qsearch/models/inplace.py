"""In-place operations become out-of-place ones; they would corrupt recorded activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx


def functionalize(traced: fx.GraphModule) -> None:
    """Rewrites ``x.relu_()``, ``F.relu(x, inplace=True)`` and in-place modules; later readers of x read the result.

    What is written through a view and read through its base is not followed; :func:`qsearch.models.build_graph`
    compares the outputs.

    Args:
        traced: The graph; changed.
    """
    in_place = {name for name, child in traced.named_modules() if getattr(child, "inplace", False) is True}
    for name in in_place:
        traced.get_submodule(name).inplace = False  # type: ignore[assignment]
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if not (node.op == "call_module" and node.target in in_place) and not _make_out_of_place(node):
            continue
        changed = node.args[0] if node.args else node.kwargs.get("input")
        if isinstance(changed, fx.Node):
            for user in list(changed.users):
                if order[user] > order[node]:
                    user.replace_input_with(changed, node)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.recompile()


def _make_out_of_place(node: fx.Node) -> bool:
    """Replaces an in-place function or method by its twin; False when the node does not work in place."""
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    if node.op == "call_method":
        name = _without_underscore(str(node.target))
        # Not every such method computes something: of requires_grad_ the twin is an attribute.
        if name and callable(getattr(torch.Tensor, name, None)):
            node.target = name
            return True
    elif node.op == "call_function" and (twin := _twin(node.target)) is not None:
        node.target = twin
        return True
    return False


def _without_underscore(name: str) -> str | None:
    return name[:-1] if name.endswith("_") and not name.endswith("__") else None


def _twin(function: Any) -> Callable[..., Any] | None:
    """``torch.relu`` of ``torch.relu_``; None for a function that does not work in place."""
    name = getattr(function, "__name__", "")
    short = _without_underscore(name)
    for namespace in (torch, F):
        if short and getattr(namespace, name, None) is function:
            twin: Callable[..., Any] | None = getattr(namespace, short, None)
            return twin
    return None
