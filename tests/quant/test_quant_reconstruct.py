"""Reconstruction of units: against brute force where it is possible, and against its guards everywhere."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import nets
import pytest
import torch
from torch import fx, nn

from qsearch.errors import EvaluationError
from qsearch.models import QuantGraph, Unit, build_graph
from qsearch.models.digits_resnet import DigitsResNet
from qsearch.quant import reconstruct as reconstruct_module
from qsearch.quant.grids import ActivationGrid, WeightGrid, search_activation_grid, search_weight_grid
from qsearch.quant.losses import output_error, output_gradient
from qsearch.quant.network import extract_unit, quantizer_name
from qsearch.quant.qdrop import ElementDrop
from qsearch.quant.reconstruct import Schedule, Stream, UnitResult, reconstruct_unit
from qsearch.quant.schemes import WeightScheme

FAST = Schedule(iterations=40, lr=0.1, round_weight=0.1)
THOROUGH = Schedule(iterations=300, lr=0.05)


def test_output_error_by_hand() -> None:
    outputs = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # one image, two channels, two positions
    targets = torch.tensor([[[0.0, 2.0], [1.0, 5.0]]])
    weights = torch.tensor([[[1.0, 9.0], [0.5, 2.0]]])
    # Position 0: 1 * 1 + 0.5 * 4; position 1: 9 * 0 + 2 * 1; summed over channels, averaged over the rest.
    assert output_error(outputs, targets, weights).item() == pytest.approx((3 + 2) / 2)
    assert output_error(outputs, targets).item() == pytest.approx((5 + 1) / 2)
    flat = output_error(outputs.flatten(1), targets.flatten(1), weights.flatten(1))
    assert flat.item() == pytest.approx(3 + 2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 2)])
def test_output_gradient_is_the_derivative(shape: tuple[int, ...], weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, targets = (torch.randn(shape, generator=generator) for _ in range(2))
    weights = torch.rand(shape, generator=generator) if weighted else None
    leaf = outputs.clone().requires_grad_(True)
    output_error(leaf, targets, weights).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(output_gradient(outputs, targets.clone(), weights), leaf.grad)


class LinearCase:
    """A linear layer of 2 x 5 weights on correlated inputs, small enough to try all roundings."""

    def __init__(self, seed: int, bits: int = 3, scheme: WeightScheme | None = None, spread: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(5, 2, bias=False)).eval()
        with torch.no_grad():
            network[1].weight.copy_(torch.randn(2, 5, generator=generator))
        common = torch.randn(128, 1, generator=generator)
        self.inputs = common + spread * torch.randn(128, 5, generator=generator)
        self.graph = build_graph(network, self.inputs[:2].reshape(2, 1, 1, 5))
        self.weight = self.graph.layer_module(0).weight.detach()
        self.grid = search_weight_grid(self.weight, bits, scheme)
        self.targets = self.inputs @ self.weight.T
        self.importance: torch.Tensor | None = None

    def error(self, codes: torch.Tensor, images: slice = slice(None)) -> float:
        importance = None if self.importance is None else self.importance[images]
        outputs = self.inputs[images] @ self.grid.decode(codes).T
        return output_error(outputs, self.targets[images], importance).item()

    def best(self) -> float:
        """Least error of all 2^10 choices of down or up."""
        scale, zero = self.grid.columns(5)
        floor = torch.floor(self.weight / scale + zero)
        total = 0.0
        for row in range(2):  # the rows are independent
            errors = []
            for up in itertools.product((0.0, 1.0), repeat=5):
                codes = floor.clone()
                codes[row] += torch.tensor(up)
                values = self.inputs @ self.grid.decode(codes.clamp(self.grid.low, self.grid.high))[row]
                errors.append((values - self.targets[:, row]).square().mean().item())
            total += min(errors)
        return total

    def learn(self, schedule: Schedule, seed: int = 0, holdout: float = 0.0, **options: Any) -> UnitResult:
        unit = self.graph.units[0]
        module, _ = extract_unit(self.graph, unit)
        return reconstruct_unit(
            self.graph,
            unit,
            module,
            {0: self.grid},
            {},
            self.inputs,
            self.targets,
            schedule=schedule,
            generator=torch.Generator().manual_seed(seed),
            importance=self.importance,
            holdout=holdout,
            **options,
        )


SYMMETRIC, AFFINE = WeightScheme(), WeightScheme(grid="affine")
GROUP = WeightScheme(granularity="group", group_size=2)


@pytest.mark.parametrize(
    ("seed", "scheme"),
    [(1, SYMMETRIC), (2, SYMMETRIC), (8, SYMMETRIC), (1, AFFINE), (2, AFFINE), (8, AFFINE), (0, GROUP)],
)
def test_the_best_of_all_roundings_is_found(seed: int, scheme: WeightScheme) -> None:
    case = LinearCase(seed, scheme=scheme)
    best = case.best()
    assert case.error(case.grid.encode(case.weight)) > 2.5 * best  # otherwise the case would show nothing
    assert case.error(case.learn(THOROUGH).codes[0]) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_never_worse_than_nearest_rounding(seed: int) -> None:
    for bits, schedule in ((2, FAST), (4, Schedule(iterations=3, lr=1.0)), (1, FAST), (3, Schedule(0, 0.1))):
        case = LinearCase(seed, bits)
        result = case.learn(schedule)
        codes = result.codes[0]
        assert case.error(codes) <= case.error(case.grid.encode(case.weight)) * (1 + 1e-5)
        assert torch.equal(codes, codes.round().clamp(case.grid.low, case.grid.high))
        assert result.iterations == schedule.iterations


def test_losses_are_those_of_hard_rounding_on_the_held_out_images() -> None:
    case = LinearCase(3)
    start = case.grid.encode(case.weight).flip(1)
    result = case.learn(FAST, holdout=0.25, start={0: start})
    held_out = slice(96, 128)
    assert set(result.losses) == {"nearest", "start", "learned"}
    assert result.losses["nearest"] == pytest.approx(case.error(case.grid.encode(case.weight), held_out), rel=1e-4)
    assert result.losses["start"] == pytest.approx(case.error(start, held_out), rel=1e-4)
    assert case.error(result.codes[0], held_out) == pytest.approx(min(result.losses.values()), rel=1e-4)


class Recorded:
    """A stream that is no tensor, and remembers which images were asked for."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        self.asked.append(index.tolist())
        return self.values[index]


