"""Reconstruction unit after unit: what is shared, what is kept, what is never worse."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from noise_targets import config_of, noise_target

from qsearch.errors import EvaluationError
from qsearch.evaluate import Target
from qsearch.evaluate import sequence as sequence_module
from qsearch.evaluate.artifacts import ArtifactCache
from qsearch.evaluate.brecq import BRECQEvaluator
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.quant.reconstruct import Schedule, UnitResult
from qsearch.spec import QuantizerSpec, WeightQuantizerSpec
from qsearch.testing.evaluators import toy_target
from qsearch.types import BitConfig

CPU = torch.device("cpu")
UNITS = ["stem.0", "conv1+conv2+shortcut", "classifier"]


class Call:
    """One reconstruction: what it was given and what it gave."""

    def __init__(self, args: tuple[Any, ...], options: dict[str, Any], result: UnitResult) -> None:
        self.unit: str = args[1].name
        self.weight_grids, self.grids, self.inputs, self.targets = args[3], args[4], args[5], args[6]
        self.values = self.inputs[torch.arange(4)], self.targets[torch.arange(4)]  # streams end with the candidate
        self.options, self.result = options, result
        self.schedule: Schedule = options["schedule"]
        importance = options["importance"]
        self.importance = None if importance is None else importance[torch.arange(len(importance))]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The units that were really reconstructed."""
    seen: list[Call] = []
    original = sequence_module.reconstruct_unit

    def counted(*args: Any, **options: Any) -> UnitResult:
        result = original(*args, **options)
        seen.append(Call(args, options, result))
        return result

    monkeypatch.setattr(sequence_module, "reconstruct_unit", counted)
    return seen


def names(calls: list[Call]) -> list[str]:
    found = [call.unit for call in calls]
    calls.clear()
    return found


