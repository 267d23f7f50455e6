"""The layer table, the activation tensors and their ties, and what travels between processes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nets
import pytest
import torch
import torch.nn.functional as F
from graph_laws import node_values
from torch import nn

from qsearch.models import QuantGraph, build_graph
from qsearch.models.digits_resnet import DigitsResNet
from qsearch.models.graph import graph_digest
from qsearch.types import LayerShape


class ByHand(nn.Module):
    """Conv with stride and padding, depthwise, grouped and linear layers whose sizes are easy to work out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2), bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=4)
        self.fc = nn.Linear(12, 7, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(x))
        x = self.grouped(F.relu(self.depthwise(x)))
        return self.fc(x.mean([2, 3]))


def test_layer_table_by_hand() -> None:
    graph = build_graph(ByHand(), torch.zeros(2, 3, 16, 10))
    assert graph.layers == (
        LayerShape("conv", "conv", 3, 8, (3, 5), (2, 1), 1, (16, 10), (8, 10), has_bias=False, tensor=0),
        LayerShape("depthwise", "conv", 8, 8, (3, 3), (1, 1), 8, (8, 10), (6, 8), tensor=1),
        LayerShape("grouped", "conv", 8, 12, (1, 1), (1, 1), 4, (6, 8), (6, 8), tensor=2),
        LayerShape("fc", "linear", 12, 7, has_bias=False, tensor=3),
    )
    assert graph.layers[1].is_depthwise
    assert graph.layers[0].macs == 8 * 10 * (3 * 3 * 5) * 8
    assert graph.layers[1].macs == 6 * 8 * 9 * 8
    assert graph.layers[2].macs == 6 * 8 * 2 * 12
    assert graph.layers[3].macs == 12 * 7
    assert [t.unsigned for t in graph.tensors] == [False, True, True, False]
    assert (graph.classes, graph.input_shape, graph.float_parameters) == (7, (3, 16, 10), 0)


def test_a_linear_layer_on_tokens_counts_its_positions() -> None:
    network = nn.Sequential(nn.Flatten(2), nn.Linear(64, 5), nn.Flatten(), nn.Linear(15, 2))
    layers = build_graph(network, nets.images(2)).layers
    assert (layers[0].in_size, layers[0].macs) == ((3, 1), 3 * 64 * 5)
    assert (layers[1].in_size, layers[1].macs) == ((1, 1), 15 * 2)


def tensor_names(graph: QuantGraph) -> list[str]:
    return [graph.tensors[layer.tensor].node for layer in graph.layers]


def test_layers_that_share_an_input_share_a_tensor() -> None:
    graph = build_graph(nets.Residual(), nets.images(2))
    tensor = {layer.name: layer.tensor for layer in graph.layers}
    assert tensor["wider.conv1"] == tensor["wider.shortcut"]
    assert len(set(tensor.values())) == len(graph.tensors) == 6
    assert [t.group for t in graph.tensors] == [0, 1, 2, 3, 4, 5]  # sums are quantized, summands are not
    assert [t.unsigned for t in graph.tensors] == [False, True, True, True, True, True]


def test_both_inputs_ties_the_summands() -> None:
    graph = build_graph(nets.Residual(), nets.images(2), add_policy="both_inputs")
    group = {t.node: t.group for t in graph.tensors}
    tensor = {layer.name: graph.tensors[layer.tensor].node for layer in graph.layers}
    # Block `same` adds its input, which conv1 reads, to the output of conv2.
    assert group["same_conv2"] == group[tensor["same.conv1"]]
    # Block `wider` adds two raw accumulators; their sum is read through ReLU and average pool by the classifier.
    assert group["wider_conv2"] == group["wider_shortcut"] == group[tensor["head.fc"]]
    assert group[tensor["same.conv1"]] != group[tensor["head.fc"]]
    # Every quantized tensor has a width: its group holds a tensor that some layer reads.
    read = {group[name] for name in tensor.values()}
    assert {t.group for t in graph.tensors} <= read


class LongChain(nn.Module):
    """Two additions in a row: the result of the first is read by no layer, only by the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 4, 1) for _ in range(3))
        self.conv, self.head = nn.Conv2d(4, 4, 3), nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(torch.relu(self.a(x) + self.b(x) + self.c(x))))


def test_both_inputs_through_a_chain_of_additions() -> None:
    graph = build_graph(LongChain(), nets.images(2), add_policy="both_inputs")
    group = {t.node: t.group for t in graph.tensors}
    assert group["a"] == group["b"] == group["c"] == group["add"] == group["relu"]
    assert group["x"] != group["relu"]


class Unread(nn.Module):
    """A sum of raw accumulators that nothing stores: it is multiplied with a function of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.a(x) + self.b(x)
        return self.head(total * torch.sigmoid(total))


