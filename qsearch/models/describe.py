"""What a traced network consists of, for people and for JSON: layers, activation tensors, units, what stays float."""

from __future__ import annotations

from typing import Any

from qsearch.models.graph import QuantGraph


def describe_graph(graph: QuantGraph) -> dict[str, Any]:
    """Returns a JSON-ready report of a network.

    Args:
        graph: The network.

    Returns:
        ``input_shape``, ``classes``, ``digest``, ``float_parameters``, ``notes`` and three tables:

        - ``layers``: ``index``, ``name``, ``kind`` (``conv``, ``depthwise``, ``grouped`` or ``linear``),
          ``in_channels``, ``out_channels``, ``kernel``, ``stride``, ``groups``, ``in_size``, ``out_size``, ``tensor``
          (index of the tensor it reads), ``unit`` (index), ``macs`` (one image), ``weights`` (their number).
        - ``tensors``: ``index``, ``node``, ``unsigned``, ``group`` (tensors of one group have one bit-width),
          ``readers`` (names of the layers that read it).
        - ``units``: ``index``, ``name``, ``entry`` and ``exit`` (nodes), ``entry_tensor``, ``layers`` (names).
    """
    unit_of = {layer: index for index, unit in enumerate(graph.units) for layer in unit.layers}
    return {
        "input_shape": list(graph.input_shape),
        "classes": graph.classes,
        "digest": graph.digest,
        "float_parameters": graph.float_parameters,
        "layers": [
            {
                "index": index,
                "name": layer.name,
                "kind": "depthwise" if layer.is_depthwise else "grouped" if layer.groups > 1 else layer.kind,
                "in_channels": layer.in_channels,
                "out_channels": layer.out_channels,
                "kernel": list(layer.kernel),
                "stride": list(layer.stride),
                "groups": layer.groups,
                "in_size": list(layer.in_size),
                "out_size": list(layer.out_size),
                "tensor": layer.tensor,
                "unit": unit_of[index],
                "macs": layer.macs,
                "weights": layer.weight_count,
            }
            for index, layer in enumerate(graph.layers)
        ],
        "tensors": [
            {
                "index": tensor.index,
                "node": tensor.node,
                "unsigned": tensor.unsigned,
                "group": tensor.group,
                "readers": [layer.name for layer in graph.layers if layer.tensor == tensor.index],
            }
            for tensor in graph.tensors
        ],
        "units": [
            {
                "index": index,
                "name": unit.name,
                "entry": unit.entry,
                "exit": unit.exit,
                "entry_tensor": unit.entry_tensor,
                "layers": [graph.layers[layer].name for layer in unit.layers],
            }
            for index, unit in enumerate(graph.units)
        ],
        "notes": list(graph.notes),
    }
