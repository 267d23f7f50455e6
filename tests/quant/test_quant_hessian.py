"""Hessians against sums over unfolded inputs in double precision."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import nn

from qsearch.models import QuantGraph, build_graph
from qsearch.quant import hessian as hessian_module
from qsearch.quant.hessian import Hessians, as_problem, blocks, from_problem


def one_layer(layer: nn.Module, size: int = 6, channels: int = 4) -> QuantGraph:
    """A graph whose layer 0 reads the image."""
    network = nn.Sequential(nets.randomize(layer), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return build_graph(network, nets.images(2, channels, size))


def columns_by_hand(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """What meets the rows of the weight, ``[groups, columns, images * positions]``: read off the convolution itself.

    A kernel with a single one picks one element of every patch.
    """
    width = conv.weight[0].numel()
    picked = []
    for group in range(conv.groups):
        rows = []
        for element in range(width):
            kernel = torch.zeros(conv.weight.shape, dtype=torch.float64)
            first = group * (conv.out_channels // conv.groups)
            kernel[first].view(-1)[element] = 1.0
            output = nn.functional.conv2d(
                x.double(), kernel, None, conv.stride, conv.padding, conv.dilation, conv.groups
            )
            rows.append(output[:, first].flatten())
        picked.append(torch.stack(rows))
    return torch.stack(picked)


def hessian_of(graph: QuantGraph, x: torch.Tensor, chunks: int = 1) -> torch.Tensor:
    hessians = Hessians(graph, len(x))
    for part in x.chunk(chunks):
        hessians.on_input(0, part)
    return hessians.take(0)


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 5, 3),
    "padded": lambda: nn.Conv2d(4, 5, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1),
    "uneven": lambda: nn.Conv2d(4, 5, (1, 3), stride=(1, 2), padding=(0, 1), dilation=(1, 2)),
    "pointwise": lambda: nn.Conv2d(4, 5, 1, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "same": lambda: nn.Conv2d(4, 5, (3, 5), padding="same", dilation=(2, 1)),
    "valid": lambda: nn.Conv2d(4, 5, 3, padding="valid"),
}


@torch.no_grad()
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_by_hand(name: str, chunks: int) -> None:
    graph, x = one_layer(CONVOLUTIONS[name]()), nets.images(7, 4, 6)
    conv = graph.layer_module(0)
    assert isinstance(conv, nn.Conv2d)
    columns = columns_by_hand(conv, x)
    expected = 2 * columns @ columns.mT / columns.shape[-1]
    torch.testing.assert_close(hessian_of(graph, x, chunks).double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_an_even_kernel_of_the_same_size() -> None:
    """torch pads one more on the right and below."""
    graph, x = one_layer(nn.Conv2d(4, 5, (2, 4), padding="same")), nets.images(3, 4, 6)
    conv = graph.layer_module(0)
    assert isinstance(conv, nn.Conv2d)
    columns = columns_by_hand(conv, x)
    expected = 2 * columns @ columns.mT / columns.shape[-1]
    torch.testing.assert_close(hessian_of(graph, x).double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [(), (5,)])
def test_a_linear_layer_by_hand(tokens: tuple[int, ...]) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(2) if tokens else x.flatten(1)
            return self.fc(x).flatten(1)

    x = torch.randn(9, *tokens, 3, generator=torch.Generator().manual_seed(0))
    graph = build_graph(Tokens().eval(), x[:2].reshape(2, *(tokens or (1,)), 1, 3) if tokens else x[:2, None, None])
    rows = x.reshape(-1, 3).double()
    torch.testing.assert_close(
        hessian_of(graph, x).double(), (2 * rows.mT @ rows / len(rows))[None], rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_the_quadratic_form_is_the_squared_output_error() -> None:
    """What the Hessian is for: ``d H d / 2`` is the mean squared change of the output when a row changes by d."""
    graph, x = one_layer(nn.Conv2d(4, 6, 3, padding=1, groups=2)), nets.images(5, 4, 6)
    conv = graph.layer_module(0)
    assert isinstance(conv, nn.Conv2d)
    delta = torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(1))
    change = nn.functional.conv2d(x, delta, None, padding=1, groups=2)
    rows = as_problem(delta, 2)
    form = ((rows @ hessian_of(graph, x)) * rows).sum(-1).flatten() / 2
    torch.testing.assert_close(form, change.square().mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_positions_are_thinned_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbouring patches overlap: a third of rows and columns gives nearly the same Hessian."""
    smooth = nn.functional.interpolate(nets.images(64, 4, 6), scale_factor=4, mode="bilinear")
    graph = one_layer(nn.Conv2d(4, 5, 3, padding=1), size=24)
    whole = hessian_of(graph, smooth)
    monkeypatch.setattr(hessian_module, "POSITIONS", 64 * 24 * 24 // 9)
    hessians = Hessians(graph, len(smooth))
    hessians.on_input(0, smooth)
    assert hessians._columns[0] == 64 * 8 * 8
    thin = hessians.take(0)
    assert not torch.equal(thin, whole)
    assert float((thin - whole).norm() / whole.norm()) < 0.2  # the upper and left borders weigh more than they should


@torch.no_grad()
def test_hessians_are_taken_once() -> None:
    graph, x = one_layer(nn.Conv2d(4, 5, 1)), nets.images(3, 4, 6)
    hessians = Hessians(graph, 3)
    hessians.on_input(0, x)
    hessians.take(0)
    with pytest.raises(KeyError):
        hessians.take(0)


@pytest.mark.parametrize(
    ("columns", "limit", "expected"), [(9, 9, 1), (9, 8, 3), (10, 5, 2), (7, 3, 7), (64, 32, 2), (5000, 4608, 2)]
)
def test_wide_layers_are_cut_into_equal_blocks(
    columns: int, limit: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hessian_module, "MAX_COLUMNS", limit)
    assert blocks(columns) == expected


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_the_blocks_of_a_wide_layer_are_the_diagonal_ones(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = one_layer(nn.Conv2d(4, 6, 3, groups=groups)), nets.images(5, 4, 6)
    whole = hessian_of(graph, x)
    monkeypatch.setattr(hessian_module, "MAX_COLUMNS", 6)
    cut = hessian_of(graph, x)
    width = whole.shape[-1]
    part = cut.shape[-1]
    assert part == 6
    expected = torch.stack(
        [whole[g, at : at + part, at : at + part] for g in range(groups) for at in range(0, width, part)]
    )
    torch.testing.assert_close(cut, expected)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_weight_survives_the_way_there_and_back(groups: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian_module, "MAX_COLUMNS", limit)
    weight = torch.arange(4 * 6 * 9.0).reshape(4, 6, 3, 3)
    rows = as_problem(weight, groups)
    assert rows.shape == (groups * blocks(54), 4 // groups, 54 // blocks(54))
    assert torch.equal(from_problem(rows, weight.shape, groups), weight)
    layout = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(as_problem(layout, groups), rows)