def test_summands_without_a_width_stay_float_and_are_noted() -> None:
    graph = build_graph(Unread(), nets.images(2), add_policy="both_inputs")
    assert [t.node for t in graph.tensors] == ["x", "a", "b", "head_pool"]
    assert graph.tensors[1].group == graph.tensors[2].group
    assert graph.notes == tuple(f"summand {name!r} shares its width with no layer's input: kept float" for name in "ab")
    assert build_graph(Unread(), nets.images(2)).notes == ()


class Concat(nn.Module):
    """`left` is read alone and inside the concatenation, `right` as well; `alone` only inside."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.alone = (nn.Conv2d(3, 2, 1) for _ in range(3))
        self.after_left, self.after_right = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.join = nn.Conv2d(6, 2, 1)
        self.head = nets.Head(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right, alone = torch.relu(self.left(x)), torch.relu(self.right(x)), torch.relu(self.alone(x))
        joined = self.join(torch.cat([left, right, alone], 1))
        return self.head(joined + self.after_left(left) * self.after_right(right))


def test_quantized_inputs_of_a_concatenation_share_a_width() -> None:
    graph = build_graph(Concat(), nets.images(2))
    group = {t.node: t.group for t in graph.tensors}
    assert group["relu"] == group["relu_1"]
    assert "relu_2" not in group
    assert len({group[name] for name in ("x", "relu", "cat")}) == 3
    assert next(t for t in graph.tensors if t.node == "cat").unsigned


class OptionA(nn.Module):
    """Shortcut without parameters: every second pixel, channels padded with zeros (He et al. 2015)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nets.Head(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        y = self.conv2(torch.relu(self.conv1(x)))
        if self.how == "functional":
            y = y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        elif self.how == "in_place":
            y += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
        else:
            y = torch.add(y, F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), value=0.0))
        return self.head(F.relu(y))


@pytest.mark.parametrize("how", ["functional", "in_place", "torch_add"])
def test_option_a_shortcut(how: str) -> None:
    network, x = nets.randomize(OptionA(how)), nets.images(4)
    graph = build_graph(network, x, "both_inputs")
    with torch.no_grad():
        torch.testing.assert_close(graph.module(x), network(x))
    assert [(unit.name, unit.layers) for unit in graph.units] == [
        ("stem", (0,)),
        ("conv1+conv2", (1, 2)),
        ("head.fc", (3,)),
    ]
    group = {t.node: t.group for t in graph.tensors}
    assert group["conv2"] == group["relu"]  # slicing and zero padding keep the grid of the stem's output


class Reuse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.transposed = nn.ConvTranspose2d(4, 4, 3)
        self.relu = nn.ReLU()
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.twice(self.relu(self.twice(x))))
        return self.head(self.relu(self.transposed(self.circular(x * self.gain))))


def test_what_stays_float_is_reported() -> None:
    network, x = nets.randomize(Reuse()), nets.images(2)
    graph = build_graph(network, x)
    assert [layer.name for layer in graph.layers] == ["conv1", "head.fc"]
    assert sorted(graph.notes) == [
        "'circular' is a Conv2d: kept float",
        "'transposed' is a ConvTranspose2d: kept float",
        "'twice' is called 2 times: kept float",
        "parameter 'gain' is used directly in forward: kept float",
    ]
    kept = (network.twice, network.circular, network.transposed)
    assert graph.float_parameters == sum(p.numel() for m in kept for p in m.parameters()) + 4
    with torch.no_grad():
        torch.testing.assert_close(graph.module(x), network(x))


def test_shared_weights_are_no_float_parameters() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 2))
    network[2].weight = network[1].weight
    assert build_graph(network, nets.images(2)).float_parameters == 0


