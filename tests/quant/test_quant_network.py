"""The network whose bits can be switched, and units cut out of it."""

from __future__ import annotations

from collections.abc import Mapping

import nets
import pytest
import torch
from torch import fx, nn

from qsearch.models import QuantGraph, build_graph
from qsearch.models.digits_resnet import DigitsResNet
from qsearch.models.torchvision_compat import import_torchvision
from qsearch.quant import (
    ActivationGrid,
    QuantizedNetwork,
    Recorder,
    WeightGrid,
    extract_unit,
    sample_activations,
    search_activation_grid,
)
from qsearch.quant.network import ActivationQuantizer, quantizer_name

CPU = torch.device("cpu")


class Scaled(nn.Module):
    """A residual block whose branch is scaled by what is computed from a parameter alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(-1, 1, 4))
        self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head(x + self.conv(x) * self.gain.exp().view(1, 4, 1, 1))


def torchvision(name: str) -> nn.Module:
    network: nn.Module = import_torchvision().models.get_model(name, weights=None, num_classes=5)
    return network


NETWORKS = {
    "digits": (lambda: DigitsResNet(3), 8),
    "residual": (nets.Residual, 8),
    "scaled": (Scaled, 8),
    "pooled": (nets.SharedEntry, 8),
    "resnet18": (lambda: torchvision("resnet18"), 32),
    "mobilenet_v2": (lambda: torchvision("mobilenet_v2"), 32),
}


def make(name: str, policy: str = "after_relu") -> tuple[QuantGraph, torch.Tensor]:
    build, size = NETWORKS[name]
    x = nets.images(8, size=size)
    return build_graph(nets.randomize(build()), x[:2], policy), x


def settings(
    graph: QuantGraph, x: torch.Tensor, bits: int
) -> tuple[dict[int, torch.Tensor], dict[int, ActivationGrid]]:
    weights = {}
    for i in range(len(graph.layers)):
        weight = graph.layer_module(i).weight.detach()
        reach = weight.flatten(1).abs().amax(1) / 2 ** (bits - 1)
        weights[i] = WeightGrid(bits, reach).quantize(weight)
    samples = sample_activations(graph, x, len(x))
    grids = {t.index: search_activation_grid(samples[t.index], bits, t.unsigned) for t in graph.tensors}
    return weights, grids


class Everything(fx.Interpreter):
    """All values of a run, by node name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        self.values[n.name] = result = super().run_node(n)
        return result


