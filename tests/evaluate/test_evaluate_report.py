"""The report of one evaluation: it agrees with the evaluator, and its errors are those of the tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qsearch.errors import EvaluationError
from qsearch.evaluate import Target, evaluation_key, make_evaluator
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.evaluate.report import Inspectable, LayerError, evaluation_report, output_errors, stored_bytes
from qsearch.hardware import SizeRules, layer_size_bytes
from qsearch.quant.program import Plan
from qsearch.spec import ActivationQuantizerSpec, QuantizerSpec, WeightQuantizerSpec
from qsearch.testing.evaluators import toy_target
from qsearch.types import BitConfig, Score, canonical_json

BOTH = ("validation", "test")
ENGINE_KEYS = {"weight_sqnr_db", "output_sqnr_db", "output_relative_error"}


@pytest.fixture(scope="module")
def target() -> Target:
    return toy_target()


def bits(w: int, a: int) -> BitConfig:
    return BitConfig((w,) * 5, (a,) * 5)


def report_of(
    target: Target, config: BitConfig, fidelity: str = "ptq", splits: tuple[str, ...] = BOTH, **options: Any
) -> dict[str, Any]:
    evaluator = make_evaluator(fidelity, target, options)
    return evaluation_report(evaluator, target, config, splits, options=options)


def relative_errors(report: Mapping[str, Any]) -> list[float]:
    return [layer["output_relative_error"] for layer in report["layers"]]


class Constant:
    """A third party's evaluator: it says nothing of how it works."""

    name = "constant"
    version = 7

    def settings(self) -> dict[str, Any]:
        return {"answer": 42, "weights": "mine"}

    def evaluate(self, config: BitConfig, split: str) -> Score:
        return Score(accuracy=25.0, loss=math.inf, correct=1, samples=4)


def test_scores_are_those_of_the_evaluator(target: Target) -> None:
    report = report_of(target, bits(3, 6))
    other = make_evaluator("ptq", target, {})
    assert isinstance(other, PTQEvaluator)
    for split in BOTH:
        assert report["scores"][split] == other.evaluate(bits(3, 6), split).to_json()
        assert report["float_scores"][split] == other.evaluate_float(split).to_json()
        assert report["accuracy"][split] == report["scores"][split]["accuracy"]
        assert report["digests"]["keys"][split] == evaluation_key(other, target, bits(3, 6), split, 0).digest
    assert report["accuracy"]["float"] == report["float_scores"]["test"]["accuracy"]
    assert report["digests"]["data"]["calibration"] == report["calibration"]["digest"]
    canonical_json(report)  # no NaN, no infinity


def test_a_split_that_is_not_scored_is_null(target: Target) -> None:
    report = report_of(target, bits(8, 8), splits=("validation",))
    assert report["accuracy"]["test"] is None
    assert report["accuracy"]["float"] == report["float_scores"]["validation"]["accuracy"]
    (row,) = [row for row in report["conventions"] if row["name"] == "float accuracy"]
    assert "validation" in row["value"]


def test_errors_fall_with_the_bits(target: Target) -> None:
    reports = [report_of(target, bits(w, 32), correction="none") for w in (2, 4, 8)]
    for index in range(5):
        low, middle, high = (report["layers"][index]["weight_sqnr_db"] for report in reports)
        assert low + 6 < middle < high - 12
    errors = [relative_errors(report) for report in reports]
    assert all(high < middle < low for low, middle, high in zip(*errors, strict=True))


def test_float_activations_have_smaller_errors_than_8_bits_and_these_than_3(target: Target) -> None:
    errors = [relative_errors(report_of(target, bits(32, a), correction="none")) for a in (3, 8, 32)]
    assert all(low > middle > exact == 0.0 for low, middle, exact in zip(*errors, strict=True))