def test_trap_10_held_out_images_are_not_learned_from() -> None:
    case = LinearCase(1)
    inputs, targets = Recorded(case.inputs), Recorded(case.targets)
    unit = case.graph.units[0]
    schedule = replace(FAST, iterations=9, batch_size=28)
    result = reconstruct_unit(
        case.graph, unit, extract_unit(case.graph, unit)[0], {0: case.grid}, {}, inputs, targets,
        schedule=schedule, generator=torch.Generator().manual_seed(0), holdout=0.125,
    )  # fmt: skip
    batches = [asked for asked in inputs.asked if len(asked) == 28]
    judged = [asked for asked in inputs.asked if len(asked) != 28]
    assert len(batches) == 9
    assert max(max(batch) for batch in batches) < 112
    assert judged == [list(range(112, 128))] * 2  # nearest, learned
    assert targets.asked == inputs.asked
    # All images come once before any comes again.
    seen = [i for batch in batches for i in batch]
    assert sorted(seen[:112]) == sorted(seen[112:224]) == list(range(112))
    # A stream and a tensor give the same.
    assert torch.equal(result.codes[0], case.learn(schedule, holdout=0.125).codes[0])


@pytest.mark.parametrize("winner", ["nearest", "start"])
def test_the_guard_gives_back_what_was_better(winner: str) -> None:
    """One huge step ruins the rounding; the activation grids go back, too."""
    case = LinearCase(0)  # nearest is optimal here
    nearest = case.grid.encode(case.weight)
    ruined = (1 - nearest).clamp(case.grid.low, case.grid.high)
    if winner == "start":
        case.targets = case.inputs @ case.grid.decode(ruined).T
    result = case.learn(Schedule(iterations=3, lr=100.0), start={0: ruined})
    assert result.losses["learned"] > result.losses[winner]
    assert torch.equal(result.codes[0], ruined if winner == "start" else nearest)


def test_fisher_weights_steer_the_rounding() -> None:
    """With all weight on some images, these are reproduced better than without."""
    case = LinearCase(3, bits=2)
    few = torch.zeros(128, dtype=torch.bool)
    few[:3] = True

    def error_on_few(codes: torch.Tensor) -> float:
        return (case.inputs[few] @ case.grid.decode(codes).T - case.targets[few]).square().mean().item()

    even = error_on_few(case.learn(THOROUGH).codes[0])
    case.importance = torch.where(few[:, None], 128 / 3, 0.0).expand_as(case.targets).contiguous()
    assert error_on_few(case.learn(THOROUGH).codes[0]) < even