@pytest.fixture(scope="module", autouse=True)
def bank_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bank of the toy, made once for all tests; they begin with a copy."""
    global _bank_files
    _bank_files = tmp_path_factory.mktemp("bank")
    PTQEvaluator(toy_target(), {}, CPU, 0, ArtifactCache(_bank_files)).plan(uniform(3))
    return _bank_files


_bank_files: Path


def evaluator(
    folder: Path, target: Target | None = None, preset: str = "fast", seed: int = 0, **options: Any
) -> BRECQEvaluator:
    options = {"preset": preset, "iterations": 12, **options}
    if not folder.exists() or not any(folder.iterdir()):
        shutil.copytree(_bank_files, folder, dirs_exist_ok=True)
    return BRECQEvaluator(target or toy_target(), options, CPU, seed, ArtifactCache(folder))


def uniform(weights: int, activations: int = 4, count: int = 5) -> BitConfig:
    return BitConfig((weights,) * count, (activations,) * count)


# --- what is shared


def test_candidates_share_the_units_they_begin_with(tmp_path: Path, calls: list[Call]) -> None:
    subject = evaluator(tmp_path)
    subject.evaluate(uniform(3), "validation")
    assert names(calls) == UNITS
    subject.evaluate(uniform(3), "test")
    assert names(calls) == []
    subject.evaluate(BitConfig((3, 3, 3, 3, 2), (4,) * 5), "validation")
    assert names(calls) == UNITS[2:]
    subject.evaluate(BitConfig((3, 3, 2, 3, 3), (4,) * 5), "validation")
    assert names(calls) == UNITS[1:]
    subject.evaluate(BitConfig((2, 3, 3, 3, 3), (4,) * 5), "validation")
    assert names(calls) == UNITS
    subject.evaluate(BitConfig((3,) * 5, (4, 4, 4, 4, 8)), "validation")
    assert names(calls) == UNITS[2:], "the classifier reads another tensor"
    subject.evaluate(BitConfig((3, 3, 3, 3, 2), (4,) * 5), "test")
    assert names(calls) == []


def test_a_later_unit_leaves_earlier_ones_alone(tmp_path: Path) -> None:
    subject = evaluator(tmp_path)
    first, second = (subject.plan(BitConfig((3, 2, 3, 3, last), (4,) * 5)) for last in (2, 4))
    for layer in range(4):
        assert torch.equal(first.layers[layer].weight, second.layers[layer].weight)
        assert first.layers[layer].token == second.layers[layer].token
    assert first.layers[4].token != second.layers[4].token


def test_the_order_of_candidates_decides_nothing(tmp_path: Path) -> None:
    configs = [uniform(3), BitConfig((3, 3, 3, 3, 2), (4,) * 5), BitConfig((2, 3, 8, 3, 32), (8,) * 5), uniform(2, 2)]
    for preset in ("bank", "fast"):
        forward, backward = (evaluator(tmp_path / f"{preset}{i}", preset=preset) for i in range(2))
        expected = {config: forward.evaluate(config, "test") for config in configs}
        for config in reversed(configs):
            assert backward.evaluate(config, "test") == expected[config]


@pytest.mark.parametrize("preset", ["bank", "fast"])
def test_another_evaluator_finds_everything(preset: str, tmp_path: Path, calls: list[Call]) -> None:
    """Also learned activation steps, to the last bit."""
    options = {"preset": preset, "activation_lr": 1e-2, "warm_start": False, "iterations": 80, "lr": 0.2}
    config = uniform(2, 3)
    first = evaluator(tmp_path, **options)
    score = first.evaluate(config, "test")
    assert names(calls) == UNITS
    second = evaluator(tmp_path, **options)
    assert second.evaluate(config, "test") == score
    assert names(calls) == []
    plans = first.plan(config), second.plan(config)
    assert plans[0].grids == plans[1].grids
    bank = {t: first.bank.grid(t, 3) for t in plans[0].grids}
    moved = [t for t, grid in plans[0].grids.items() if grid.scale != bank[t].scale]
    assert moved, "steps were learned"
    for tensor, grid in plans[0].grids.items():
        assert replace(grid, scale=1.0) == replace(bank[tensor], scale=1.0), "only the step moves"


def test_stitching_is_independent_of_the_other_units(tmp_path: Path, calls: list[Call]) -> None:
    """Preset bank: every (unit, bits) once, on float inputs."""
    subject = evaluator(tmp_path, preset="bank", activation_lr=1e-2)
    even = subject.plan(uniform(3))
    assert names(calls) == UNITS
    mixed = subject.plan(BitConfig((2, 3, 3, 3, 4), (4,) * 5))
    assert names(calls) == [UNITS[0], UNITS[2]]
    for layer in (1, 2, 3):
        assert torch.equal(even.layers[layer].weight, mixed.layers[layer].weight)
    assert not torch.equal(even.layers[0].weight, mixed.layers[0].weight)
    subject.plan(BitConfig((2, 3, 3, 3, 3), (4,) * 5))
    subject.plan(BitConfig((3, 3, 3, 3, 4), (4,) * 5))
    assert names(calls) == []
    alone = evaluator(tmp_path / "other", preset="bank", activation_lr=1e-2)
    only = alone.plan(BitConfig((32, 3, 3, 3, 32), (4,) * 5))
    assert names(calls) == UNITS[1:2]
    for layer in (1, 2, 3):
        assert torch.equal(only.layers[layer].weight, even.layers[layer].weight)


def test_inputs_are_quantized_in_sequence_and_float_in_the_bank(tmp_path: Path, calls: list[Call]) -> None:
    inputs = {}
    for preset in ("bank", "fast"):
        evaluator(tmp_path, preset=preset).plan(uniform(2, 3))
        inputs[preset] = {call.unit: call.values for call in calls}
        names(calls)
    target = toy_target()
    images = target.splits["calibration"].images[:4]
    assert torch.equal(inputs["bank"][UNITS[0]][0], images)
    for unit in UNITS[1:]:
        assert not torch.allclose(inputs["bank"][unit][0], inputs["fast"][unit][0], atol=1e-2)
    for unit in UNITS:
        assert torch.equal(inputs["bank"][unit][1], inputs["fast"][unit][1]), "targets are those of the float network"
    # In sequence, a unit's input is what the plan of the units before makes of the images.
    subject = evaluator(tmp_path)
    plan = subject.plan(uniform(2, 3))
    program = subject.engine.program
    state = program.start(images)
    entry = target.graph.units[1].entry
    program.advance([state], plan, 0, program.position[entry] + 1)
    torch.testing.assert_close(state[entry].real(), inputs["fast"][UNITS[1]][0], rtol=1e-6, atol=1e-6)


# --- what is never worse


@pytest.mark.parametrize("preset", ["bank", "fast"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_unit_is_never_worse_than_the_bank_on_held_out_images(
    preset: str, bits: int, tmp_path: Path, calls: list[Call]
) -> None:
    evaluator(tmp_path, preset=preset, iterations=3, lr=3.0).plan(uniform(bits))
    assert len(calls) == 3
    for call in calls:
        losses = call.result.losses
        assert set(losses) == {"nearest", "start", "learned"}
        kept = min(losses.values())
        assert kept <= losses["start"], "the start is the rounding of the bank"
        if losses["learned"] > losses["start"] and losses["start"] <= losses["nearest"]:
            start = call.options["start"]
            assert all(torch.equal(call.result.codes[i], start[i]) for i in start)
        assert call.options["holdout"] == pytest.approx(4 / 32), "none of those that the bank was fitted on"


def test_the_start_is_the_rounding_of_the_bank(tmp_path: Path, calls: list[Call]) -> None:
    subject = evaluator(tmp_path)
    subject.plan(uniform(3))
    for call in calls:
        for layer, codes in call.options["start"].items():
            assert torch.equal(codes, subject.bank.weight(layer, 3).codes)
    names(calls)
    evaluator(tmp_path, warm_start=False).plan(uniform(3))
    assert [call.options["start"] for call in calls] == [None] * 3
    names(calls)
    evaluator(tmp_path, preset="paper").plan(uniform(3))
    assert [call.options["start"] for call in calls] == [None] * 3
    assert calls[0].schedule.lr == 1e-3


@pytest.mark.parametrize("preset", ["bank", "fast"])
def test_a_candidate_is_never_worse_than_the_stitched_one_on_held_out_images(preset: str, tmp_path: Path) -> None:
    target = noise_target("residual")
    cache = ArtifactCache(tmp_path)
    ptq = PTQEvaluator(target, {}, CPU, 0, cache)
    ours = BRECQEvaluator(target, {"preset": preset, "iterations": 2, "lr": 5.0}, CPU, 0, cache)
    kinds = set()
    for bits in (1, 2, 3):
        config = config_of(target.graph, [bits, 2, 4], [8])
        stitched, found = ptq.prepare(config), ours.prepare(config)
        assert found.error <= stitched.error
        kinds.add(found.weights)
        if found.weights == "stitched":
            assert ours.evaluate(config, "test") == ptq.evaluate(config, "test")
    assert kinds <= {"stitched", "reconstructed"}


def test_units_of_8_bits_and_float_units_keep_the_bank(tmp_path: Path, calls: list[Call]) -> None:
    subject = evaluator(tmp_path)
    for weights in ((8,) * 5, (32,) * 5, (8, 32, 8, 16, 8)):
        config = BitConfig(weights, (4,) * 5)
        plan = subject.plan(config)
        assert names(calls) == []
        assert all(layer is subject.bank.plan(i, weights[i]) for i, layer in plan.layers.items())
    plan = subject.plan(BitConfig((8, 8, 3, 32, 8), (4,) * 5))
    assert [call.unit for call in calls] == UNITS[1:2]
    assert sorted(calls[0].weight_grids) == [1, 2], "the float layer of the unit stays float"
    assert 3 not in plan.layers


# --- activations


def test_steps_are_learned_where_a_rate_is_given(tmp_path: Path, calls: list[Call]) -> None:
    for rate in (0.0, 1e-2):
        subject = evaluator(tmp_path, activation_lr=rate)
        plan = subject.plan(uniform(2, 3))
        moved = [t for t, grid in plan.grids.items() if grid != subject.bank.grid(t, 3)]
        assert bool(moved) == (rate > 0)
        assert names(calls) == UNITS


@pytest.mark.parametrize("preset", ["bank", "fast"])
def test_the_step_of_a_tensor_that_several_units_read_is_that_of_the_first(
    preset: str, tmp_path: Path, calls: list[Call]
) -> None:
    """Whichever of them come out of the cache."""
    target = noise_target("pooled")
    graph = target.graph
    layers = len(graph.layers)
    config = BitConfig((2,) * layers, (3,) * layers)
    options = {"preset": preset, "activation_lr": 3e-2, "iterations": 30, "warm_start": False}
    fresh = evaluator(tmp_path / "a", target, **options)
    plan = fresh.plan(config)
    shared = [t for t in plan.grids if sum(t in call.grids for call in calls) > 1]
    assert shared, "the case shows something"
    for tensor in shared:
        learned = [call.result.activation_grids[tensor] for call in calls if tensor in call.grids]
        assert plan.grids[tensor] == learned[0]
        assert preset == "fast" or learned[0] != learned[1]
    if preset == "fast":
        return
    # The unit that comes second is learned first, with another first unit; then both are put together.
    late = evaluator(tmp_path / "b", target, **options)
    order = [call.unit for call in calls if shared[0] in call.grids]
    first_unit = next(unit for unit in graph.units if unit.name == order[0])
    skipped = BitConfig(tuple(8 if i in first_unit.layers else 2 for i in range(layers)), (3,) * layers)
    late.plan(skipped)
    assert late.plan(config).grids == plan.grids
    for layer in range(layers):
        assert torch.equal(late.plan(config).layers[layer].weight, plan.layers[layer].weight)


def test_drop_prob_mixes_float_inputs_in(tmp_path: Path, calls: list[Call]) -> None:
    evaluator(tmp_path, drop_prob=0.5).plan(uniform(2))
    assert all(call.options["float_inputs"] is not None for call in calls)
    assert all(call.schedule.drop_prob == 0.5 for call in calls)
    names(calls)
    evaluator(tmp_path).plan(uniform(2))
    assert all(call.options["float_inputs"] is None for call in calls)


# --- Fisher weights


def test_trap_09_fisher_modes(tmp_path: Path, calls: list[Call]) -> None:
    """The published weights are nearly even (the floor of 1 hides the gradients), the corrected ones are not."""
    found = {}
    for mode in ("none", "published", "corrected"):
        score = evaluator(tmp_path, fisher=mode).evaluate(uniform(2), "test")
        assert math.isfinite(score.loss)
        found[mode] = {call.unit: call.importance for call in calls}
        assert names(calls) == UNITS
    assert all(weights is None for weights in found["none"].values())
    for unit in UNITS:
        published, corrected = found["published"][unit], found["corrected"][unit]
        assert published is not None
        assert corrected is not None
        assert published.shape == corrected.shape
        assert float(published.min()) >= 1.0
        assert float(published.max()) < 1.1
        assert float(published.std()) > 0, "gradients of a network that is quantized up to here"
        assert float(corrected.mean()) == pytest.approx(1.0, abs=1e-3)
        assert float(corrected.min()) >= 0.05 - 1e-6
        assert float(corrected.std()) > 10 * float(published.std())


# --- keys, seeds, options


def test_keys_name_everything_that_matters(tmp_path: Path, calls: list[Call]) -> None:
    target = toy_target()
    evaluator(tmp_path, target).plan(uniform(3))
    assert names(calls) == UNITS
    evaluator(tmp_path, target).plan(uniform(3))
    assert names(calls) == []
    scored = replace(target, splits={**target.splits, "validation": target.splits["test"]})
    evaluator(tmp_path, scored).plan(uniform(3))
    assert names(calls) == [], "what is scored does not matter"
    evaluator(tmp_path, target, max_cache_gb=0.0).plan(uniform(3))
    assert names(calls) == [], "nor does memory"
    images = target.splits["calibration"]
    other = replace(
        target, splits={**target.splits, "calibration": replace(images, images=images.images + 0.1, digest="")}
    )
    for changed in (
        evaluator(tmp_path, target, iterations=13),
        evaluator(tmp_path, target, lr=0.2),
        evaluator(tmp_path, target, drop_prob=0.5),
        evaluator(tmp_path, target, fisher="corrected"),
        evaluator(tmp_path, target, seed=1),
        evaluator(tmp_path, target, preset="bank"),
        evaluator(tmp_path, target, rounding="nearest"),
        evaluator(tmp_path, other),
        evaluator(tmp_path, replace(target, quantizer=QuantizerSpec(weights=WeightQuantizerSpec(grid="narrow")))),
    ):
        changed.plan(uniform(3))
        assert names(calls) == UNITS


def test_trap_18_every_unit_has_a_seed_of_its_own(tmp_path: Path, calls: list[Call]) -> None:
    seeds = []
    for seed in (0, 0, 1):
        evaluator(tmp_path / str(len(seeds)), seed=seed).plan(uniform(2))
        seeds.append([call.options["generator"].initial_seed() for call in calls])
        names(calls)
    assert seeds[0] == seeds[1]
    assert not set(seeds[0]) & set(seeds[2])
    assert len(set(seeds[0])) == 3


def test_memory_on_disk_gives_equal_results(tmp_path: Path) -> None:
    plans = [
        evaluator(tmp_path / f"{gb}", max_cache_gb=gb, fisher="corrected", iterations=5).plan(uniform(2))
        for gb in (0.0, 1e-5, 1.0)
    ]
    for layer in range(5):
        assert torch.equal(plans[0].layers[layer].weight, plans[2].layers[layer].weight)
        assert torch.equal(plans[1].layers[layer].weight, plans[2].layers[layer].weight)


def test_a_codebook_is_refused_with_a_hint(tmp_path: Path) -> None:
    target = replace(toy_target(), quantizer=QuantizerSpec(weights=WeightQuantizerSpec(grid="codebook")))
    subject = evaluator(tmp_path, target)
    with pytest.raises(EvaluationError, match="cannot be learned") as error:
        subject.evaluate(uniform(3), "test")
    assert "ptq" in error.value.hint
    assert subject.evaluate(uniform(8), "test").samples == 60, "8 bits are not learned"
    assert PTQEvaluator(target, {}, CPU, 0).evaluate(uniform(3), "test").samples == 60


@pytest.mark.parametrize(
    "spec",
    [
        WeightQuantizerSpec(grid="affine"),
        WeightQuantizerSpec(grid="narrow"),
        WeightQuantizerSpec(granularity="group", group_size=8),
        WeightQuantizerSpec(granularity="tensor"),
        WeightQuantizerSpec(power_of_two=True),
    ],
    ids=["affine", "narrow", "group", "tensor", "power of two"],
)
def test_every_even_grid_is_learned_and_codes_stay_on_it(spec: WeightQuantizerSpec, tmp_path: Path) -> None:
    subject = evaluator(tmp_path, replace(toy_target(), quantizer=QuantizerSpec(weights=spec)), preset="bank")
    for bits in (1, 2):
        config = uniform(bits)
        learned = subject._sequence.learn(
            config, dict.fromkeys(range(len(subject.target.graph.tensors)), 4), PTQEvaluator.plan(subject, config)
        )
        weights = {i: w for found in learned.values() for i, w in found.weights.items()}
        assert sorted(weights) == list(range(5))
        for layer, weight in weights.items():
            grid = subject.bank.weight(layer, bits).grid
            assert torch.equal(weight.codes, weight.codes.round().clamp(grid.low, grid.high))  # type: ignore[union-attr]
            assert torch.equal(weight.values, grid.quantize(weight.values))


@pytest.mark.parametrize("name", ["residual", "sums", "gate", "split", "odd", "pooled"])
@pytest.mark.parametrize("preset", ["bank", "fast"])
def test_every_kind_of_network_goes_through(name: str, preset: str, tmp_path: Path, calls: list[Call]) -> None:
    target = noise_target(name, "both_inputs" if name == "residual" else "after_relu")
    subject = evaluator(tmp_path, target, preset=preset, iterations=4, activation_lr=1e-3, drop_prob=0.5)
    config = config_of(target.graph, [2, 3], [4])
    assert math.isfinite(subject.evaluate(config, "test").loss)
    assert sorted(names(calls)) == sorted(unit.name for unit in target.graph.units)