def test_an_error_shows_where_it_arises_and_where_it_goes(target: Target) -> None:
    # stem, conv1, conv2, shortcut, classifier: the shortcut does not read conv2.
    report = report_of(target, BitConfig((32, 32, 2, 32, 32), (32,) * 5), correction="none")
    noisy = {layer["name"] for layer in report["layers"] if layer["output_sqnr_db"] is not None}
    assert noisy == {"conv2", "classifier"}
    assert [layer["weight_sqnr_db"] is not None for layer in report["layers"]] == [False, False, True, False, False]


def test_errors_against_another_way_to_compute_them(target: Target) -> None:
    evaluator = make_evaluator("ptq", target, {})
    assert isinstance(evaluator, PTQEvaluator)
    report = evaluation_report(evaluator, target, bits(3, 4), BOTH)
    engine, plan = evaluator.engine, evaluator.prepare(bits(3, 4)).plan
    with torch.no_grad():
        exact = engine.program.logits(engine.holdout_images, Plan())
        difference = engine.program.logits(engine.holdout_images, plan) - exact
    last = report["layers"][-1]
    assert last["output_relative_error"] == pytest.approx(float(difference.norm() / exact.norm()), rel=1e-4)
    for index, layer in enumerate(report["layers"]):
        weight = target.graph.layer_module(index).weight.detach()
        noise = evaluator.bank.weight(index, 3).values - weight
        assert layer["weight_sqnr_db"] == pytest.approx(20 * math.log10(weight.norm() / noise.norm()), rel=1e-4)


def test_weight_errors_are_those_of_what_was_scored(target: Target) -> None:
    evaluator = make_evaluator("ptq", target, {})
    assert isinstance(evaluator, PTQEvaluator)
    evaluator.prepare = lambda config: PTQEvaluator.prepare(evaluator, bits(8, 8))  # type: ignore[method-assign]
    report = evaluation_report(evaluator, target, bits(2, 8), ("validation",))
    eight = report_of(target, bits(8, 8), splits=("validation",))
    assert [layer["weight_sqnr_db"] for layer in report["layers"]] == [
        layer["weight_sqnr_db"] for layer in eight["layers"]
    ]


def test_output_errors_do_not_depend_on_the_chunks(target: Target) -> None:
    evaluator = make_evaluator("ptq", target, {})
    assert isinstance(evaluator, PTQEvaluator)
    plan = evaluator.plan(bits(4, 4))
    whole = output_errors(evaluator.engine, plan)
    evaluator.engine.chunk = 3
    for part, full in zip(output_errors(evaluator.engine, plan), whole, strict=True):
        assert part.relative == pytest.approx(full.relative, rel=1e-5)


def test_the_guard(target: Target) -> None:
    report = report_of(target, bits(2, 8))
    evaluator = make_evaluator("ptq", target, {})
    assert isinstance(evaluator, PTQEvaluator)
    found = evaluator.prepare(bits(2, 8))
    assert report["guard"] == {
        "logit_error": found.error,
        "uncorrected": found.uncorrected,
        "kept": found.kept,
        "weights": "stitched",
    }
    assert found.error <= found.uncorrected
    plain = report_of(target, bits(2, 8), correction="none")["guard"]
    assert plain == {
        "logit_error": found.uncorrected,
        "uncorrected": found.uncorrected,
        "kept": False,
        "weights": "stitched",
    }


def test_calibration_positions(target: Target) -> None:
    calibration = report_of(target, bits(8, 8))["calibration"]
    (first, middle), (again, last) = calibration["ids"]["fit"], calibration["ids"]["held_out"]
    assert (first, middle, last) == (0, again, calibration["images"])
    assert last - again == calibration["held_out"] > 0
    evaluator = make_evaluator("ptq", target, {})
    assert isinstance(evaluator, PTQEvaluator)
    images = target.splits["calibration"].images
    assert torch.equal(images[again:last], evaluator.engine.holdout_images)
    assert torch.equal(images[first:middle], evaluator.engine.fit_images)


