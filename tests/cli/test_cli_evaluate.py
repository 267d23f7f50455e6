from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

MODEL = "{source: 'qsearch:digits_resnet', arguments: {epochs: 8, width: 8}}"


def knee_file(study: Path) -> Path:
    front = json.loads((study / "results" / "front.json").read_text(encoding="utf-8"))
    knee = next(point["point"] for point in front["points"] if point["is_knee"])
    return study / "results" / "configs" / f"point-{knee:04d}.json"


def changed(study: Path, out: Path, change: Any) -> Path:
    content = json.loads(knee_file(study).read_text(encoding="utf-8"))
    change(content)
    out.write_text(json.dumps(content), encoding="utf-8")
    return out


def test_every_exported_point_is_reproduced_exactly(qsearch: Any, study: Path) -> None:
    for file in sorted((study / "results" / "configs").iterdir()):
        ended = qsearch("evaluate", file, "--json")
        assert ended.code == 0, ended.err
        value = json.loads(ended.out)
        recorded = json.loads(file.read_text(encoding="utf-8"))["accuracy"]
        assert value["reproduced"] is True
        assert value["accuracy"] == {split: {"recorded": a, "measured": a} for split, a in recorded.items()}
        assert set(value["accuracy"]) == {"validation", "test"}


def test_it_is_reproduced_without_any_cached_reconstruction(
    qsearch: Any, study: Path, private_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(private_cache / "models", tmp_path / "models")
    monkeypatch.setenv("QSEARCH_CACHE_DIR", str(tmp_path))
    ended = qsearch("evaluate", knee_file(study))
    assert ended.code == 0, ended.err
    assert ended.out.count("reproduced exactly") == 2
    assert list((tmp_path / "artifacts").rglob("*.safetensors"))  # it was reconstructed anew


def test_another_accuracy_than_recorded_ends_with_1(qsearch: Any, study: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["accuracy"]["test"] -= 0.5

    ended = qsearch("evaluate", changed(study, tmp_path / "it.json", change))
    assert ended.code == 1
    assert "differs by +0.5000" in ended.out
    assert ended.out.count("reproduced exactly") == 1
    assert "recorded with torch" in ended.out


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("layers", 1, "weight_bits"), 5, "key of the evaluation on"),
        (("layers", 1, "name"), "nosuch", "the network has no layer 'nosuch'"),
        (("digests", "model"), "0" * 64, "the network is not the one"),
        (("data", "validation"), 100, "validation images are not those of then"),
        (("data", "calibration"), 64, "calibration images are not those of then"),
        (("evaluation", "options", "iterations"), 21, "settings of evaluator 'brecq' are not those of then"),
        (("data", "batch_size"), 32, "settings of evaluator 'brecq' are not those of then"),
        (("quantizer", "weights", "range"), "min_max", "settings of evaluator 'brecq' are not those of then"),
        (("quantizer", "equalize"), True, "the network is not the one"),
        (("evaluation", "version"), 0, "from version 0"),
        (("evaluation", "fidelity"), "brecg", "unknown evaluator 'brecg'"),
    ],
)
def test_what_it_was_found_for_is_checked(
    qsearch: Any, study: Path, tmp_path: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    def change(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    ended = qsearch("evaluate", changed(study, tmp_path / "it.json", change))
    assert ended.code == 2
    assert message in ended.err
    assert "hint: " in ended.err


def test_damaged_files(qsearch: Any, study: Path, tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    path.write_text(knee_file(study).read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert "is not JSON" in qsearch("evaluate", path).err
    ended = qsearch("evaluate", changed(study, path, lambda content: content["evaluation"].pop("seed")))
    assert (ended.code, ended.out) == (2, "")
    assert "evaluation.seed is missing" in ended.err
    assert qsearch("evaluate", tmp_path / "absent.json").code == 2
    assert "not an exported configuration" in qsearch("evaluate", study / "results" / "front.json").err


def measured(qsearch: Any, *options: object) -> Any:
    ended = qsearch("evaluate", "--model", MODEL, "--data", "qsearch:digits", "--json", *options)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_a_uniform_configuration(qsearch: Any, study: Path) -> None:
    value = measured(qsearch, "--bits", "w4a8", "--split", "test", "--split", "validation")
    assert [layer["weight_bits"] for layer in value["layers"]] == [8, *[4] * 9, 8]
    assert {layer["activation_bits"] for layer in value["layers"]} == {8}
    assert list(value["scores"]) == ["test", "validation"]
    for split, score in value["scores"].items():
        assert score["accuracy"] == 100 * score["correct"] / score["samples"]
        assert abs(score["accuracy"] - value["float_scores"][split]["accuracy"]) < 10


def test_uniform_without_pins(qsearch: Any, study: Path) -> None:
    value = measured(qsearch, "--bits", "w3a6", "--no-pin")
    assert {(layer["weight_bits"], layer["activation_bits"]) for layer in value["layers"]} == {(3, 6)}
    assert value["mean_weight_bits"] == 3


def test_a_pin_reaches_the_layers_that_share_the_input(qsearch: Any, study: Path) -> None:
    value = measured(qsearch, "--bits", "w2a4")
    bits = {layer["name"]: layer["activation_bits"] for layer in value["layers"]}
    assert bits["stem.0"] == bits["classifier"] == 8
    assert bits["block2.conv1.0"] == bits["block2.shortcut.0"] == 4


def test_an_exported_configuration_on_a_model_of_the_command_line(qsearch: Any, study: Path) -> None:
    recorded = json.loads(knee_file(study).read_text(encoding="utf-8"))
    value = measured(qsearch, "--bits", knee_file(study))
    assert [layer["weight_bits"] for layer in value["layers"]] == [layer["weight_bits"] for layer in recorded["layers"]]
    assert value["size_bytes"] == recorded["size_bytes"]
    assert value["mean_activation_bits"] == recorded["mean_activation_bits"]
    # Scored by ptq, as in the search.
    assert value["scores"]["validation"]["accuracy"] == recorded["search_accuracy"]


def test_plain_lists_of_bits(qsearch: Any, study: Path, tmp_path: Path) -> None:
    path = tmp_path / "bits.json"
    path.write_text(json.dumps({"w": [8, *[4] * 9, 8], "a": [8] * 11}), encoding="utf-8")
    assert measured(qsearch, "--bits", path)["scores"] == measured(qsearch, "--bits", "w4a8")["scores"]
    path.write_text(json.dumps({"w": [8], "a": [8, 8]}), encoding="utf-8")
    ended = qsearch("evaluate", "--model", MODEL, "--data", "qsearch:digits", "--bits", path)
    assert ended.code == 2
    assert "1 weight widths but 2 activation widths" in ended.err
    path.write_text(json.dumps({"w": [8], "a": [8]}), encoding="utf-8")
    ended = qsearch("evaluate", "--model", MODEL, "--data", "qsearch:digits", "--bits", path)
    assert ended.code == 2
    assert "1 layers" in ended.err


def test_for_people(qsearch: Any, study: Path) -> None:
    ended = qsearch("evaluate", "--model", MODEL, "--data", "qsearch:digits", "--bits", "w8a8")
    assert ended.code == 0
    assert "w8a8: mean 8.00 bits weights, 8.00 bits inputs" in ended.out
    assert "validation" in ended.out
    assert ended.out.count(" of 450); float32 ") == 2
    for text in (
        "applied; error of held-out logits",
        "peak memory",
        "256 images, 32 of them held out",
        "output dB",
        "block3.depthwise.0",
    ):
        assert text in ended.out
    for convention in ("residual additions", "input image", "logits", "correction", "calibration transform"):
        assert f" {convention} " in ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model and --data and --bits"),
        (["--model", MODEL, "--bits", "w4a8"], "--data"),
        (["x.json", "--bits", "w4a8"], "--bits cannot be given with FILE"),
        (["x.json", "--no-pin"], "--no-pin cannot be given with FILE"),
        (["x.json", "--seed", "0"], "--seed cannot be given with FILE"),
        (["x.json", "--option", "a=1"], "--option cannot be given with FILE"),
        (["x.json", "--quantizer", "{}"], "--quantizer cannot be given with FILE"),
        (["--model", MODEL, "--data", "qsearch:digits", "--bits", "w4"], "neither like w4a8 nor a file"),
        (["--model", "digits_resnet", "--data", "qsearch:digits", "--bits", "w4a8"], "model.source"),
        (["--model", "{source: ", "--data", "qsearch:digits", "--bits", "w4a8"], "is not YAML"),
        (["--model", "{sorce: qsearch:x}", "--data", "qsearch:digits", "--bits", "w4a8"], "did you mean 'source'?"),
        (["--model", MODEL, "--data", "qsearch:digits", "--bits", "w4a12"], "12-bit activations"),
        (["--model", MODEL, "--data", "qsearch:digits", "--bits", "w4a8", "--fidelity", "qat9"], "unknown evaluator"),
        (["--model", MODEL, "--data", "qsearch:digits", "--bits", "w4a8", "--split", "train"], "--split"),
    ],
)
def test_wrong_arguments(qsearch: Any, study: Path, arguments: list[str], message: str) -> None:
    ended = qsearch("evaluate", *arguments)
    assert ended.code == 2
    assert message in " ".join(ended.err.replace("│", " ").split())
