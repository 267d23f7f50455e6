"""Reconstruction of units: against brute force where it is possible, and against nearest rounding everywhere."""

from __future__ import annotations

import itertools

import nets
import pytest
import torch
from torch import fx, nn

from qsearch.models import QuantGraph, Unit, build_graph
from qsearch.models.digits_resnet import DigitsResNet
from qsearch.quant import (
    ActivationGrid,
    Recorder,
    Schedule,
    WeightGrid,
    extract_unit,
    reconstruct_unit,
    search_weight_grid,
)
from qsearch.quant import reconstruct as reconstruct_module
from qsearch.quant.reconstruct import output_error

FAST = Schedule(iterations=40, lr=0.1)
THOROUGH = Schedule(iterations=300, lr=0.05, round_weight=0.01)


def test_output_error_by_hand() -> None:
    outputs = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # one image, two channels, two positions
    targets = torch.tensor([[[0.0, 2.0], [1.0, 5.0]]])
    weights = torch.tensor([[[1.0, 9.0], [0.5, 2.0]]])
    # Position 0: 1 * 1 + 0.5 * 4; position 1: 9 * 0 + 2 * 1; summed over channels, averaged over the rest.
    assert output_error(outputs, targets, weights).item() == pytest.approx((3 + 2) / 2)
    flat = output_error(outputs.flatten(1), targets.flatten(1), weights.flatten(1))
    assert flat.item() == pytest.approx(3 + 2)


class LinearCase:
    """A linear layer of 2 x 5 weights on correlated inputs, small enough to try all roundings."""

    def __init__(self, seed: int, bits: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(5, 2, bias=False)).eval()
        with torch.no_grad():
            network[1].weight.copy_(torch.randn(2, 5, generator=generator))
        common = torch.randn(128, 1, generator=generator)
        self.inputs = common + 0.3 * torch.randn(128, 5, generator=generator)
        self.graph = build_graph(network, self.inputs[:2].reshape(2, 1, 1, 5))
        self.weight = self.graph.layer_module(0).weight.detach()
        self.grid = search_weight_grid(self.weight, bits)
        self.targets = self.inputs @ self.weight.T
        self.fisher = torch.ones_like(self.targets)

    def error(self, codes: torch.Tensor) -> float:
        return output_error(self.inputs @ self.grid.decode(codes).T, self.targets, self.fisher).item()

    def best(self) -> float:
        """Least error of all 2^10 choices of down or up."""
        floor = torch.floor(self.weight / self.grid.scale[:, None])
        total = 0.0
        for row in range(2):  # the rows are independent
            errors = []
            for up in itertools.product((0.0, 1.0), repeat=5):
                codes = (floor[row] + torch.tensor(up)).clamp(self.grid.low, self.grid.high)
                values = self.inputs @ (codes * self.grid.scale[row])
                errors.append((self.fisher[:, row] * (values - self.targets[:, row]).square()).mean().item())
            total += min(errors)
        return total

    def learn(self, schedule: Schedule, seed: int = 0) -> torch.Tensor:
        unit = self.graph.units[0]
        module, _ = extract_unit(self.graph, unit)
        generator = torch.Generator().manual_seed(seed)
        grids: dict[int, ActivationGrid] = {}
        codes = reconstruct_unit(
            self.graph, unit, module, {0: self.grid}, grids, self.inputs, self.targets, self.fisher, schedule, generator
        )
        return codes[0]


@pytest.mark.parametrize("seed", [1, 2, 4, 5, 8, 10])
def test_the_best_of_all_roundings_is_found(seed: int) -> None:
    case = LinearCase(seed)
    nearest = case.error(case.grid.encode(case.weight))
    best = case.best()
    assert nearest > 3 * best  # otherwise the case would show nothing
    assert case.error(case.learn(THOROUGH)) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("seed", range(12))
def test_never_worse_than_nearest_rounding(seed: int) -> None:
    for bits, schedule in ((2, FAST), (4, Schedule(iterations=3, lr=1.0)), (1, FAST)):
        case = LinearCase(seed, bits)
        codes = case.learn(schedule)
        assert case.error(codes) <= case.error(case.grid.encode(case.weight))
        assert torch.equal(codes, codes.round().clamp(case.grid.low, case.grid.high))


