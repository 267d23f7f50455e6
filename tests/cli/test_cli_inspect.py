from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RESNET = ("--model", "torchvision:resnet18", "--input", "3,32,32")

NETWORK = """
from torch import nn

def make(width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Sequential(nn.Conv2d(width, width, 3, groups=width), nn.ReLU(), nn.Conv2d(width, 8, 1), nn.ReLU()),
        nn.ConvTranspose2d(8, 8, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )

def pairs(layers):
    return [[layers[0].name, layers[1].name]]
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "inspected_network.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "inspected_network:make"


def report(qsearch: Any, *options: object) -> Any:
    ended = qsearch("inspect", *options, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_json(qsearch: Any) -> None:
    value = report(qsearch, *RESNET)
    assert (value["input_shape"], value["classes"]) == ([3, 32, 32], 1000)
    assert len(value["layers"]) == 21
    assert [unit["name"] for unit in value["units"]] == [
        "conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "fc",
    ]  # fmt: skip
    both = report(qsearch, *RESNET, "--add-policy", "both_inputs")
    assert len(both["tensors"]) > len(value["tensors"])
    assert [unit["layers"] for unit in both["units"]] == [unit["layers"] for unit in value["units"]]


def test_tables(qsearch: Any, network: str) -> None:
    ended = qsearch("inspect", "--model", network, "--input", "3,16,16")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    rows = [line.split() for line in lines]
    assert ["input", "3", "x", "16", "x", "16"] in rows
    # index, name, kind, in, out, kernel, stride, map, tensor, unit, kMAC, weights
    assert ["0", "0", "conv", "3", "4", "3x3", "1x1", "14x14", "0", "0", "21.168", "108"] in rows
    assert ["1", "3.0", "depthwise", "4", "4", "3x3", "1x1", "12x12", "1", "1", "5.184", "36"] in rows
    assert any(row[:1] == ["2"] and row[2:] == ["unsigned", "3.2"] for row in rows)
    assert any(row[:2] == ["1", "3"] and row[-2:] == ["3.0,", "3.2"] for row in rows)
    assert "'4' is a ConvTranspose2d: kept float" in ended.out
    heading = next(line for line in lines if "layer" in line and "kind" in line)
    assert heading.split() == [
        "layer", "kind", "in", "out", "kernel", "stride", "out", "map", "tensor", "unit", "kMAC", "weights",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "sizes"),
    [
        ((), [1, 2, 1]),
        (("auto",), [1, 2, 1]),
        (("layer",), [1, 1, 1, 1]),
        (("inspected_network:pairs",), [2, 1, 1]),
        (("3.0", "re:3[.]2"), [1, 1, 1, 1]),
        (("3",), [1, 2, 1]),
    ],
)
def test_units(qsearch: Any, network: str, rules: tuple[str, ...], sizes: list[int]) -> None:
    options = [option for rule in rules for option in ("--units", rule)]
    value = report(qsearch, "--model", network, "--input", "3,16,16", *options)
    assert [len(unit["layers"]) for unit in value["units"]] == sizes


def test_data_gives_the_shape_of_the_images(qsearch: Any) -> None:
    model = "{source: 'qsearch:digits_resnet', arguments: {epochs: 1, width: 4}}"
    value = report(qsearch, "--model", model, "--data", "qsearch:digits")
    assert (value["input_shape"], value["classes"], len(value["layers"])) == ([1, 8, 8], 10, 11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "torchvision:resnet81"), "unknown model 'torchvision:resnet81'"),
        ((*RESNET, "--units", "layr1.*"), "matches no module that holds a quantized layer"),
        ((*RESNET, "--units", "auto", "--units", "layer"), "'auto' matches no module"),
        ((*RESNET, "--units", "no_such_module:rule"), "no module named 'no_such_module'"),
        ((*RESNET, "--data", "qsearch:digits"), "--input cannot be given with --data"),
        (("--model", "torchvision:resnet18", "--input", "3,32"), "is not channels, height and width"),
        (("--model", "torchvision:resnet18", "--input", "3,0,32"), "is not channels, height and width"),
        (("--model", "torchvision:resnet18", "--input", "1,32,32"), "fails on a batch of shape (2, 1, 32, 32)"),
        (("--model", "{source: x"), "is not YAML"),
        ((), "Missing option '--model'"),
    ],
)
def test_what_cannot_be_inspected(qsearch: Any, options: tuple[str, ...], message: str) -> None:
    ended = qsearch("inspect", *options)
    assert (ended.code, ended.out) == (2, "")
    assert message in " ".join(ended.err.replace("│", " ").split())