class Buffered(nn.Module):
    """A buffer read in forward, and a slice whose end is computed from the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1))
        self.conv = nn.Conv2d(3, 4, 1)
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x[:, :, : x.shape[2] // 2] - self.mean))


def shifted(x: torch.Tensor) -> torch.Tensor:
    return F.pad(torch.relu(x), (1, 1, 1, 1), value=-1.0)


def mixed_sign(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) - 0.5


def pooled(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(F.avg_pool2d(torch.relu(x), 2), 2)


def summed(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x) + x.relu()


def chunked(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x).chunk(2, 1)[0]


def negated(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * -1


def doubled(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * 2


def subtracted(x: torch.Tensor) -> torch.Tensor:
    return torch.add(torch.relu(x), torch.sigmoid(x), alpha=-1)


def clamped(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0.0, max=4.0)


def normalised(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    ("function", "channels", "unsigned", "source"),
    [
        (shifted, 4, False, "pad"),  # -1 is not a value of the ReLU's grid
        (mixed_sign, 4, False, "sub"),
        (pooled, 4, True, "avg_pool2d"),
        (summed, 4, True, "add"),
        (chunked, 2, True, "relu"),  # a half of a tensor is stored with the other half
        (negated, 4, False, "mul"),
        (doubled, 4, True, "mul"),
        (subtracted, 4, False, "add"),
        (clamped, 4, True, "clamp"),
        (nn.Hardtanh(0.0, 4.0), 4, True, "function"),
        (nn.Hardtanh(), 4, False, "function"),
        (normalised, 4, False, "mul"),
        (nn.Sequential(nn.ReLU6(), nn.MaxPool2d(2), nn.Dropout(), nn.Identity()), 4, True, "function_0"),
        (nn.Hardswish(), 4, False, "function"),
    ],
)
def test_sign_and_source_come_from_the_graph(
    function: Callable[[torch.Tensor], torch.Tensor], channels: int, unsigned: bool, source: str
) -> None:
    graph = build_graph(nets.Lambda(function, head_channels=channels), nets.images(2))
    tensor = graph.tensors[next(layer.tensor for layer in graph.layers if layer.name == "conv2")]
    assert (tensor.node, tensor.unsigned) == (source, unsigned)


def test_unsigned_tensors_are_never_negative() -> None:
    """The claim that the graph makes holds for values."""
    functions = (shifted, mixed_sign, pooled, summed, normalised, negated, doubled, subtracted, clamped)
    for function in functions:
        graph = build_graph(nets.randomize(nets.Lambda(function)), nets.images(2))
        values = node_values(graph, nets.images(16, seed=1))
        for tensor in graph.tensors:
            if tensor.unsigned:
                assert values[tensor.node].min() >= 0


def test_digest_covers_weights_and_structure() -> None:
    x = nets.images(2)
    digest = build_graph(nets.randomize(nets.Residual()), x).digest
    assert build_graph(nets.randomize(nets.Residual()), x).digest == digest
    changed = nets.randomize(nets.Residual())
    with torch.no_grad():
        changed.head.fc.weight[0, 0] += 1e-6
    assert build_graph(changed, x).digest != digest
    other = nets.randomize(nets.Residual())
    other.stem[1] = nn.ReLU6()
    assert build_graph(other, x).digest != digest


@pytest.mark.parametrize(
    "network",
    [nets.Residual(), DigitsResNet(3), OptionA("functional"), Reuse(), Buffered()],
    ids=lambda n: type(n).__name__,
)
def test_pickling_keeps_names_and_digest(network: nn.Module) -> None:
    graph = build_graph(nets.randomize(network), nets.images(2))
    for arrived in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert [n.name for n in arrived.module.graph.nodes] == [n.name for n in graph.module.graph.nodes]
        assert (arrived.digest, graph_digest(arrived.module)) == (graph.digest, graph.digest)
        assert (arrived.layers, arrived.tensors, arrived.units) == (graph.layers, graph.tensors, graph.units)
        assert not arrived.module.training
        x = nets.images(4)
        with torch.no_grad():
            assert torch.equal(arrived.module(x), graph.module(x))


def test_a_graph_arrives_without_the_users_code(tmp_path: Path) -> None:
    """A worker unpickles the network in a process that cannot import the classes of this test."""
    graph = build_graph(nets.randomize(OptionA("functional")), nets.images(2))
    (tmp_path / "graph.pkl").write_bytes(pickle.dumps(graph))
    code = (
        "import pickle, sys; from qsearch.models.graph import graph_digest;"
        f"graph = pickle.load(open({str(tmp_path / 'graph.pkl')!r}, 'rb'));"
        "assert 'nets' not in sys.modules; print(graph_digest(graph.module))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == graph.digest
