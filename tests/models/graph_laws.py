"""What holds for the graph of any network; checked on zoo networks and on random ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from qsearch.models import QuantGraph, Unit


def node_values(graph: QuantGraph, x: torch.Tensor) -> dict[str, Any]:
    """Value of every node of the float network."""
    values: dict[str, Any] = {}

    class Interpreter(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

    with torch.no_grad():
        Interpreter(graph.module, garbage_collect_values=False).run(x)
    return values


def run_unit(graph: QuantGraph, unit: Unit, entry: torch.Tensor) -> Any:
    """Computes the exit of a unit from nothing but the value of its entry (and parameters)."""
    nodes = {node.name: node for node in graph.module.graph.nodes}
    interpreter = fx.Interpreter(graph.module, garbage_collect_values=False)
    interpreter.env = {nodes[unit.entry]: entry}

    def run(node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source not in interpreter.env:
                assert source.op != "placeholder", f"{unit.name} reads the image past its entry"
                assert source.name not in graph.layer_nodes, f"{unit.name} reads {source} past its entry"
                run(source)
        interpreter.env[node] = interpreter.run_node(node)

    with torch.no_grad():
        for name in unit.nodes:
            run(nodes[name])
    return interpreter.env[nodes[unit.exit]]


def check_units(graph: QuantGraph) -> None:
    """Every layer lies in exactly one unit; a unit has one entry, a tensor, and one exit."""
    assert sorted(layer for unit in graph.units for layer in unit.layers) == list(range(len(graph.layers)))
    nodes = {node.name: node for node in graph.module.graph.nodes}
    order = {name: i for i, name in enumerate(nodes)}
    inside = [name for unit in graph.units for name in unit.nodes]
    assert len(inside) == len(set(inside))
    for unit in graph.units:
        assert all(order[a] < order[b] for a, b in pairwise(unit.nodes))
        assert unit.exit == unit.nodes[-1]
        assert unit.entry not in unit.nodes
        assert "shape" in nodes[unit.entry].meta
        assert {graph.layer_nodes[layer] for layer in unit.layers} == set(unit.nodes) & set(graph.layer_nodes)
        for name in unit.nodes:
            for source in nodes[name].all_input_nodes:
                assert source.name in (*unit.nodes, unit.entry) or source.op == "get_attr", (unit, name)
            if name != unit.exit:
                assert {user.name for user in nodes[name].users} <= set(unit.nodes), (unit, name)
        if unit.entry_tensor is not None:
            assert unit.entry_tensor in {tensor.index for tensor in graph.tensors}


def check_graph(graph: QuantGraph, network: nn.Module, x: torch.Tensor) -> None:
    """The laws of a graph.

    Args:
        graph: The graph.
        network: What it was built from, in evaluation mode.
        x: Images that it was not built with.
    """
    with torch.no_grad():
        expected = network(x.clone())
    values = node_values(graph, x)
    (output,) = [node for node in graph.module.graph.nodes if node.op == "output"]
    assert float((values[output.name] - expected).abs().max()) <= 1e-4 * float(expected.abs().max())

    check_units(graph)
    for unit in graph.units:
        torch.testing.assert_close(run_unit(graph, unit, values[unit.entry]), values[unit.exit])

    named = [note.split("'")[1] for note in graph.notes if "'" in note]
    layers = {layer.name: layer for layer in graph.layers}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert name in layers or any(
                f"{name}.".startswith(f"{one}.") or one.startswith(f"{name}.") for one in named
            )
            if name in layers and isinstance(module, nn.Conv2d):
                assert layers[name].groups == module.groups
                assert layers[name].is_depthwise == (module.groups == module.in_channels > 1)

    # Layers that are handed the very same values read one activation tensor.
    nodes = {node.name: node for node in graph.module.graph.nodes}
    tensor_of: dict[int, int] = {}
    for layer, name in zip(graph.layers, graph.layer_nodes, strict=True):
        storage = values[nodes[name].all_input_nodes[0].name].untyped_storage().data_ptr()
        assert tensor_of.setdefault(storage, layer.tensor) == layer.tensor, layer.name
    for tensor in graph.tensors:
        if tensor.unsigned:
            assert float(values[tensor.node].min()) >= 0, tensor