def test_time_by_phase(target: Target) -> None:
    evaluator = make_evaluator("ptq", target, {})
    first = evaluation_report(evaluator, target, bits(5, 5), BOTH)["seconds"]
    assert {"correct", "forward", "other", "float_forward", "layer_errors"} <= set(first)
    assert all(seconds >= 0 for seconds in first.values())
    again = evaluation_report(evaluator, target, bits(5, 5), BOTH)["seconds"]
    assert again["correct"] == 0  # it was corrected before: only what this evaluation took counts
    assert again["forward"] > 0


def test_reconstruction_has_a_phase_and_rows_of_its_own(target: Target) -> None:
    report = report_of(target, bits(2, 8), "brecq", ("validation",), iterations=5, preset="bank")
    assert report["seconds"]["reconstruct"] > 0
    rows = {row["name"]: row["value"] for row in report["conventions"]}
    assert (rows["reconstruction"], rows["iterations"], rows["sequential"]) == ("bank", "5", "false")
    assert "reconstruction" not in {row["name"] for row in report_of(target, bits(2, 8))["conventions"]}


def test_peak_memory_is_that_of_a_process_with_torch(target: Target) -> None:
    assert report_of(target, bits(8, 8))["peak_memory_bytes"] > 50e6


def test_an_evaluator_without_an_engine(target: Target) -> None:
    report = evaluation_report(Constant(), target, bits(4, 8), BOTH, seed=3)
    assert not isinstance(Constant(), Inspectable)
    assert report["accuracy"] == {
        "float": make_evaluator("ptq", target, {}).evaluate(bits(32, 32), "test").accuracy,
        "validation": 25.0,
        "test": 25.0,
    }
    assert report["scores"]["test"]["loss"] is None
    assert not ENGINE_KEYS & set(report["layers"][0])
    assert report["layers"][1] == {"name": "conv1", "kind": "conv", "weight_bits": 4, "activation_bits": 8}
    assert "guard" not in report
    assert set(report["calibration"]) == {"digest", "images"}
    assert set(report["seconds"]) == {"evaluate", "float_forward", "layer_errors"}
    rows = {row["name"]: row["value"] for row in report["conventions"]}
    assert (rows["answer"], rows["weights"], rows["seed"]) == ("42", "mine", "3")
    assert "weight grid" not in rows  # nobody knows
    canonical_json(report)


def test_unknown_split(target: Target) -> None:
    with pytest.raises(EvaluationError, match="vaildation"):
        report_of(target, bits(8, 8), splits=("vaildation",))


@pytest.mark.parametrize("fidelity", ["ptq", "brecq"])
def test_every_setting_is_in_the_table_of_conventions(target: Target, fidelity: str) -> None:
    evaluator = make_evaluator(fidelity, target, {})
    options = {"iterations": 5} if fidelity == "brecq" else {}
    report = report_of(target, bits(8, 8), fidelity, **options)
    rows = report["conventions"]
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    assert all(row["name"] and row["value"] and row["why"] for row in rows)
    assert len(rows) >= 20
    assert {"first layer", "last layer", "residual additions", "input image", "logits", "correction"} <= set(names)
    unexplained = [row["name"] for row in rows if row["why"].startswith("setting of evaluator")]
    assert not set(unexplained) - set(evaluator.settings())


def quantizer(weights: Mapping[str, Any] | None = None, activations: Mapping[str, Any] | None = None) -> QuantizerSpec:
    return QuantizerSpec(
        weights=WeightQuantizerSpec(**(weights or {})), activations=ActivationQuantizerSpec(**(activations or {}))
    )


