"""Units cut out of a network compute what the fake-quantized network computes there."""

from __future__ import annotations

import random

import pytest
import torch
from quantized import NETWORKS, SMALL, make, random_plan
from reference_network import Everything, FakeQuantNetwork, real_weight

from qsearch.quant.grids import ActivationGrid
from qsearch.quant.network import ActivationQuantizer, extract_unit, quantizer_name
from qsearch.quant.program import Plan, Program
from qsearch.quant.schemes import WeightScheme


@torch.no_grad()
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
@pytest.mark.parametrize("policy", ["after_relu", "both_inputs"])
@pytest.mark.parametrize("name", [*SMALL, "densenet", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_a_unit_computes_what_the_network_computes_there(name: str, policy: str, quantized: bool) -> None:
    graph, x = make(name, policy, n=4)
    plan = Plan()
    if quantized:
        plan = random_plan(Program(graph), x, random.Random(0), (4, 6), weights=WeightScheme(range="min_max"))
    whole = Everything(FakeQuantNetwork(graph, plan).module)
    whole.run(x)
    for unit in graph.units:
        module, tensors = extract_unit(graph, unit)
        assert len(set(tensors)) == len(tensors), "a tensor has one quantizer"
        found = {int(n.rpartition("_")[2]) for n, m in module.named_modules() if isinstance(m, ActivationQuantizer)}
        assert found == set(tensors)
        assert {graph.layers[i].tensor for i in unit.layers} <= found, "all that the unit's layers read"
        for index in unit.layers:
            if index in plan.layers:
                module.get_parameter(f"{graph.layers[index].name}.weight").copy_(real_weight(plan.layers[index]))
        for tensor in tensors:
            module.get_submodule(quantizer_name(tensor)).grid = plan.grids.get(tensor)  # type: ignore[assignment]
        # What enters a unit is the value before its quantizer; channels may come last in memory.
        entry, expected = whole.values[unit.entry], whole.values[unit.exit]
        for value in (entry, entry.contiguous(memory_format=torch.channels_last) if entry.dim() == 4 else entry):
            outcome = module(value)
            flips = (outcome - expected).abs() > 1e-4 * (1 + expected.abs())
            assert float(flips.float().mean()) < 0.01, unit.name


@torch.no_grad()
def test_layers_of_a_unit_are_copies() -> None:
    graph, x = make("residual")
    expected = graph.module(x)
    for unit in graph.units:
        module, _ = extract_unit(graph, unit)
        assert not any(p.requires_grad for p in module.parameters())
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(graph.module(x), expected)


def test_a_quantizer_without_a_grid_passes_values_on() -> None:
    quantizer, values = ActivationQuantizer(), torch.tensor([-3.0, 0.2, 9.0])
    assert quantizer(values) is values
    quantizer.grid = ActivationGrid(2, 1.0, 1)
    assert quantizer(values).tolist() == [-1.0, 0.0, 2.0]
    assert "scale=1.0" in repr(quantizer)


def test_all_units_are_cut_out_of_every_network() -> None:
    for name in NETWORKS:
        graph, _ = make(name)
        layers = [layer for unit in graph.units for layer in unit.layers]
        assert sorted(layers) == list(range(len(graph.layers)))
        tensors = {tensor for unit in graph.units for tensor in extract_unit(graph, unit)[1]}
        assert {layer.tensor for layer in graph.layers} <= tensors
