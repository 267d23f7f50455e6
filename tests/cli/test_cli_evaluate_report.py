"""``qsearch evaluate --model ... --json``: what it reports, and its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import write_study

from qsearch.types import BitConfig, Score

MODEL = "{source: 'qsearch:digits_resnet', arguments: {epochs: 8, width: 8}}"
WHERE = ("--model", MODEL, "--data", "qsearch:digits")


class Third:
    """A third party's evaluator without anything to look into."""

    name = "third"
    version = 1

    def __init__(self, target: Any, options: Any, device: torch.device, seed: int) -> None:
        self.options = dict(options)

    def settings(self) -> dict[str, Any]:
        return self.options

    def evaluate(self, config: BitConfig, split: str) -> Score:
        return Score(accuracy=75.0, loss=0.5, correct=3, samples=4)


def measured(qsearch: Any, *options: object) -> Any:
    ended = qsearch("evaluate", *WHERE, "--json", *options)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.fixture(scope="module")
def report(qsearch: Any, study: Path) -> Any:
    """Of one plain call, to be read by several tests."""
    return measured(qsearch, "--bits", "w3a8")


def test_keys(report: Any) -> None:
    assert {
        *("model", "data", "quantizer", "fidelity", "options", "seed", "accuracy", "scores", "float_scores", "layers"),
        *("mean_weight_bits", "mean_activation_bits", "size_bytes", "seconds", "peak_memory_bytes", "calibration"),
        *("guard", "notes", "digests", "conventions", "environment", "tensors"),
    } <= set(report)


def test_three_accuracies(report: Any) -> None:
    assert list(report["accuracy"]) == ["float", "validation", "test"]
    assert report["accuracy"]["float"] == report["float_scores"]["test"]["accuracy"] > 90
    for split in ("validation", "test"):
        score = report["scores"][split]
        assert report["accuracy"][split] == 100 * score["correct"] / score["samples"]
        assert score["samples"] == 450
    assert report["environment"]["threads"] == 1


def test_layers_time_and_calibration(report: Any) -> None:
    assert [layer["kind"] for layer in report["layers"]].count("depthwise") == 1
    for layer in report["layers"]:
        assert 0 < layer["output_relative_error"] < 1
        assert (layer["weight_sqnr_db"] > 30) == (layer["weight_bits"] == 8)
    assert report["seconds"]["load"] > 0
    assert report["seconds"]["forward"] > 0
    assert report["seconds"]["total"] > report["seconds"]["load"] + report["seconds"]["forward"]
    assert report["calibration"]["ids"] == {"fit": [0, 224], "held_out": [224, 256]}
    assert report["digests"]["data"]["calibration"] == report["calibration"]["digest"]
    assert report["guard"]["logit_error"] <= report["guard"]["uncorrected"]


def test_more_bits_smaller_errors_smaller_bits_smaller_size(qsearch: Any, report: Any) -> None:
    better, worse = measured(qsearch, "--bits", "w8a8"), measured(qsearch, "--bits", "w2a8")
    for low, middle, high in zip(worse["layers"][1:-1], report["layers"][1:-1], better["layers"][1:-1], strict=True):
        assert low["weight_sqnr_db"] < middle["weight_sqnr_db"] < high["weight_sqnr_db"]
        assert low["output_relative_error"] > high["output_relative_error"]
    assert worse["size_bytes"] < report["size_bytes"] < better["size_bytes"]


def test_float_activations(qsearch: Any, report: Any) -> None:
    value = measured(qsearch, "--bits", "w3a32")
    assert {layer["activation_bits"] for layer in value["layers"]} == {32}
    assert [layer["weight_bits"] for layer in value["layers"]] == [layer["weight_bits"] for layer in report["layers"]]
    assert all(tensor["bits"] is None for tensor in value["tensors"])
    assert value["mean_activation_bits"] == 32
    assert value["size_bytes"] == report["size_bytes"]
    # Nothing but the weights of the first layer is quantized before its output.
    assert value["layers"][0]["output_sqnr_db"] > report["layers"][0]["output_sqnr_db"]
    assert value["scores"] == measured(qsearch, "--bits", "w3a16")["scores"]


def test_options_of_the_fidelity(qsearch: Any, study: Path) -> None:
    options = ("--option", "iterations=10", "-o", "preset=bank", "-o", "lr=0.2", "-o", "warm_start=false")
    value = measured(qsearch, "--bits", "w2a8", "--fidelity", "brecq", "--seed", "4", *options)
    assert value["options"] == {"iterations": 10, "preset": "bank", "lr": 0.2, "warm_start": False}
    assert (value["fidelity"], value["seed"]) == ("brecq", 4)
    assert value["seconds"]["reconstruct"] > 0
    values = {row["name"]: row["value"] for row in value["conventions"]}
    assert (values["iterations"], values["learning rate"], values["seed"]) == ("10", "0.2", "4")
    other = measured(qsearch, "--bits", "w2a8", "--fidelity", "brecq", "--seed", "5", *options)
    assert other["digests"]["keys"] != value["digests"]["keys"]


