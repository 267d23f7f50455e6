"""Reconstruction units: single-entry single-exit regions that are reconstructed as one.

The automatic rule, in this order (BRECQ, Li et al. 2021, section 3.2, calls the first two blocks):

1. A residual unit: from where the two summands of an add last were one value to the add. The smaller of two that
   overlap wins.
2. A module, the innermost first, whose layers are two to four (a squeeze-excite counts as one), none of them in a unit
   yet, and which is such a region: an inverted residual without skip, a fire module, a dense layer. The first and the
   last layer of the network are never grouped so.
3. A layer by itself.

The non-linearities that follow belong to the unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from qsearch.errors import ModelError
from qsearch.models.ops import Ops
from qsearch.models.regions import Region, Regions

#: Layers that the modules of rule 2 hold.
_FEWEST, _MOST = 2, 4

#: Layers between a value and the product that it is scaled in, for them to be a squeeze-excite.
_GATE_LAYERS = 2


@dataclass(frozen=True, slots=True)
class Unit:
    """One reconstruction unit.

    Attributes:
        name: Common module path of its layers, or the layer's own.
        entry: Name of the node whose value enters the unit.
        exit: Name of the node whose value leaves it.
        nodes: Names of the nodes inside, in graph order, the entry left out.
        layers: Indices of the layers inside.
        entry_tensor: Index of the activation tensor that enters, possibly through operations that keep its grid;
            None when the entry is not quantized.
    """

    name: str
    entry: str
    exit: str
    nodes: tuple[str, ...]
    layers: tuple[int, ...]
    entry_tensor: int | None


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that are to be one unit, whatever the automatic rule says.

    Attributes:
        layers: fx node names of the layers.
        module: Path of the module whose layers they are; empty when they were named one by one.
    """

    layers: tuple[str, ...]
    module: str = ""


