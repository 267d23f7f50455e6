"""Correction gives every layer the float network's mean and deviation back."""

from __future__ import annotations

import random

import nets
import pytest
import torch
from quantized import make, random_plan
from torch import nn

from qsearch.models import QuantGraph, build_graph
from qsearch.quant.correction import (
    LEAST_DEVIATION,
    RATIO_LIMITS,
    Correction,
    FloatMoments,
    Moments,
    float_moments,
    moments,
)
from qsearch.quant.program import LayerPlan, Plan, Program
from qsearch.quant.schemes import WeightScheme

WEIGHTS = WeightScheme(range="min_max")


def correct(
    program: Program,
    plan: Plan,
    x: torch.Tensor,
    deviation: bool = True,
    chunks: int = 1,
    extra: torch.Tensor | None = None,
) -> Plan:
    parts = x.chunk(chunks)
    reference = float_moments(program, [program.start(part) for part in parts])
    hook = Correction(program, plan, reference, deviation, len(parts))
    states = [program.start(part) for part in (*parts, *(() if extra is None else (extra,)))]
    program.advance(states, plan, 0, len(program.steps), hook)
    return plan.with_layers(hook.layers)


def moments_of(program: Program, plan: Plan, x: torch.Tensor) -> dict[int, Moments]:
    hook = FloatMoments()
    program.advance([program.start(x)], plan, 0, len(program.steps), hook)
    return hook.of