class Block:
    """A residual block with a shortcut convolution, cut out of the digits network, and its float streams."""

    def __init__(self, seed: int = 0, bits: int = 2) -> None:
        images = nets.images(64, channels=1, seed=seed)
        self.graph: QuantGraph = build_graph(nets.randomize(DigitsResNet(width=4), seed), images[:2])
        self.unit: Unit = next(u for u in self.graph.units if u.name == "block2")
        with torch.no_grad():
            values = images
            for unit in self.graph.units:
                if unit.exit == self.unit.entry:
                    values = extract_unit(self.graph, unit)[0](values)
                    break
                values = extract_unit(self.graph, unit)[0](values)
            self.inputs = values
            self.targets: torch.Tensor = self.module()(values)
        self.weight_grids = {i: search_weight_grid(self.weight(i), bits) for i in self.unit.layers}

    def weight(self, layer: int) -> torch.Tensor:
        return self.graph.layer_module(layer).weight.detach()

    def module(self) -> fx.GraphModule:
        return extract_unit(self.graph, self.unit)[0]

    def nearest(self) -> dict[int, torch.Tensor]:
        return {i: grid.encode(self.weight(i)) for i, grid in self.weight_grids.items()}

    def learn(
        self,
        grids: dict[int, ActivationGrid] | None = None,
        schedule: Schedule = FAST,
        seed: int = 0,
        module: fx.GraphModule | None = None,
        **options: Any,
    ) -> UnitResult:
        inputs: Stream = options.pop("inputs", self.inputs)
        return reconstruct_unit(
            self.graph,
            self.unit,
            module or self.module(),
            self.weight_grids,
            grids or {},
            inputs,
            self.targets,
            schedule=schedule,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )

    @torch.no_grad()
    def error(
        self, codes: dict[int, torch.Tensor], grids: dict[int, ActivationGrid], images: slice = slice(None)
    ) -> float:
        fresh = self.module()
        for index in self.unit.layers:
            weight = self.weight_grids[index].decode(codes[index])
            fresh.get_parameter(f"{self.graph.layers[index].name}.weight").copy_(weight)
        for tensor in self.graph.tensors:
            if hasattr(fresh, quantizer_name(tensor.index)):
                setattr(fresh, quantizer_name(tensor.index), _Fixed(grids.get(tensor.index)))
        return output_error(fresh(self.inputs[images]), self.targets[images]).item()


class _Fixed(nn.Module):
    def __init__(self, grid: ActivationGrid | None) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.grid is None else self.grid.quantize(values)


HELD_OUT = slice(56, 64)


@pytest.fixture(scope="module")
def block() -> Block:
    return Block()


def coarse(block: Block, bits: int = 2, scale: float = 1.0) -> dict[int, ActivationGrid]:
    """Grids of the two quantizers inside the block, their steps off by a factor."""
    entry = block.unit.entry_tensor
    assert entry is not None
    inner = next(t.index for t in block.graph.tensors if t.node in block.unit.nodes and t.node != block.unit.exit)
    grids = {}
    for tensor, values in ((entry, block.inputs), (inner, block.inputs)):
        grid = search_activation_grid(values, bits, unsigned=True)
        grids[tensor] = replace(grid, scale=grid.scale * scale)
    return grids


def test_a_residual_block_gains(block: Block) -> None:
    result = block.learn()
    assert sorted(result.codes) == sorted(block.unit.layers)
    assert block.error(result.codes, {}) < 0.85 * block.error(block.nearest(), {})
    assert result.losses["learned"] == pytest.approx(block.error(result.codes, {}, HELD_OUT), rel=1e-3)
    assert result.losses["nearest"] == pytest.approx(block.error(block.nearest(), {}, HELD_OUT), rel=1e-3)


def test_quantizers_inside_the_unit_are_in_force(block: Block) -> None:
    grids = coarse(block, bits=1)
    assert len(grids) == 2
    without = block.learn()
    result = block.learn(grids)
    assert result.activation_grids == grids
    assert any(not torch.equal(result.codes[i], without.codes[i]) for i in result.codes)
    assert result.losses["learned"] == pytest.approx(block.error(result.codes, grids, HELD_OUT), rel=1e-3)
    # The rounding learned under the quantizers is better there than the one learned without them.
    assert block.error(result.codes, grids) < block.error(without.codes, grids)


def test_a_quantizer_without_grid_passes_values_on(block: Block) -> None:
    """A second reconstruction with one module does not inherit the grids of the first."""
    module = block.module()
    first = block.learn(module=module)
    block.learn(coarse(block), module=module)
    again = block.learn(module=module)
    assert all(torch.equal(first.codes[i], again.codes[i]) for i in block.unit.layers)