def module_paths(node: fx.Node) -> list[str]:
    """Paths of the modules in whose forward a node was recorded, the outermost first; a called module is the last."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def find_units(
    graph: fx.Graph,
    layer_index: Mapping[str, int],
    tensor_index: Mapping[str, int],
    ops: Ops,
    groups: Sequence[Group] = (),
    automatic: bool = True,
) -> list[Unit]:
    """Splits a graph into reconstruction units that together hold every layer exactly once.

    Args:
        graph: The folded graph, with shapes recorded and ``meta["order"]`` set.
        layer_index: fx node name to layer index, for the quantizable layers.
        tensor_index: fx node name to activation-tensor index.
        ops: The classifier of its nodes.
        groups: Units that the user asked for; no layer in two of them.
        automatic: Group the other layers by the automatic rule, too; False leaves each by itself.

    Raises:
        ModelError: A group of the user is no region with one entry and one exit.
    """
    finder = _Finder(graph, layer_index, ops)
    for group in groups:
        finder.force(group)
    if automatic:
        finder.add_residual_units()
        finder.add_modules()
    finder.add_single_layers()
    units = []
    for region in finder.found:
        layers = tuple(layer_index[node.name] for node in region.nodes if node.name in layer_index)
        units.append(
            Unit(
                name=_common_name([str(node.target) for node in region.nodes if node.name in layer_index]),
                entry=region.entry.name,
                exit=region.nodes[-1].name,
                nodes=tuple(node.name for node in region.nodes),
                layers=layers,
                entry_tensor=tensor_index.get(ops.source(region.entry).name),
            )
        )
    return sorted(units, key=lambda unit: unit.layers)


class _Finder:
    """Collects disjoint regions, each with the non-linearities that follow it."""

    def __init__(self, graph: fx.Graph, layer_index: Mapping[str, int], ops: Ops) -> None:
        self._graph = graph
        self._ops = ops
        self._layers = [node for node in graph.nodes if node.name in layer_index]
        self._regions = Regions(graph)
        self._module_nodes: dict[str, set[fx.Node]] = {}
        for node in graph.nodes:
            for path in module_paths(node) if node in self._regions else ():
                self._module_nodes.setdefault(path, set()).add(node)
        self._taken: set[fx.Node] = set()
        self.found: list[Region] = []

    def force(self, group: Group) -> None:
        """Makes a group of the user a unit."""
        layers = {node for node in self._layers if node.name in group.layers}
        seeds = [layers, self._module_nodes[group.module]] if group.module else [layers]
        why = ""
        for seed in reversed(seeds):
            region = self._regions.smallest(seed)
            if region is None:
                why = why or "no region of the network with one entry and one exit holds them"
            elif others := [str(n.target) for n in self._held(region) if n not in layers]:
                why = why or f"the smallest region with one entry and one exit also holds {_listed(others)}"
            elif not self._taken.isdisjoint(region.nodes):
                why = why or "the smallest region with one entry and one exit overlaps another unit"
            else:
                self._take(region)
                return
        names = _listed([str(node.target) for node in self._layers if node in layers])
        where = f" of module {group.module!r}" if group.module else ""
        raise ModelError(
            f"the layers {names}{where} cannot be one reconstruction unit: {why}",
            "name the other layers, too, or leave some out; `qsearch inspect` prints the units that are found by "
            "themselves",
        )

    def add_residual_units(self) -> None:
        """Rule 1."""
        adds = [node for node in self._graph.nodes if node in self._regions and self._ops.is_add(node)]
        regions = [region for add in adds if (region := self._regions.between(add)) is not None]
        for region in sorted(regions, key=lambda region: len(region.nodes)):
            if self._held(region) and self._taken.isdisjoint(region.nodes):
                self._take(region)

    def add_modules(self) -> None:
        """Rule 2."""
        gates = self._gates()
        alone = {self._layers[0], self._layers[-1]}
        layers_of: dict[str, set[fx.Node]] = {}
        for layer in self._layers:
            for path in module_paths(layer)[:-1]:
                layers_of.setdefault(path, set()).add(layer)
        for path in sorted(layers_of, key=lambda path: path.count("."), reverse=True):
            layers = layers_of[path]
            count = len(layers) - sum(len(gate) - 1 for gate in gates if gate <= layers)
            if not _FEWEST <= count <= _MOST or not layers.isdisjoint(self._taken | alone):
                continue
            # What the module does before its layers may join many values (a dense layer); they are left outside then.
            for seed in (self._module_nodes[path], layers):
                region = self._regions.smallest(seed)
                if region and set(self._held(region)) == layers and self._taken.isdisjoint(region.nodes):
                    self._take(region)
                    break

    def add_single_layers(self) -> None:
        """Rule 3."""
        for node in self._layers:
            if node not in self._taken:
                self._take(Region(self._ops.tensor_inputs(node)[0], (node,)))

    def _take(self, region: Region) -> None:
        nodes = (*region.nodes, *self._tail(region.nodes[-1]))
        self._taken.update(nodes)
        self.found.append(Region(region.entry, nodes))

    def _tail(self, node: fx.Node) -> Iterator[fx.Node]:
        """Non-linearities that follow a node and nobody else reads the value before."""
        while len(node.users) == 1:
            node = next(iter(node.users))
            if node in self._taken or not self._ops.is_activation(node) or len(self._ops.tensor_inputs(node)) != 1:
                return
            yield node

    def _held(self, region: Region) -> list[fx.Node]:
        inside = set(region.nodes)
        return [node for node in self._layers if node in inside]

    def _gates(self) -> list[set[fx.Node]]:
        """The layers of every squeeze-excite: between a value and the product of the value with what they make."""
        gates = []
        for node in self._graph.nodes:
            if node in self._regions and self._ops.is_product(node) and len(self._ops.tensor_inputs(node)) == 2:
                region = self._regions.between(node)
                if region is not None and region.entry in node.all_input_nodes:
                    gate = set(self._held(region))
                    if 1 <= len(gate) <= _GATE_LAYERS:
                        gates.append(gate)
        return gates


def _common_name(names: list[str]) -> str:
    parts = [name.split(".") for name in names]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common) or "+".join(names)


def _listed(names: list[str], most: int = 4) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
