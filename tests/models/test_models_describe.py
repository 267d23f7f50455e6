"""The report of a network."""

from __future__ import annotations

import json

import nets
import torch
from torch import nn

from qsearch.models import build_graph, describe_graph


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, groups=4)
        self.grouped, self.gain = nn.Conv2d(4, 6, 1, groups=2), nn.Parameter(torch.ones(1))
        self.head = nets.Head(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.stem(x))))
        return self.head(self.grouped(x * self.gain))


def test_layers_by_hand() -> None:
    report = describe_graph(build_graph(Mixed(), nets.images(2)))
    assert [layer["kind"] for layer in report["layers"]] == ["conv", "depthwise", "grouped", "linear"]
    assert report["layers"][1] == {
        "index": 1,
        "name": "depthwise",
        "kind": "depthwise",
        "in_channels": 4,
        "out_channels": 4,
        "kernel": [3, 3],
        "stride": [2, 2],
        "groups": 4,
        "in_size": [8, 8],
        "out_size": [3, 3],
        "tensor": 1,
        "unit": 1,
        "macs": 4 * 9 * 9,
        "weights": 36,
    }
    assert (report["input_shape"], report["classes"], report["float_parameters"]) == ([3, 8, 8], 3, 1)
    assert report["notes"] == ["parameter 'gain' is used directly in forward: kept float"]


def test_tensors_and_units_refer_to_layers_by_name() -> None:
    graph = build_graph(nets.Residual(), nets.images(2), "both_inputs")
    report = describe_graph(graph)
    tensors = {tensor["node"]: tensor for tensor in report["tensors"]}
    assert tensors["same_relu_1"]["readers"] == ["wider.conv1", "wider.shortcut"]
    assert tensors["same_relu_1"]["unsigned"] is True
    summand = tensors["same_conv2"]
    assert (summand["readers"], summand["unsigned"], summand["group"]) == ([], False, tensors["stem_1"]["group"])
    assert [(unit["name"], unit["layers"]) for unit in report["units"]] == [
        ("stem.0", ["stem.0"]),
        ("same", ["same.conv1", "same.conv2"]),
        ("wider", ["wider.conv1", "wider.conv2", "wider.shortcut"]),
        ("head.fc", ["head.fc"]),
    ]
    for layer in report["layers"]:
        assert layer["name"] in report["units"][layer["unit"]]["layers"]
        assert layer["name"] in report["tensors"][layer["tensor"]]["readers"]


def test_the_report_is_json() -> None:
    report = describe_graph(build_graph(nets.Residual(), nets.images(2)))
    assert json.loads(json.dumps(report)) == report