def test_a_layer_without_grid_stays_float(block: Block) -> None:
    partial = copy.copy(block)
    kept = block.unit.layers[0]
    partial.weight_grids = {i: grid for i, grid in block.weight_grids.items() if i != kept}
    result = partial.learn()
    assert sorted(result.codes) == sorted(set(block.unit.layers) - {kept})
    codes = {**block.nearest(), **result.codes}
    fine = copy.copy(block)
    fine.weight_grids = {**block.weight_grids, kept: search_weight_grid(block.weight(kept), 8)}
    codes[kept] = fine.weight_grids[kept].encode(block.weight(kept))
    assert fine.error(codes, {}, HELD_OUT) == pytest.approx(result.losses["learned"], rel=0.05)


def test_warm_start_needs_fewer_steps(block: Block) -> None:
    long = block.learn(schedule=replace(FAST, iterations=150), seed=1)
    short = replace(FAST, iterations=8)
    cold, warm = block.learn(schedule=short), block.learn(schedule=short, start=long.codes)
    assert min(warm.losses.values()) <= warm.losses["start"] == pytest.approx(long.losses["learned"], rel=1e-4)
    assert min(warm.losses.values()) < min(cold.losses.values())


def test_trap_18_deterministic_given_the_generator(block: Block) -> None:
    grids = coarse(block)
    schedule = replace(FAST, iterations=15, activation_lr=1e-2, drop_prob=0.5)

    def run(seed: int) -> UnitResult:
        return block.learn(grids, schedule, seed, float_inputs=block.inputs)

    chance = torch.get_rng_state()
    first, second, other = run(3), run(3), run(4)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(first.codes[i], second.codes[i]) for i in first.codes)
    assert first.activation_grids == second.activation_grids
    assert first.losses == second.losses
    assert first.losses["learned"] != other.losses["learned"]


def test_nothing_is_left_behind(block: Block) -> None:
    module = block.module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    children = dict(module.named_children())
    inputs, targets = block.inputs.clone(), block.targets.clone()
    with torch.no_grad():  # the caller's mode does not matter
        block.learn(coarse(block), replace(FAST, iterations=3, activation_lr=0.1), module=module)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert dict(module.named_children()) == children
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    assert torch.equal(inputs, block.inputs)
    assert torch.equal(targets, block.targets)
    assert not block.inputs.requires_grad


def test_streams_made_in_inference_mode_will_do(block: Block) -> None:
    with torch.inference_mode():
        inputs = block.inputs.contiguous(memory_format=torch.channels_last).clone()
    first, second = block.learn(), block.learn(inputs=inputs)
    assert all(torch.equal(first.codes[i], second.codes[i]) for i in first.codes)


def test_trap_11_choices_are_made_in_the_end(block: Block) -> None:
    done = block.learn(schedule=replace(FAST, iterations=200))
    begun = block.learn(schedule=replace(FAST, iterations=5))
    assert done.open_share < 0.05 < 0.5 < begun.open_share


def test_trap_11_an_early_stop_ends_with_hard_choices(block: Block) -> None:
    """Stopped long before soft rounding is decided, the result is whole codes, judged as such."""
    schedule = replace(FAST, iterations=400, warm_up=0.02, check_every=5, patience=2)
    result = block.learn(schedule=schedule)
    assert 8 < result.iterations < 400
    assert result.iterations % 5 == 0
    for i, codes in result.codes.items():
        assert torch.equal(codes, codes.round().clamp(block.weight_grids[i].low, block.weight_grids[i].high))
    assert block.error(result.codes, {}, HELD_OUT) == pytest.approx(min(result.losses.values()), rel=1e-3)
    full = block.learn(schedule=replace(schedule, patience=0))
    assert full.iterations == 400
    # The best check counts, not the last.
    assert full.losses["learned"] <= result.losses["learned"]


def test_checks_of_the_warm_up_do_not_stop(block: Block) -> None:
    """With a learning rate of almost nothing no check improves on the one before."""
    schedule = Schedule(iterations=40, lr=1e-12, round_weight=0.0, warm_up=0.5, check_every=2, patience=3)
    result = block.learn(schedule=schedule)
    assert result.iterations == 26  # first check after step 20 is that of step 22


