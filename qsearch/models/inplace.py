"""In-place operations become out-of-place ones; they would corrupt recorded activations and swapped-in weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx


def functionalize(traced: fx.GraphModule) -> None:
    """Rewrites ``x.relu_()``, ``F.relu(x, inplace=True)`` and in-place modules; later readers of x read the result.

    What is written through a view and read through its base cannot be followed (the caller compares outputs).

    Args:
        traced: The graph, with shapes recorded; changed.
    """
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if not _make_out_of_place(traced, node):
            continue
        changed = node.args[0] if node.args else node.kwargs.get("input")
        if isinstance(changed, fx.Node):
            for user in list(changed.users):
                if order[user] > order[node]:
                    user.replace_input_with(changed, node)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.recompile()


def _make_out_of_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    """True when the node worked in place; it no longer does."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        if getattr(module, "inplace", False) is not True:
            return False
        for reader in traced.graph.find_nodes(op="call_module", target=node.target):
            reader.meta["was_in_place"] = True  # a module may be called more than once
        module.inplace = False  # type: ignore[assignment]
    elif node.op == "call_method" and _is_method(_twin_name(node.target)):
        node.target = _twin_name(node.target)
        return True
    elif node.op == "call_function" and (twin := _twin_function(node.target)) is not None:
        node.target = twin
        return True
    elif node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    return False
