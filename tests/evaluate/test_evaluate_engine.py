"""One forward pass a candidate: from the prefix it shares with earlier ones, corrected where that helps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_targets import config_of, noise_target

from qsearch.data import Split
from qsearch.errors import EvaluationError
from qsearch.evaluate import Target
from qsearch.evaluate.artifacts import ArtifactCache
from qsearch.evaluate.engine import HOLDOUT_MAX, Engine, logit_error
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.quant.correction import Correction, Moments
from qsearch.quant.program import LayerPlan, Plan
from qsearch.testing.evaluators import toy_target
from qsearch.types import BitConfig, Score

CPU = torch.device("cpu")


def evaluator(target: Target, cache: ArtifactCache | None = None, **options: Any) -> PTQEvaluator:
    return PTQEvaluator(target, options, CPU, 0, cache)


# --- scores


@pytest.mark.parametrize("name", ["residual", "split", "sums", "gate"])
def test_a_score_is_that_of_one_plain_forward(name: str) -> None:
    """Whatever the chunks, and also where the last one is small."""
    target = noise_target(name, scored=21)
    subject = evaluator(target)
    config = config_of(target.graph, [2, 3, 8], [4, 8])
    plan, split = subject.prepare(config).plan, target.splits["test"]
    logits = subject.engine.program.logits(split.images, plan)
    score = subject.evaluate(config, "test")
    assert score.correct == int((logits.argmax(1) == split.labels).sum())
    assert score.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, split.labels)), rel=1e-5)


@pytest.mark.parametrize(
    ("total", "held_out"), [(1, 1), (2, 1), (7, 1), (8, 1), (16, 2), (1024, 128), (5000, HOLDOUT_MAX)]
)
def test_an_eighth_of_the_calibration_images_is_held_out(total: int, held_out: int) -> None:
    target = toy_target()
    images = torch.arange(float(total)).reshape(-1, 1, 1, 1).expand(total, 2, 6, 6)
    splits = {**target.splits, "calibration": Split("calibration", images, torch.zeros(total).long())}
    engine = Engine(replace(target, splits=splits), CPU, 100, 0)
    assert engine.holdout_images[:, 0, 0, 0].tolist() == list(range(total - held_out, total))
    assert engine.fit_images[:, 0, 0, 0].tolist() == list(range(max(1, total - held_out)))


def test_a_split_that_is_not_there() -> None:
    with pytest.raises(EvaluationError, match="no split 'validate'") as error:
        evaluator(toy_target()).engine.score(Plan(), "validate")
    assert "'validation'" in error.value.hint


# --- prefixes


class Pair:
    """An evaluator that keeps prefixes and one that does not, on one bank."""

    def __init__(self, name: str, folder: Path, gigabytes: float = 1.0) -> None:
        self.target = noise_target(name) if name != "toy" else toy_target()
        cache = ArtifactCache(folder)
        self.keeping = evaluator(self.target, cache, max_cache_gb=gigabytes, correction_images=16)
        self.plain = evaluator(self.target, cache, max_cache_gb=0, correction_images=16)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {name: Pair(name, tmp_path_factory.mktemp(name)) for name in ("residual", "split")}


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["residual", "split"]),
    moves=st.lists(
        st.tuples(st.lists(st.sampled_from([1, 2, 3, 8, 32]), min_size=7, max_size=7), st.sampled_from([3, 8, 32])),
        min_size=1,
        max_size=5,
    ),
    split=st.sampled_from(["validation", "test"]),
)
def test_scores_with_shared_prefixes_are_those_without(
    pairs: dict[str, Pair], name: str, moves: list[tuple[list[int], int]], split: str
) -> None:
    """To the last bit, in any order of candidates."""
    pair = pairs[name]
    for weights, activation in moves:
        config = config_of(pair.target.graph, weights, [8, activation])
        assert pair.keeping.evaluate(config, split) == pair.plain.evaluate(config, split)


@pytest.mark.parametrize("name", ["residual", "digits"])
def test_a_candidate_that_differs_late_begins_late(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(name, tmp_path)
    engine, program = pair.keeping.engine, pair.keeping.engine.program
    layers = len(pair.target.graph.layers)
    first = BitConfig((3,) * layers, (8,) * layers)
    late = BitConfig((*first.weights[:-1], 4), first.activations)
    early = BitConfig((4, *first.weights[1:]), first.activations)
    plans = {config: pair.keeping.prepare(config).plan for config in (first, late, early)}
    scores = {config: pair.plain.engine.score(plan, "test") for config, plan in plans.items()}
    begun: list[int] = []
    original = program.advance

    def noted(states: Any, plan: Plan, first: int, last: int, *rest: Any, **options: Any) -> None:
        begun.append(first)
        original(states, plan, first, last, *rest, **options)

    monkeypatch.setattr(program, "advance", noted)
    for config, hits in ((first, 0), (late, 1), (late, 2), (early, 2)):
        begun.clear()
        assert engine.score(plans[config], "test") == scores[config]
        assert engine._prefixes.hits == hits
        assert (min(begun) > 0) == (config is late)
    assert engine.score(plans[first], "validation") == pair.plain.engine.score(plans[first], "validation")
    assert engine._prefixes.hits == 2, "another split has other values"


@pytest.mark.parametrize("gigabytes", [0, 1e-6, 3e-5, 1e-3])
def test_memory_of_prefixes_is_bounded(gigabytes: float, tmp_path: Path) -> None:
    pair = Pair("residual", tmp_path, gigabytes)
    cache = pair.keeping.engine._prefixes
    assert cache.max_bytes == int(gigabytes * 1e9)
    for a in (2, 8, 32):
        for last in (2, 3, 4):
            config = config_of(pair.target.graph, [3, 3, 3, 3, 3, 3, last], [a])
            assert pair.keeping.evaluate(config, "test") == pair.plain.evaluate(config, "test")
            held = sum(v.data.nbytes for values in cache._entries.values() for v in values)
            assert held == cache.bytes <= cache.max_bytes
    assert (cache.hits > 0) == (gigabytes >= 3e-5)


def test_codes_are_kept_in_one_byte(tmp_path: Path) -> None:
    pair = Pair("residual", tmp_path)
    pair.keeping.evaluate(BitConfig((3,) * 7, (8,) * 7), "test")
    kept = [v for values in pair.keeping.engine._prefixes._entries.values() for v in values]
    assert {v.data.dtype for v in kept if v.step is not None} == {torch.uint8}
    assert {v.data.dtype for v in kept if v.step is None} <= {torch.float32}


def test_a_plan_without_tokens_shares_nothing(tmp_path: Path) -> None:
    pair = Pair("residual", tmp_path)
    config = BitConfig((3,) * 7, (8,) * 7)
    plan = pair.keeping.prepare(config).plan
    nameless = Plan({i: LayerPlan(p.weight, p.multiplier, p.bias) for i, p in plan.layers.items()}, plan.grids)
    engine = pair.keeping.engine
    assert engine.score(nameless, "test") == engine.score(plan, "test") == engine.score(nameless, "test")
    assert engine._prefixes.hits == 0
    assert engine._prefixes.bytes > 0


# --- the guard


class Worsened(Correction):
    """Gives every image the outputs of another one, which no statistic shows."""

    def __call__(self, layer: int, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [output.roll(1, 0) for output in super().__call__(layer, outputs)]


def test_trap_16_a_correction_that_hurts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of some images say nothing of the held-out ones when these are of another kind."""
    target = noise_target("residual")
    calibration = target.splits["calibration"]
    images = calibration.images.clone()
    images[:-4] = -3.0  # black frames, all alike
    splits = {**target.splits, "calibration": Split("calibration", images, calibration.labels)}
    config = BitConfig((2,) * 7, (32,) * 7)
    honest, misled = evaluator(target), evaluator(replace(target, splits=splits))
    helped, hurt = honest.prepare(config), misled.prepare(config)
    assert helped.kept
    assert helped.error < helped.uncorrected
    assert not hurt.kept
    assert hurt.plan is hurt.bare
    assert hurt.error == hurt.uncorrected
    assert all("corrected" not in str(layer.token) for layer in hurt.plan.layers.values())
    without = evaluator(replace(target, splits=splits), correction="none")
    assert misled.evaluate(config, "test") == without.evaluate(config, "test")
    monkeypatch.setattr("qsearch.evaluate.engine.Correction", Worsened)
    assert not evaluator(target).prepare(config).kept


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_trap_16_a_correction_that_is_not_finite_is_refused(value: float) -> None:
    subject = evaluator(noise_target("residual"))
    engine, config = subject.engine, BitConfig((2,) * 7, (32,) * 7)
    plan = subject.plan(config)
    mean = engine.moments[3].mean
    engine.moments[3] = Moments(torch.full_like(mean, value), engine.moments[3].deviation)
    found = engine.corrected(plan, deviation=True)
    assert not found.kept
    assert found.plan is plan
    assert math.isfinite(found.error)
    assert math.isfinite(engine.score(found.plan, "test").loss)