@torch.no_grad()
@pytest.mark.parametrize("bits", [None, 4], ids=["float", "quantized"])
@pytest.mark.parametrize("policy", ["after_relu", "both_inputs"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_unit_computes_what_the_network_computes_there(name: str, policy: str, bits: int | None) -> None:
    graph, x = make(name, policy)
    network = QuantizedNetwork(graph, CPU)
    weights: Mapping[int, torch.Tensor] = {}
    grids: Mapping[int, ActivationGrid] = {}
    if bits is not None:
        weights, grids = settings(graph, x, bits)
        network.configure(weights, grids)
    whole = Everything(network.module)
    whole.run(x)
    if bits is None:  # quantizers without a grid change nothing
        assert torch.equal(whole.values["output"], graph.module(x))
    for unit in graph.units:
        module, tensors = extract_unit(graph, unit)
        assert len(set(tensors)) == len(tensors), "a tensor has one quantizer"
        found = {int(n.rpartition("_")[2]) for n, m in module.named_modules() if isinstance(m, ActivationQuantizer)}
        assert found == set(tensors)
        assert {graph.layers[i].tensor for i in unit.layers} <= found, "all that the unit's layers read"
        for index in unit.layers:
            if index in weights:
                module.get_parameter(f"{graph.layers[index].name}.weight").copy_(weights[index])
        for tensor in tensors:
            module.get_submodule(quantizer_name(tensor)).grid = grids.get(tensor)  # type: ignore[assignment]
        # What enters a unit is the value before its quantizer.
        outcome, expected = module(whole.values[unit.entry]), whole.values[unit.exit]
        torch.testing.assert_close(outcome, expected, rtol=1e-5, atol=1e-5, msg=lambda m, u=unit: f"{u}: {m}")


@torch.no_grad()
def test_configure_and_restore() -> None:
    graph, x = make("digits")
    network = QuantizedNetwork(graph, CPU)
    expected = graph.module(x)
    assert torch.equal(network(x), expected)
    weights, grids = settings(graph, x, 3)
    network.configure(weights, grids)
    quantized = network(x)
    assert not torch.allclose(quantized, expected)
    # What is not named goes back to float.
    network.configure({0: weights[0]}, {})
    only_first = network(x)
    network.configure({}, {2: grids[2]})
    assert not torch.equal(network(x), only_first)
    network.configure({}, {})
    assert torch.equal(network(x), expected)
    network.configure(weights, grids)
    assert torch.equal(network(x), quantized)
    assert torch.equal(graph.module(x), expected), "the graph it was made of is another object"


@torch.no_grad()
def test_configured_network_by_hand() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).eval()
    linear[1].weight.copy_(torch.tensor([[1.0, 0.4], [-0.6, 1.0]]))
    network = QuantizedNetwork(build_graph(linear, torch.zeros(2, 1, 1, 2)), CPU)
    network.configure({0: torch.tensor([[1.0, 0.5], [-0.5, 1.0]])}, {0: ActivationGrid(2, 1.0, 1)})
    x = torch.tensor([[0.6, -3.0], [1.4, 5.0]]).reshape(2, 1, 1, 2)  # becomes (1, -1) and (1, 2)
    assert network(x).tolist() == [[0.5, -1.5], [2.0, 1.5]]


def test_weights_are_swapped_in_not_copied() -> None:
    graph, x = make("residual")
    network = QuantizedNetwork(graph, CPU)
    weights, _ = settings(graph, x, 4)
    network.configure(weights, {})
    for index, layer in enumerate(graph.layers):
        weight = network.module.get_parameter(f"{layer.name}.weight")
        assert weight.data_ptr() == weights[index].data_ptr()
        assert not weight.requires_grad


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_has_exactly_one_quantizer(name: str) -> None:
    graph, _ = make(name)
    module = QuantizedNetwork(graph, CPU).module
    calls = [n for n in module.graph.nodes if n.op == "call_module" and n.target.startswith("activation_quantizer_")]
    assert len(calls) == len({n.target for n in calls}) == len(graph.tensors)
    for call in calls:
        tensor = graph.tensors[int(call.target.rpartition("_")[2])]
        assert call.args[0].name == tensor.node
        assert list(call.args[0].users) == [call], "nobody reads the tensor past its quantizer"


def test_layers_that_share_an_input_read_one_quantizer() -> None:
    graph, _ = make("residual")
    module = QuantizedNetwork(graph, CPU).module
    nodes = {n.name: n for n in module.graph.nodes}
    by_name = {layer.name: nodes[node] for layer, node in zip(graph.layers, graph.layer_nodes, strict=True)}
    assert by_name["wider.conv1"].args == by_name["wider.shortcut"].args


def test_float_stays_float_in_a_quantized_network() -> None:
    """The logits are not quantized, nor is a sum before its ReLU."""
    graph, x = make("residual")
    network = QuantizedNetwork(graph, CPU)
    _, grids = settings(graph, x, 2)
    network.configure({}, grids)
    values = Everything(network.module)
    with torch.no_grad():
        values.run(nets.images(64))
    assert all(len(values.values[quantizer_name(t.index)].unique()) <= 4 for t in graph.tensors)
    for name in ("output", "add", graph.layer_nodes[0]):
        assert len(values.values[name].unique()) > 10, name


def test_samples_hold_the_extremes_and_are_spread() -> None:
    graph, _ = make("residual")
    x = nets.images(50)
    samples = sample_activations(graph, x, batch_size=16)
    recorder = Recorder(graph, [t.node for t in graph.tensors])
    with torch.no_grad():
        recorder.run(x)
    for tensor in graph.tensors:
        values, kept = recorder.values[tensor.node], samples[tensor.index]
        assert kept.dim() == 1
        torch.testing.assert_close(kept.min(), values.min())
        torch.testing.assert_close(kept.max(), values.max())
        torch.testing.assert_close(kept.mean(), values.mean(), rtol=0.05, atol=0.02)
        assert set(kept.tolist()) <= set(values.flatten().tolist()) or tensor.index > 0


def test_samples_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from qsearch.quant import calibrate

    monkeypatch.setattr(calibrate, "SAMPLES_PER_TENSOR", 100)
    graph, _ = make("residual")
    for kept in sample_activations(graph, nets.images(40), batch_size=10):
        assert 40 <= len(kept) <= 250


def test_recorder_keeps_what_it_was_asked_for() -> None:
    graph, x = make("residual")
    recorder = Recorder(graph, [graph.units[1].exit])
    with torch.no_grad():
        logits = recorder.run(x)
        assert torch.equal(logits, graph.module(x))
    assert set(recorder.values) == {graph.units[1].exit}