def test_the_loss_decides_not_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that ruins the rounding falls back to nearest."""
    case = LinearCase(0)  # nearest is optimal here
    monkeypatch.setattr(
        reconstruct_module.SoftRounding, "hard_codes", lambda self: torch.full_like(self.floor, self.grid.high)
    )
    assert torch.equal(case.learn(FAST), case.grid.encode(case.weight))


def test_fisher_weights_steer_the_rounding() -> None:
    """With all weight on some images, these are reproduced better than without."""
    case = LinearCase(6, bits=2)
    few = torch.zeros(128, dtype=torch.bool)
    few[:3] = True

    def error_on_few(codes: torch.Tensor) -> float:
        return (case.inputs[few] @ case.grid.decode(codes).T - case.targets[few]).square().mean().item()

    even = error_on_few(case.learn(THOROUGH))
    case.fisher = torch.where(few[:, None], 128 / 3, 0.0).expand_as(case.targets)
    assert error_on_few(case.learn(THOROUGH)) < even


def block(seed: int = 0) -> tuple[QuantGraph, Unit, fx.GraphModule, torch.Tensor, torch.Tensor]:
    """Residual block with a shortcut convolution, cut out of the digits network, and its float streams."""
    images = nets.images(48, channels=1, seed=seed)
    graph = build_graph(nets.randomize(DigitsResNet(width=4), seed), images[:2])
    unit = next(u for u in graph.units if u.name == "block2")
    recorder = Recorder(graph, [unit.entry, unit.exit])
    with torch.no_grad():
        recorder.run(images)
    return graph, unit, extract_unit(graph, unit)[0], recorder.values[unit.entry], recorder.values[unit.exit]


def run_block(
    grids: dict[int, ActivationGrid], bits: int = 2, schedule: Schedule = FAST, seed: int = 0, fisher: float = 1.0
) -> tuple[dict[int, torch.Tensor], float, float]:
    """Codes, and the unit's error with them and with nearest rounding, computed here."""
    graph, unit, module, inputs, targets = block()
    weight_grids = {i: search_weight_grid(graph.layer_module(i).weight, bits) for i in unit.layers}
    weights = torch.full_like(targets, fisher)
    generator = torch.Generator().manual_seed(seed)
    codes = reconstruct_unit(graph, unit, module, weight_grids, grids, inputs, targets, weights, schedule, generator)
    nearest = {i: weight_grids[i].encode(graph.layer_module(i).weight.detach()) for i in unit.layers}
    return (
        codes,
        error_of(graph, unit, module, weight_grids, codes, grids),
        error_of(graph, unit, module, weight_grids, nearest, grids),
    )


@torch.no_grad()
def error_of(
    graph: QuantGraph,
    unit: Unit,
    module: fx.GraphModule,
    weight_grids: dict[int, WeightGrid],
    codes: dict[int, torch.Tensor],
    grids: dict[int, ActivationGrid],
) -> float:
    _, _, fresh, inputs, targets = block()
    for index in unit.layers:
        fresh.get_parameter(f"{graph.layers[index].name}.weight").copy_(weight_grids[index].decode(codes[index]))
    for tensor, grid in grids.items():
        fresh.get_submodule(f"activation_quantizer_{tensor}").grid = grid  # type: ignore[assignment]
    return (fresh(inputs) - targets).square().sum(1).mean().item()


def test_a_residual_block_gains() -> None:
    codes, learned, nearest = run_block({})
    assert sorted(codes) == [3, 4, 5]
    assert learned < 0.7 * nearest


def test_quantizers_inside_the_unit_are_in_force() -> None:
    coarse = {3: ActivationGrid(1, 1.0, 0), 4: ActivationGrid(1, 1.0, 0)}
    float_codes, _, _ = run_block({})
    codes, learned, nearest = run_block(coarse)
    assert learned <= nearest
    assert any(not torch.equal(codes[i], float_codes[i]) for i in codes)
    # The rounding learned under the quantizers is better there than the one learned without them.
    graph, unit, module, _, _ = block()
    weight_grids = {i: search_weight_grid(graph.layer_module(i).weight, 2) for i in unit.layers}
    assert learned < error_of(graph, unit, module, weight_grids, float_codes, coarse)


def test_a_quantizer_without_grid_passes_values_on() -> None:
    """A second reconstruction with one module does not inherit the grids of the first."""
    graph, unit, module, inputs, targets = block()
    grids = {i: search_weight_grid(graph.layer_module(i).weight, 2) for i in unit.layers}

    def run(activations: dict[int, ActivationGrid]) -> dict[int, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        fisher = torch.ones_like(targets)
        return reconstruct_unit(graph, unit, module, grids, activations, inputs, targets, fisher, FAST, generator)

    first = run({})
    run({3: ActivationGrid(1, 1.0, 0)})
    again = run({})
    assert all(torch.equal(first[i], again[i]) for i in unit.layers)


def test_deterministic_given_the_generator() -> None:
    first, _, _ = run_block({}, seed=3)
    second, _, _ = run_block({}, seed=3)
    other, _, _ = run_block({}, seed=4)
    assert all(torch.equal(first[i], second[i]) for i in first)
    assert any(not torch.equal(first[i], other[i]) for i in first)


def test_nothing_is_left_behind() -> None:
    graph, unit, module, inputs, targets = block()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    chance = torch.get_rng_state()
    grids = {i: search_weight_grid(graph.layer_module(i).weight, 2) for i in unit.layers}
    fisher, generator = torch.ones_like(targets), torch.Generator().manual_seed(0)
    with torch.no_grad():  # the caller's mode does not matter
        reconstruct_unit(graph, unit, module, grids, {}, inputs, targets, fisher, FAST, generator)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert not inputs.requires_grad
    assert torch.equal(torch.get_rng_state(), chance)


def test_choices_are_made_by_the_default_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard and soft rounding agree at the end: nearly no variable is left open."""
    kept: list[reconstruct_module.SoftRounding] = []
    original = reconstruct_module.SoftRounding

    def remember(weight: torch.Tensor, grid: WeightGrid) -> reconstruct_module.SoftRounding:
        kept.append(original(weight, grid))
        return kept[-1]

    monkeypatch.setattr(reconstruct_module, "SoftRounding", remember)
    run_block({}, schedule=Schedule())
    h = torch.cat([rounding.h().flatten() for rounding in kept])
    assert ((h - 0.5).abs() < 0.4).float().mean() < 0.05