def test_the_correction_is_judged_on_held_out_images_only() -> None:
    subject = evaluator(noise_target("residual"))
    engine, config = subject.engine, BitConfig((2,) * 7, (4,) * 7)
    found = subject.prepare(config)
    with torch.no_grad():
        reference = engine.program.logits(engine.holdout_images, Plan())
        corrected = engine.program.logits(engine.holdout_images, found.plan)
        bare = engine.program.logits(engine.holdout_images, found.bare)
    assert found.uncorrected == pytest.approx(logit_error(bare, reference), rel=1e-6)
    # A value in the middle of two codes may fall to the other side when the corrected plan is run anew.
    assert found.error == pytest.approx(logit_error(corrected, reference), rel=0.1)


def test_power_of_two_scales_stay_so_when_corrected() -> None:
    from qsearch.spec import QuantizerSpec, WeightQuantizerSpec

    spec = QuantizerSpec(weights=WeightQuantizerSpec(power_of_two=True))
    subject = evaluator(replace(noise_target("residual"), quantizer=spec))
    found = subject.prepare(BitConfig((2,) * 7, (32,) * 7))
    assert found.kept
    for layer in found.plan.layers.values():
        assert layer.multiplier is not None
        exponents = layer.multiplier.abs().log2()
        assert torch.equal(exponents, exponents.round())


