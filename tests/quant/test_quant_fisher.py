"""Fisher weights against closed forms."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import nn

from qsearch.errors import EvaluationError
from qsearch.models import QuantGraph, build_graph
from qsearch.quant.fisher import fisher_weights, published_weights


def softmax_model(weight: torch.Tensor) -> tuple[QuantGraph, str]:
    """logits = weight @ pixels, and the name of the logits' node."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0], bias=False)).eval()
    with torch.no_grad():
        network[1].weight.copy_(weight)
    graph = build_graph(network, torch.zeros(2, 1, 1, weight.shape[1]))
    return graph, graph.units[0].exit


def fisher(
    graph: QuantGraph, node: str, x: torch.Tensor, *, samples: int = 1, floor: float = 0.0, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return fisher_weights(graph, node, x, samples=samples, floor=floor, batch_size=64, generator=generator)


def test_diagonal_at_the_logits_of_a_softmax() -> None:
    """dL/dz = p - onehot(y), so E_y[(dL/dz_c)^2] = p_c (1 - p_c)."""
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, -0.5]])
    graph, node = softmax_model(weight)
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, -1.0, 1.0]]).reshape(3, 1, 1, 3)
    p = torch.softmax(x.flatten(1) @ weight.T, 1)
    expected = p * (1 - p)
    found = fisher(graph, node, x, samples=3000)
    torch.testing.assert_close(found, expected / expected.mean(), rtol=0.1, atol=0.02)


def test_one_draw_is_the_squared_residual() -> None:
    """Where the prediction leaves no doubt about the label, one draw gives (p - onehot)^2 exactly."""
    graph, node = softmax_model(torch.eye(3) * 30)
    x = torch.tensor([[1.0, 0.4, 0.0], [0.0, 1.0, 0.5]]).reshape(2, 1, 1, 3)
    p = torch.softmax(x.flatten(1) @ (torch.eye(3) * 30).T, 1)
    residual = (p - torch.nn.functional.one_hot(p.argmax(1), 3)).square()
    torch.testing.assert_close(fisher(graph, node, x), residual / residual.mean(), rtol=1e-4, atol=1e-6)


def two_layers(weight: torch.Tensor) -> tuple[QuantGraph, torch.Tensor]:
    """logits = weight @ z, z the output of the first unit and equal to the pixels; and four images."""
    network = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2)[:, :, None, None])
        network[2].weight.copy_(weight)
    x = torch.tensor([[0.3, 0.1], [-1.0, 0.2], [0.5, -0.5], [0.0, 0.0]]).reshape(4, 2, 1, 1)
    return build_graph(network, x), x


def test_diagonal_before_a_linear_layer() -> None:
    """At the input of logits = W z the gradient is W^T (p - y): with two classes, p0 p1 (w0 - w1)^2."""
    weight = torch.tensor([[1.0, -2.0], [0.5, 1.0]])
    graph, x = two_layers(weight)
    p = torch.softmax(x.flatten(1) @ weight.T, 1)
    expected = p.prod(1, keepdim=True) * (weight[0] - weight[1]).square()
    found = fisher(graph, graph.units[0].exit, x, samples=4000).flatten(1)
    torch.testing.assert_close(found, expected / expected.mean(), rtol=0.1, atol=0.02)


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.5])
def test_mean_one_and_floor(floor: float) -> None:
    graph = build_graph(nets.randomize(nets.Residual()), nets.images(2))
    for unit in graph.units:
        found = fisher(graph, unit.exit, nets.images(100), samples=2, floor=floor)
        assert found.shape[0] == 100
        assert float(found.mean()) == pytest.approx(1.0, rel=1e-4)
        assert float(found.min()) >= floor
        assert not found.requires_grad


def test_no_gradient_means_equal_weights() -> None:
    """A certain prediction has no Fisher information: every output counts the same."""
    graph, node = softmax_model(torch.eye(3) * 1e4)
    found = fisher(graph, node, torch.tensor([[1.0, 0.0, 0.0]] * 2).reshape(2, 1, 1, 3), floor=0.3)
    assert torch.equal(found, torch.ones(2, 3))


def test_deterministic_given_the_generator() -> None:
    graph = build_graph(nets.randomize(nets.Residual()), nets.images(2))
    x, node = nets.images(20), graph.units[1].exit
    before = torch.get_rng_state()
    first, second, other = (fisher(graph, node, x, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_gradients_leak() -> None:
    network = nets.randomize(nets.Residual())
    graph = build_graph(network, nets.images(2))
    images = nets.images(10)
    with torch.no_grad():  # the caller's mode does not matter
        fisher(graph, graph.units[0].exit, images)
    assert all(p.grad is None for p in graph.module.parameters())
    assert images.grad is None
    assert not images.requires_grad


def test_trap_09_published_weights_in_closed_form() -> None:
    """The gradient of KL(p || softmax(W z)) at z is W^T (q - p), divided by the images of a batch."""
    weight = torch.tensor([[1.0, -2.0], [0.5, 1.0]])
    graph, x = two_layers(weight)
    quantized = torch.round(x * 2) / 2 + 0.25
    p, q = (torch.softmax(z.flatten(1) @ weight.T, 1) for z in (x, quantized))
    gradient = (q - p) @ weight
    for batch_size in (4, 2, 1):
        found = published_weights(graph, graph.units[0].exit, x, quantized, batch_size=batch_size)
        torch.testing.assert_close(found.flatten(1), ((gradient / batch_size).abs() + 1).square())


def test_trap_09_a_perfect_network_has_no_published_gradient() -> None:
    """Where nothing is quantized yet, the published weights are one everywhere; the corrected ones still tell apart."""
    graph, x = two_layers(torch.tensor([[1.0, -2.0], [0.5, 1.0]]))
    node = graph.units[0].exit
    torch.testing.assert_close(published_weights(graph, node, x, x), torch.ones_like(x))
    corrected = fisher(graph, node, x, samples=50)
    assert corrected.max() > 1.5 * corrected.mean() > 1.5 * corrected.min()


def test_trap_09_published_weights_are_nearly_equal() -> None:
    """The floor of one drowns the gradient: why the published Fisher mode does what plain squared error does."""
    graph = build_graph(nets.randomize(nets.Residual()), nets.images(2))
    images, node = nets.images(64), graph.units[0].exit
    generator = torch.Generator().manual_seed(0)
    values = fisher(graph, node, images)  # any tensor of the right shape
    quantized = torch.rand(values.shape, generator=generator)
    published = published_weights(graph, node, images, quantized)
    assert published.shape == values.shape
    assert published.min() >= 1
    assert published.max() / published.min() < 1.2
    assert values.max() / values.mean() > 3
    assert not published.requires_grad


def test_nodes_that_are_not_there() -> None:
    graph, x = two_layers(torch.eye(2))
    with pytest.raises(EvaluationError, match="does not have"):
        fisher(graph, "nowhere", x)
    with pytest.raises(EvaluationError, match="does not have"):
        published_weights(graph, "nowhere", x, x)


def test_batches_do_not_change_corrected_weights() -> None:
    """No randomness in the labels where the prediction leaves no doubt."""
    graph, node = softmax_model(torch.eye(3) * 30)
    x = torch.tensor([[1.0, 0.4, 0.0], [0.0, 1.0, 0.5], [0.2, 0.0, 1.0]]).reshape(3, 1, 1, 3)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    one, three = (
        fisher_weights(graph, node, x, samples=1, floor=0.1, batch_size=size, generator=generator)
        for size, generator in zip((1, 3), generators, strict=True)
    )
    torch.testing.assert_close(one, three)
