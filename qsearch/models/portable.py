"""A traced network that travels between processes with its node names intact.

``fx.GraphModule`` pickles itself as source code that is traced again on arrival, which renames nodes and fails for some
functions. Here the nodes themselves travel, and the submodules they call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

#: What was found out about a node, and is not found out again on arrival.
_META = ("shape", "order")


@dataclass(frozen=True, slots=True)
class _Ref:
    """Stands for a node in the arguments of another."""

    name: str


def pack(module: fx.GraphModule) -> dict[str, Any]:
    """Takes a traced module apart into plain data and ordinary modules."""
    nodes = [
        (
            node.op,
            node.name,
            node.target,
            _refer(node.args),
            _refer(node.kwargs),
            {key: node.meta[key] for key in _META if key in node.meta},
        )
        for node in module.graph.nodes
    ]
    called = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    read = [str(node.target) for node in module.graph.nodes if node.op == "get_attr"]
    return {
        "nodes": nodes,
        "modules": {name: module.get_submodule(name) for name in dict.fromkeys(called)},
        "attributes": {name: _get(module, name) for name in dict.fromkeys(read)},
    }


def unpack(packed: dict[str, Any]) -> fx.GraphModule:
    """Inverse of :func:`pack`."""
    root = nn.Module()
    for name, child in packed["modules"].items():
        parent, leaf = make_parent(root, name)
        parent.add_module(leaf, child)
    for name, value in packed["attributes"].items():
        parent, leaf = make_parent(root, name)
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            parent.register_buffer(leaf, value)
        else:
            setattr(parent, leaf, value)
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs, meta in packed["nodes"]:
        made[name] = graph.create_node(op, target, _resolve(args, made), _resolve(kwargs, made), name=name)
        made[name].meta.update(meta)
    return fx.GraphModule(root, graph).eval()


def make_parent(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the last part of a dotted name, made where it is missing, and that part."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    return root, leaf


def _get(module: nn.Module, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _refer(value: Any) -> Any:
    """Arguments with every node replaced by a reference."""
    reference: Callable[[fx.Node], Any] = lambda node: _Ref(node.name)  # noqa: E731
    return fx.map_arg(value, reference)


def _resolve(value: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(value, _Ref):
        return made[value.name]
    if isinstance(value, tuple):
        return tuple(_resolve(v, made) for v in value)
    if isinstance(value, list):
        return [_resolve(v, made) for v in value]
    if isinstance(value, dict):
        return {k: _resolve(v, made) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_resolve(v, made) for v in (value.start, value.stop, value.step)))
    return value