def test_scoring_another_split_corrects_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = evaluator(toy_target())
    calls: list[Plan] = []
    original = subject.engine.corrected
    monkeypatch.setattr(subject.engine, "corrected", lambda plan, **o: calls.append(plan) or original(plan, **o))
    configs = [BitConfig((bits,) * 5, (8,) * 5) for bits in (2, 3, 4, 5, 6)]
    for config in configs[:4]:
        for split in ("validation", "test"):
            subject.evaluate(config, split)
    assert len(calls) == 4
    subject.evaluate(configs[4], "validation")
    subject.evaluate(configs[3], "validation")
    assert len(calls) == 5
    subject.evaluate(configs[0], "validation")
    assert len(calls) == 6, "only the last few are kept"


def test_logit_error_by_hand() -> None:
    reference = torch.tensor([[1.0, -1.0], [3.0, 1.0]])
    assert logit_error(reference, reference) == 0.0
    assert logit_error(reference + torch.tensor([[5.0], [-7.0]]), reference) == pytest.approx(0.0, abs=1e-12)
    assert logit_error(2 * reference, reference) == pytest.approx(1.0)
    assert logit_error(torch.zeros(2, 2), reference) == pytest.approx(1.0)
    assert math.isnan(logit_error(torch.full((2, 2), math.nan), reference))


def test_phases_are_timed(tmp_path: Path) -> None:
    subject = evaluator(toy_target(), ArtifactCache(tmp_path))
    subject.evaluate(BitConfig((3,) * 5, (8,) * 5), "test")
    assert {"calibrate", "round", "correct", "forward"} <= set(subject.engine.timer.seconds)


def test_trap_20_a_candidate_builds_no_module_and_copies_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates share the tensors of the bank."""
    subject = evaluator(toy_target())
    plans: Sequence[Plan] = [subject.plan(BitConfig((3, 3, 3, 3, last), (8,) * 5)) for last in (2, 4)]
    for index in range(4):
        assert plans[0].layers[index] is plans[1].layers[index]
    corrected = subject.prepare(BitConfig((3,) * 5, (8,) * 5)).plan
    for index in range(4):
        assert corrected.layers[index].weight is plans[0].layers[index].weight
    built: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda self, *a, **k: built.append(type(self).__name__))
    assert isinstance(subject.evaluate(BitConfig((3, 3, 3, 3, 2), (8,) * 5), "test"), Score)
    assert built == []
