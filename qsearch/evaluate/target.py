"""What is evaluated: the folded network and the splits it is scored on. Travels once to every worker."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from qsearch.data import Split, load_datasets, read_splits
from qsearch.errors import DataError
from qsearch.models import QuantGraph, build_graph, load_network
from qsearch.models.unit_rules import read_unit_rule
from qsearch.quant.equalize import equalize
from qsearch.spec import DataSpec, ModelSpec, QuantizerSpec
from qsearch.types import digest


@dataclass(frozen=True)
class Target:
    """A network and its data.

    Attributes:
        graph: The traced and folded network.
        splits: ``calibration``, ``validation`` and ``test``.
        batch_size: Images a forward pass.
        quantizer: How it is quantized.
    """

    graph: QuantGraph
    splits: Mapping[str, Split]
    batch_size: int
    quantizer: QuantizerSpec = field(default_factory=QuantizerSpec)

    def to(self, device: torch.device) -> Target:
        """The same target with the network on ``device`` (images move batch by batch)."""
        if device.type == "cpu":
            return self
        module = copy.deepcopy(self.graph.module).to(device)
        return replace(self, graph=replace(self.graph, module=module))

    def data_digest(self, split: str) -> str:
        """Digest of the calibration images and of one scored split."""
        return digest([self.splits["calibration"].digest, self.splits[split].digest])


def build_target(model: ModelSpec, data: DataSpec, quantizer: QuantizerSpec | None = None) -> Target:
    """Loads data and network of a study, traces the network and checks that the two fit.

    Args:
        model: The ``model`` entry of the study.
        data: The ``data`` entry of the study.
        quantizer: The ``quantizer`` entry of the study; its defaults when left out.

    Raises:
        DataError: The data is malformed or its labels do not fit the network.
        ModelError: The network cannot be built or traced.
        PluginError: A source does not exist.
    """
    quantizer = quantizer or QuantizerSpec()
    datasets = load_datasets(data.source, data.arguments)
    limits = {"calibration": data.calibration, "validation": data.validation, "test": data.test}
    splits = read_splits(datasets, limits, data.source)
    network = load_network(model.source, model.weights, model.arguments, datasets)
    with torch.no_grad():
        example = splits["calibration"].images[:2]
        graph = build_graph(network, example, quantizer.add_policy, read_unit_rule(quantizer.units))
        if quantizer.equalize:
            graph = equalize(graph)
    highest = max(int(split.labels.max()) for split in splits.values())
    if highest >= graph.classes:
        raise DataError(
            f"the data has class {highest}, but the network returns {graph.classes} logits",
            "are network and data made for the same classes?",
        )
    return Target(graph, splits, data.batch_size, quantizer)