def test_the_quantizer(qsearch: Any, report: Any) -> None:
    section = "{add_policy: both_inputs, weights: {grid: codebook}, activations: {range: min_max}}"
    value = measured(qsearch, "--bits", "w3a8", "--quantizer", section)
    assert value["quantizer"]["weights"]["grid"] == "codebook"
    assert value["quantizer"]["activations"]["range"] == "min_max"
    assert len(value["tensors"]) > len(report["tensors"])
    assert value["size_bytes"] != report["size_bytes"]
    assert value["digests"]["quantizer"] != report["digests"]["quantizer"]


def test_a_study_with_another_quantizer_is_reproduced(qsearch: Any, study: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, "other", 4)
    text = path.read_text(encoding="utf-8").replace("finalists: {fidelity: brecq, max: 3}", "finalists: {max: 2}")
    section = "quantizer: {add_policy: both_inputs, weights: {grid: narrow}, activations: {range: min_max}}\n"
    path.write_text(text + section, encoding="utf-8")
    ended = qsearch("launch", path, "--dir", tmp_path / "study")
    assert ended.code == 0, ended.err
    files = sorted((tmp_path / "study" / "results" / "configs").iterdir())
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        assert content["quantizer"]["add_policy"] == "both_inputs"
        assert content["quantizer"]["weights"]["grid"] == "narrow"
        ended = qsearch("evaluate", file)
        assert ended.code == 0, ended.err + ended.out
    # The same through the other door: the fidelity, its options and the quantizer said on the command line.
    again = measured(qsearch, "--bits", files[0], "--quantizer", section.removeprefix("quantizer: "))
    assert again["accuracy"]["validation"] == content_of(files[0])["accuracy"]["validation"]
    assert again["size_bytes"] == content_of(files[0])["size_bytes"]


def content_of(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_third_partys_evaluator(qsearch: Any, study: Path) -> None:
    arguments = ("--bits", "w4a8", "--fidelity", "test_cli_evaluate_report:Third", "-o", "depth=3", "--split", "test")
    value = measured(qsearch, *arguments)
    assert value["accuracy"]["test"] == 75.0
    assert value["accuracy"]["validation"] is None
    assert "guard" not in value
    assert set(value["layers"][0]) == {"name", "kind", "weight_bits", "activation_bits"}
    assert {"name": "depth", "value": "3", "why": "setting of evaluator third"} in value["conventions"]
    ended = qsearch("evaluate", *WHERE, *arguments)
    assert ended.code == 0, ended.err
    assert "75.0000 % (3 of 4)" in ended.out
    assert "output dB" not in ended.out


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["-o", "corection=none"], "no option 'corection'", "did you mean 'correction'"),
        (["-o", "correction=always"], "correction is 'always'", "correct the option"),
        (["-o", "correction_images=many"], "correction_images is 'many'", "hint: "),
        (["-o", "correction"], "'correction' is not KEY=VALUE", "--option iterations=200"),
        (["-o", "=3"], "'=3' is not KEY=VALUE", "--option iterations=200"),
        (["-o", "a=1", "-o", "a=2"], "--option 'a' is given twice", "remove one"),
        (["-o", "a=[1"], "--option a '[1' is not YAML", "--option iterations=200"),
        (["-o", "a=.nan"], "nan", "finite"),
        (["-o", "a=2026-01-01"], "not made of text, numbers and lists", "put it in quotes"),
        (["--quantizer", "{weights: {grid: afine}}"], "quantizer.weights.grid", "did you mean 'affine'"),
        (["--quantizer", "{wieghts: {}}"], "quantizer.wieghts", "did you mean 'weights'"),
        (["--quantizer", "affine"], "is not a mapping", "{weights: {grid: affine}}"),
        (["--quantizer", "{weights: "], "is not YAML", "{weights: {grid: affine}}"),
        (["--quantizer", "{units: [nosuch]}"], "nosuch", "hint: "),
        (["--device", "tpu9"], "device", "cuda"),
        (["--threads", "0"], "--threads", ""),
        (["--seed", "-1"], "--seed", ""),
    ],
)
def test_wrong_options(qsearch: Any, study: Path, arguments: list[str], message: str, hint: str) -> None:
    ended = qsearch("evaluate", *WHERE, "--bits", "w4a8", *arguments)
    assert (ended.code, ended.out) == (2, "")
    text = " ".join(ended.err.replace("│", " ").split())
    assert message in text
    assert hint in text