def test_learned_steps_repair_bad_ones(block: Block) -> None:
    grids = coarse(block, scale=2.5)
    fixed = block.learn(grids)
    learned = block.learn(grids, replace(FAST, iterations=80, activation_lr=0.02))
    assert learned.losses["learned"] < 0.8 * fixed.losses["learned"]
    assert sorted(learned.activation_grids) == sorted(grids)
    for tensor, grid in learned.activation_grids.items():
        assert 0 < grid.scale != grids[tensor].scale
        assert (grid.bits, grid.zero_point) == (grids[tensor].bits, grids[tensor].zero_point)
    error = block.error(learned.codes, learned.activation_grids, HELD_OUT)
    assert error == pytest.approx(learned.losses["learned"], rel=1e-3)


def test_the_guard_takes_learned_steps_back(block: Block) -> None:
    grids = coarse(block, bits=4)
    result = block.learn(grids, Schedule(iterations=4, lr=0.1, activation_lr=100.0))
    assert result.losses["learned"] > result.losses["nearest"]
    assert result.activation_grids == grids
    assert all(torch.equal(result.codes[i], codes) for i, codes in block.nearest().items())


@pytest.mark.parametrize("quantized_entry", [True, False])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_dropped_elements_are(
    block: Block, monkeypatch: pytest.MonkeyPatch, quantized_entry: bool, share: float
) -> None:
    """All dropped, the unit learns from the float stream with no quantizer in force; none dropped, as without QDrop."""
    grids = coarse(block, bits=1) if quantized_entry else {}
    disturbed = block.inputs + 0.5
    monkeypatch.setattr(ElementDrop, "quantized", lambda self, like: torch.full_like(like, share, dtype=torch.bool))
    # Learned codes are compared as they are, whether they would win or not.
    monkeypatch.setattr(reconstruct_module._Bench, "error", lambda *arguments: 0.0)
    mixed = block.learn(grids, replace(FAST, drop_prob=0.5), inputs=disturbed, float_inputs=block.inputs)
    on_float, on_quantized = block.learn(), block.learn(grids, inputs=disturbed)
    expected, other = (on_quantized, on_float) if share else (on_float, on_quantized)
    assert all(torch.equal(mixed.codes[i], expected.codes[i]) for i in mixed.codes)
    assert any(not torch.equal(mixed.codes[i], other.codes[i]) for i in mixed.codes)


def test_bfloat16_learns_nearly_the_same(block: Block) -> None:
    schedule = replace(FAST, iterations=60)
    exact = block.learn(coarse(block), schedule)
    short = block.learn(coarse(block), replace(schedule, precision="bfloat16"))
    # What decides is measured in float32, so it is comparable.
    assert short.losses["nearest"] == exact.losses["nearest"]
    assert short.losses["learned"] < 1.25 * exact.losses["learned"]
    assert short.losses["learned"] == pytest.approx(block.error(short.codes, coarse(block), HELD_OUT), rel=1e-3)


def test_few_images() -> None:
    case = LinearCase(2)
    case.inputs, case.targets = case.inputs[:1], case.targets[:1]
    assert case.learn(FAST, holdout=0.125).losses["learned"] >= 0
    case.inputs, case.targets = case.inputs[:0], case.targets[:0]
    with pytest.raises(EvaluationError, match="no calibration images"):
        case.learn(FAST)


def test_what_cannot_be_is_refused(block: Block) -> None:
    with pytest.raises(EvaluationError, match="float inputs"):
        block.learn(schedule=replace(FAST, drop_prob=0.5))
    with pytest.raises(EvaluationError, match="64 images in inputs, but 10 in importance"):
        block.learn(importance=block.targets[:10])
    empty = copy.copy(block)
    empty.weight_grids = {}
    with pytest.raises(EvaluationError, match="no layer with a weight grid"):
        empty.learn()
    with pytest.raises(EvaluationError, match="holdout is 1"):
        block.learn(holdout=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": -1},
        {"lr": 0.0},
        {"batch_size": 0},
        {"round_weight": -0.1},
        {"warm_up": 1.0},
        {"drop_prob": 1.1},
        {"activation_lr": float("nan")},
        {"patience": 2},
        {"precision": "float16"},
    ],
)
def test_impossible_schedules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError) as caught:
        replace(FAST, **wrong)
    assert next(iter(wrong)) in caught.value.message
    assert caught.value.hint


def test_grid_signs_do_not_matter() -> None:
    """A grid of negative scales holds the same values in reverse; learning on it is no worse."""
    case = LinearCase(4)
    found = case.learn(THOROUGH)
    mirrored = LinearCase(4)
    grid = case.grid
    mirrored.grid = WeightGrid(grid.bits, -grid.scale, -1.0 - grid.zero, grid.low, grid.high)
    other = mirrored.learn(THOROUGH)
    assert mirrored.error(other.codes[0]) == pytest.approx(case.error(found.codes[0]), rel=0.05)