@torch.no_grad()
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("name", ["residual", "sums", "gate", "odd"])
def test_statistics_are_those_of_the_float_network(name: str, chunks: int) -> None:
    graph, x = make(name, n=24)
    program = Program(graph)
    plan = random_plan(program, x, random.Random(3), (3, 4, 5), weights=WEIGHTS)
    wanted = moments_of(program, Plan(), x)
    before = moments_of(program, plan, x)
    corrected = correct(program, plan, x, chunks=chunks)
    after = moments_of(program, corrected, x)
    gaps = [
        sum(float((of[i].mean - wanted[i].mean).abs().sum()) for i in wanted)
        + sum(float((of[i].deviation - wanted[i].deviation).abs().sum()) for i in wanted)
        for of in (before, after)
    ]
    assert gaps[1] < 0.02 * gaps[0]
    for index, found in after.items():
        # Not to the last bit: a value in the middle of two codes may fall to the other side when the plan is run.
        ratio = corrected.layers[index].multiplier / plan.layers[index].multiplier
        low, high = RATIO_LIMITS
        free = (ratio > 1.001 * low) & (ratio < 0.999 * high)
        assert bool(free.any())
        torch.testing.assert_close(found.mean, wanted[index].mean, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(found.deviation[free], wanted[index].deviation[free], rtol=2e-2, atol=1e-2)


@torch.no_grad()
def test_without_activation_grids_statistics_are_met_to_float_noise() -> None:
    graph, x = make("residual", n=24)
    program = Program(graph)
    plan = Plan(random_plan(program, x, random.Random(0), (3, 4, 8), weights=WEIGHTS).layers)
    corrected = correct(program, plan, x)
    wanted, found = moments_of(program, Plan(), x), moments_of(program, corrected, x)
    for index in wanted:
        torch.testing.assert_close(found[index].mean, wanted[index].mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[index].deviation, wanted[index].deviation, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(corrected.layers[i].weight, plan.layers[i].weight) for i in plan.layers), "codes stay"
    again = correct(program, corrected, x)
    for index, layer in again.layers.items():
        before = corrected.layers[index]
        assert layer.multiplier is not None
        torch.testing.assert_close(layer.multiplier, before.multiplier, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_float_network_needs_no_correction() -> None:
    graph, x = make("residual", n=8)
    program = Program(graph)
    for index, layer in correct(program, Plan(), x).layers.items():
        assert torch.equal(layer.weight, program.float_layer(index).weight)
        torch.testing.assert_close(layer.bias, program.float_layer(index).bias, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_float_layers_are_corrected_for_what_comes_before_them() -> None:
    graph, x = make("residual", n=24)
    program = Program(graph)
    plan = random_plan(program, x, random.Random(1), (2,), weights=WEIGHTS)
    plan = Plan({0: plan.layers[0]}, plan.grids)
    corrected = correct(program, plan, x)
    assert sorted(corrected.layers) == list(range(len(graph.layers)))
    assert corrected.layers[3].multiplier is None
    wanted, found = (moments_of(program, each, x)[6] for each in (Plan(), corrected))
    torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_means_only_leave_every_scale() -> None:
    """All that power-of-two scales allow."""
    graph, x = make("residual", n=24)
    program = Program(graph)
    plan = Plan(random_plan(program, x, random.Random(0), (2, 3), weights=WEIGHTS).layers)
    corrected = correct(program, plan, x, deviation=False)
    wanted, found = moments_of(program, Plan(), x), moments_of(program, corrected, x)
    for index in wanted:
        assert torch.equal(corrected.layers[index].multiplier, plan.layers[index].multiplier)  # type: ignore[arg-type]
        torch.testing.assert_close(found[index].mean, wanted[index].mean, rtol=1e-4, atol=1e-5)
    assert any(float((found[i].deviation / wanted[i].deviation - 1).abs().max()) > 0.05 for i in wanted)


def one_conv(weight: torch.Tensor) -> tuple[QuantGraph, Program]:
    network = nn.Sequential(nn.Conv2d(2, len(weight), 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    network[0].weight.copy_(weight.reshape(len(weight), 2, 1, 1))
    network[0].bias.copy_(torch.arange(float(len(weight))))
    graph = build_graph(network, nets.images(2, 2, 4))
    return graph, Program(graph)


@torch.no_grad()
def test_ratios_are_clipped() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    graph, program = one_conv(weight)
    found = torch.tensor([0.1, 1.25, 7.0]).reshape(3, 1, 1, 1) * weight.reshape(3, 2, 1, 1)
    plan = Plan({0: LayerPlan(found, torch.ones(3), graph.layer_module(0).bias)})
    layer = correct(program, plan, nets.images(50, 2, 4)).layers[0]
    assert layer.multiplier is not None
    torch.testing.assert_close(layer.multiplier, torch.tensor([RATIO_LIMITS[1], 0.8, RATIO_LIMITS[0]]))


@torch.no_grad()
def test_trap_16_dead_channels_keep_their_scale() -> None:
    """A channel that hardly varies in the float network has a deviation of noise: dividing by it says nothing."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.1 * LEAST_DEVIATION, 0.0]])
    graph, program = one_conv(weight)
    noisy = weight.clone()
    noisy[1:] += 0.5
    plan = Plan({0: LayerPlan(noisy.reshape(3, 2, 1, 1), torch.ones(3), graph.layer_module(0).bias)})
    layer = correct(program, plan, nets.images(50, 2, 4)).layers[0]
    assert layer.multiplier is not None
    assert layer.multiplier.tolist() == [pytest.approx(1.0), 1.0, 1.0]
    # And one that is dead in the quantized network only is not blown up without bound.
    plan = Plan({0: LayerPlan(torch.zeros(3, 2, 1, 1), torch.ones(3), None)})
    layer = correct(program, plan, nets.images(50, 2, 4)).layers[0]
    assert layer.multiplier is not None
    assert layer.multiplier.tolist() == [RATIO_LIMITS[1], 1.0, 1.0]
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias[1:], torch.tensor([1.0, 2.0]), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_trap_16_a_correction_belongs_to_what_comes_before_it() -> None:
    """Changing a layer changes the corrections of those after it, and of no one before."""
    graph, x = make("residual", n=24)
    program = Program(graph)
    rng = random.Random(0)
    plan = random_plan(program, x, rng, (3,), weights=WEIGHTS)
    other = random_plan(program, x, rng, (2,), weights=WEIGHTS)
    changed = plan.with_layers({4: other.layers[4]})  # the block's second layer
    first, second = correct(program, plan, x), correct(program, changed, x)
    order = sorted(range(7), key=lambda i: program.position[graph.layer_nodes[i]])
    for index in order[: order.index(4)]:
        assert torch.equal(first.layers[index].bias, second.layers[index].bias)  # type: ignore[arg-type]
        assert torch.equal(first.layers[index].multiplier, second.layers[index].multiplier)  # type: ignore[arg-type]
    assert not torch.equal(first.layers[6].bias, second.layers[6].bias)  # type: ignore[arg-type]


@torch.no_grad()
def test_images_beyond_those_fitted_on_are_corrected_with_them() -> None:
    graph, x = make("residual", n=24)
    program = Program(graph)
    plan = random_plan(program, x, random.Random(0), (3,), weights=WEIGHTS)
    alone = correct(program, plan, x[:16], chunks=2)
    accompanied = correct(program, plan, x[:16], chunks=2, extra=10 * x[16:])
    for index in alone.layers:
        assert torch.equal(alone.layers[index].bias, accompanied.layers[index].bias)  # type: ignore[arg-type]


def test_moments_by_hand() -> None:
    maps = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]]).reshape(1, 2, 2, 2)
    more = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, 9.0]]).reshape(1, 2, 2, 2)
    found = moments([maps, more])
    values = torch.tensor([[1.0, 2, 3, 4, 0, 0, 0, 0], [5, 5, 5, 5, 5, 5, 5, 9]])
    assert found.mean.tolist() == [1.25, 5.5]
    torch.testing.assert_close(found.deviation, values.std(1, correction=0))
    tokens = torch.arange(12.0).reshape(2, 2, 3)  # channels come last
    assert moments([tokens[:1], tokens[1:]]).mean.tolist() == [4.5, 5.5, 6.5]