@pytest.mark.parametrize(
    ("changed", "rows"),
    [
        (QuantizerSpec(add_policy="both_inputs"), {"residual additions"}),
        (QuantizerSpec(units="layer"), {"units"}),
        (QuantizerSpec(equalize=True), {"equalization"}),
        (quantizer({"grid": "narrow"}), {"weight grid", "weight scales"}),
        (quantizer({"grid": "affine"}), {"weight grid", "weight scales", "size"}),
        (quantizer({"grid": "codebook"}), {"weight grid", "size"}),
        (quantizer({"granularity": "tensor"}), {"weight scales"}),
        (quantizer({"granularity": "group", "group_size": 8}), {"weight scales"}),
        (quantizer({"power_of_two": True}), {"weight scales", "size", "correction"}),
        (quantizer({"negative_scales": False}), {"weight scales"}),
        (quantizer({"range": "percentile", "percentile": 99.0}), {"weight range"}),
        (quantizer({"norm": 2.4}), {"weight range"}),
        (quantizer(None, {"grid": "symmetric"}), {"activation grid"}),
        (quantizer(None, {"power_of_two": True}), {"activation scales"}),
        (quantizer(None, {"range": "ema", "momentum": 0.99}), {"activation range"}),
    ],
)
def test_a_choice_changes_its_rows_and_no_other(target: Target, changed: QuantizerSpec, rows: set[str]) -> None:
    def table(spec: QuantizerSpec) -> dict[str, str]:
        # Float: nothing has to be quantized to see the conventions.
        report = report_of(replace(target, quantizer=spec), bits(32, 32), splits=("validation",))
        return {row["name"]: row["value"] for row in report["conventions"]}

    before, after = table(QuantizerSpec()), table(changed)
    different = {name for name in before if before[name] != after.get(name)}
    # A codebook has neither scales nor a range.
    gone = {"weight scales", "weight range", "1-bit weights"} if changed.weights.grid == "codebook" else set()
    assert different - gone == rows


def test_options_and_widths_are_in_the_table(target: Target) -> None:
    def rows(config: BitConfig, **options: Any) -> dict[str, str]:
        report = report_of(target, config, splits=("validation",), **options)
        return {row["name"]: row["value"] for row in report["conventions"]}

    table = rows(BitConfig((8, 4, 4, 4, 7), (6, 4, 4, 4, 5)), correction="mean", correction_images=8)
    assert table["first layer"] == "stem.0: 8-bit weights, 6-bit inputs"
    assert table["last layer"] == "classifier: 7-bit weights, 5-bit inputs"
    assert table["input image"].endswith("to 6 bits")
    assert table["correction"].startswith("mean of every channel")
    assert "8 calibration images" in table["correction"]
    assert rows(bits(32, 32), correction="none")["correction"] == "none"
    assert rows(bits(32, 32))["input image"] == "not quantized"
    assert rows(bits(32, 32))["first layer"] == "stem.0: float weights, float inputs"


@pytest.mark.parametrize("spec", [QuantizerSpec(), quantizer({"grid": "codebook"}), quantizer({"grid": "affine"})])
def test_stored_size(target: Target, spec: QuantizerSpec) -> None:
    sized = replace(target, quantizer=spec)
    rules, layers = SizeRules.from_spec(spec), target.graph.layers
    assert stored_bytes(sized, bits(4, 8)) == sum(layer_size_bytes(layer, 4, rules) for layer in layers)
    biases = 4 * sum(layer.out_channels for layer in layers)
    weights = sum(layer.weight_count for layer in layers)
    assert stored_bytes(sized, bits(32, 32)) == 4 * weights + biases
    assert stored_bytes(sized, bits(16, 8)) == 2 * weights + biases


@given(signal=st.floats(1e-6, 1e6), noise=st.floats(1e-9, 1e6))
def test_law_of_decibels(signal: float, noise: float) -> None:
    error = LayerError(signal, noise)
    assert error.sqnr_db is not None
    assert error.relative == pytest.approx(10 ** (-error.sqnr_db / 20), rel=1e-9)
    assert LayerError(signal, 100 * noise).sqnr_db == pytest.approx(error.sqnr_db - 20, abs=1e-6)


def test_errors_of_nothing() -> None:
    assert (LayerError(0.0, 1.0).sqnr_db, LayerError(0.0, 1.0).relative) == (None, None)
    assert (LayerError(2.0, 0.0).sqnr_db, LayerError(2.0, 0.0).relative) == (None, 0.0)
