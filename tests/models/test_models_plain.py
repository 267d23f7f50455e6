"""Layers end up with plain weights of their own: normalised, pruned, tied, subclassed, hooked."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import nets
import pytest
import torch
import torch.nn.functional as F
from graph_laws import check_graph
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from qsearch.models import QuantGraph, build_graph
from qsearch.models.plain import copy_network


class Line(nn.Module):
    """Two convolutions, the first with a batch norm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.norm(self.first(x))))))


def old_weight_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        weight_norm(module)


def old_spectral_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        spectral_norm(module)


def pruned(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", amount=0.4)


def twice_pruned(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", amount=0.4)
    prune.random_unstructured(module, "weight", amount=0.4)


def normalised_and_pruned(module: nn.Module) -> None:
    pruned(module)
    prune.l1_unstructured(module, "bias", amount=0.5)


WAYS: list[Callable[[nn.Module], object]] = [
    parametrizations.weight_norm, parametrizations.spectral_norm, old_weight_norm, old_spectral_norm, pruned,
    twice_pruned, normalised_and_pruned,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("trained", [False, True])
def test_computed_weights_become_plain(way: Callable[[nn.Module], object], trained: bool) -> None:
    network = nets.randomize(Line())
    for layer in (network.first, network.second, network.head.fc):
        way(layer)
    if trained:  # the hooks have left weights that hang on a graph of autograd
        network.train()(nets.images(4)).sum().backward()
        network.eval()
    keys = list(network.state_dict())
    graph = build_graph(network, nets.images(2))
    check_graph(graph, network, nets.images(8, seed=1))
    assert [layer.name for layer in graph.layers] == ["first", "second", "head.fc"]
    assert graph.notes == ()
    for index in range(3):
        layer = graph.layer_module(index)
        assert type(layer) in (nn.Conv2d, nn.Linear)
        assert [name for name, _ in layer.named_parameters()] in (["weight", "bias"], ["bias", "weight"])
        assert not layer._forward_pre_hooks
    assert list(network.state_dict()) == keys  # the user's own network is as it was
    copy.deepcopy(graph)


class Tied(nn.Module):
    """Two convolutions share weight and bias; each has its own batch norm or none."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm_a, self.norm_b = (nn.BatchNorm2d(4) if norm else nn.Identity() for _ in range(2))
        self.head = nets.Head(4)

    def tie(self) -> Tied:
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm_a(self.a(torch.relu(self.stem(x)))))
        return self.head(torch.relu(self.norm_b(self.b(x))))


@pytest.mark.parametrize("norm", [False, True])
def test_layers_that_share_weights_are_quantized_apart(norm: bool) -> None:
    network = nets.randomize(Tied(norm)).tie()
    graph = build_graph(network, nets.images(2))
    check_graph(graph, network, nets.images(8, seed=1))
    assert graph.notes == ("'b' shares its weight with 'a': quantized and stored apart from it",)
    assert [layer.name for layer in graph.layers] == ["stem", "a", "b", "head.fc"]
    for made in (graph, copy.deepcopy(graph)):
        before = made.layer_module(2).weight.clone()
        with torch.no_grad():
            made.layer_module(1).weight.zero_()
        assert torch.equal(made.layer_module(2).weight, before)
    assert network.a.weight is network.b.weight
    assert network.a.weight.abs().sum() > 0


class SharedWithFloat(nn.Module):
    """A convolution shares its weight with a transposed one, which stays float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.back = nn.ConvTranspose2d(4, 4, 3, padding=1, bias=False)
        self.back.weight = self.conv.weight
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.back(torch.relu(self.conv(torch.relu(self.stem(x)))))))


def test_a_weight_shared_with_a_float_module_stays_in_it() -> None:
    network = nets.randomize(SharedWithFloat())
    graph = build_graph(network, nets.images(2))
    check_graph(graph, network, nets.images(8, seed=1))
    assert graph.notes == ("'back' is a ConvTranspose2d: kept float",)
    assert graph.float_parameters == 4 * 4 * 9
    with torch.no_grad():
        graph.layer_module(1).weight.zero_()
    assert graph.module.get_submodule("back").weight.abs().sum() > 0


class ReadAndCalled(nn.Module):
    """The weight of a layer is read by the forward itself: changing it would change more than the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.head = nets.Head(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.conv2d(self.conv(x), self.conv.weight))


def test_a_layer_whose_weight_is_read_elsewhere_stays_float() -> None:
    network = nets.randomize(ReadAndCalled())
    graph = build_graph(network, nets.images(2))
    check_graph(graph, network, nets.images(8, seed=1))
    assert [layer.name for layer in graph.layers] == ["head.fc"]
    assert graph.notes == (
        "'conv' has parameters that forward also reads by themselves: kept float",
        "parameter 'conv.weight' is used directly in forward: kept float",
    )


class Same(nn.Conv2d):
    """Sets arguments only."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class Doubled(nn.Conv2d):
    """The inherited forward calls what is overridden."""

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(input, weight * 2, bias)


class Subclasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same, self.norm = Same(3, 4, 3), nn.BatchNorm2d(4)
        self.standardised = Standardised(4, 4, 3, padding=1)
        self.doubled = Doubled(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.standardised(torch.relu(self.norm(self.same(x)))))
        return self.doubled(x).mean((2, 3))


def test_a_subclass_is_a_layer_when_it_computes_what_its_base_computes() -> None:
    network = Subclasses().eval()
    graph = build_graph(network, nets.images(2))
    assert [layer.name for layer in graph.layers] == ["same"]
    assert type(graph.layer_module(0)) is nn.Conv2d  # arrives where the user's class cannot be imported
    assert [note.split("'")[1] for note in graph.notes] == [
        "standardised.weight", "standardised.bias", "doubled.weight", "doubled.bias",
    ]  # fmt: skip
    with torch.no_grad():
        x = nets.images(8, seed=1)
        torch.testing.assert_close(graph.module(x), network(x), rtol=1e-4, atol=1e-5)
    assert type(network.same) is Same


def halve(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output / 2


def test_a_layer_with_a_hook_stays_float_and_keeps_its_batch_norm() -> None:
    network = nets.randomize(Line())
    network.first.register_forward_hook(halve)
    graph = build_graph(network, nets.images(2))
    check_graph(graph, network, nets.images(8, seed=1))
    assert [layer.name for layer in graph.layers] == ["second", "head.fc"]
    assert graph.notes == (
        "'first' runs hooks of its own: kept float",
        "'norm' is a BatchNorm2d: kept float (batch norm with no layer to fold into)",
    )


class Auxiliary(nn.Module):
    """A head for training only, a module that is registered twice, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nets.Head(4)
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 1), nets.Head(4))
        self.alias = self.conv
        self.groups = nn.ModuleDict({"used": nn.Conv2d(4, 4, 1), "spare": nn.Linear(2, 2), "empty": nn.ReLU()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.groups["used"](torch.relu(self.conv(x)))
        return self.head(x) + self.aux(x) if self.training else self.head(x)


def test_what_has_no_part_in_the_logits_is_left_out_and_named() -> None:
    network = nets.randomize(Auxiliary())
    graph = build_graph(network.train(), nets.images(2))
    assert graph.notes == (
        "'aux' has no part in the logits: left out",
        "'groups.spare' has no part in the logits: left out",
    )
    check_graph(graph, network.eval(), nets.images(4))
    assert graph.float_parameters == 0


def test_a_copy_of_a_parametrized_network_does_not_change_its_class() -> None:
    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    copied = copy_network(nn.Sequential(conv))
    assert type(copied[0]) is nn.Conv2d
    assert type(conv).__name__ == "ParametrizedConv2d"


def graph_of(network: nn.Module) -> QuantGraph:
    graph = build_graph(nets.randomize(network), nets.images(2))
    check_graph(graph, network, nets.images(8, seed=1))
    return graph


class Parametric(nn.Module):
    """Modules with parameters that are neither a convolution in two dimensions nor linear."""

    def __init__(self, module: nn.Module, before: Callable[[torch.Tensor], torch.Tensor] = torch.relu) -> None:
        super().__init__()
        self.conv, self.before, self.other, self.head = nn.Conv2d(3, 4, 1), before, module, nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.other(self.before(self.conv(x))).reshape(x.shape[0], 4, -1, 1))


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2)


@pytest.mark.parametrize(
    ("module", "before"),
    [
        (nn.ConvTranspose2d(4, 4, 2, stride=2), torch.relu),
        (nn.Conv1d(4, 4, 3), flat),
        (nn.PReLU(), torch.relu),
        (nn.GroupNorm(2, 4), torch.relu),
        (nn.InstanceNorm2d(4, affine=True), torch.relu),
        (nn.LayerNorm([4, 8, 8]), torch.relu),
        (nn.Bilinear(8, 8, 8), None),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), torch.relu),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_parametric_modules_stay_float(
    module: nn.Module, before: Callable[[torch.Tensor], torch.Tensor] | None
) -> None:
    class Twice(nn.Module):
        """Hands a bilinear layer the same tensor twice."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x, x)

    network = Parametric(Twice(), torch.relu) if before is None else Parametric(module, before)
    name = "other.inner" if before is None else "other"
    graph = graph_of(network)
    assert graph.notes == (f"{name!r} is a {type(module).__name__}: kept float",)
    assert [layer.name for layer in graph.layers] == ["conv", "head.fc"]
    assert graph.float_parameters == sum(p.numel() for p in module.parameters())


class ReusedBlock(nn.Module):
    """A block called twice between two blocks called once; its batch norms cannot be folded either."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.last = nn.Conv2d(3, 4, 1), nets.Basic(4, 4), nets.Basic(4, 4)
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.block(self.block(torch.relu(self.stem(x))))))


def test_a_block_that_is_called_twice_stays_float() -> None:
    graph = graph_of(ReusedBlock())
    assert [layer.name for layer in graph.layers] == ["stem", "last.conv1", "last.conv2", "head.fc"]
    assert [unit.name for unit in graph.units] == ["stem", "last", "head.fc"]
    assert sorted(graph.notes) == [
        "'block.bn1' is called 2 times: kept float",
        "'block.bn2' is called 2 times: kept float",
        "'block.conv1' is called 2 times: kept float",
        "'block.conv2' is called 2 times: kept float",
    ]


class SharedNorm(nn.Module):
    """Two convolutions, one batch norm called after each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nets.Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.b(torch.relu(self.norm(self.a(x)))))))


def test_a_batch_norm_that_is_called_twice_is_not_folded() -> None:
    graph = graph_of(SharedNorm())
    assert [layer.name for layer in graph.layers] == ["a", "b", "head.fc"]
    assert graph.notes == ("'norm' is called 2 times: kept float",)


def test_a_module_under_two_names_is_one_module() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nets.Head(3))
    network.insert(2, network[0])
    graph = graph_of(network)
    assert [layer.name for layer in graph.layers] == ["3.fc"]
    assert graph.notes == ("'0' is called 2 times: kept float",)
