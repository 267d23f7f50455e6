"""The laws of a graph hold for networks that nobody thought of."""

from __future__ import annotations

import nets
import torch
from graph_laws import check_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qsearch.models import build_graph

CHANNELS = 4

#: One step of a program: what is done, and how far back the values lie that it is done to.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["conv", "conv", "depthwise", "norm", "relu", "hardswish", "add", "cat", "gate", "half", "pool", "again"]
        ),
        st.integers(1, 3),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=12,
)


class Program(nn.Module):
    """Values of one shape; each step makes another out of one or two of the last."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.again = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.parts = nn.ModuleList(self._part(step[0]) for step in steps)
        self.head = nets.Head(CHANNELS)

    @staticmethod
    def _part(what: str) -> nn.Module:
        if what == "cat":
            return nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        if what == "half":
            return nn.Conv2d(CHANNELS // 2, CHANNELS // 2, 1)
        if what == "gate":
            return nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(CHANNELS, 2, 1), nn.ReLU(), nn.Conv2d(2, CHANNELS, 1), nn.Sigmoid()
            )
        if what == "conv":
            return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        if what == "depthwise":
            return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        if what == "norm":
            return nn.BatchNorm2d(CHANNELS)
        return {"relu": nn.ReLU(inplace=True), "hardswish": nn.Hardswish()}.get(what, nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [self.stem(x)]
        for (what, first, second), part in zip(self.steps, self.parts, strict=True):
            a, b = values[-min(first, len(values))], values[-min(second, len(values))]
            if what == "add":
                values.append(a + b)
            elif what == "cat":
                values.append(part(torch.cat([a, b], 1)))
            elif what == "gate":
                values.append(a * part(a))
            elif what == "half":
                left, right = a.chunk(2, 1)
                values.append(torch.cat([left, part(right)], 1))
            elif what == "pool":
                values.append(nn.functional.max_pool2d(a, 3, 1, 1))
            elif what == "again":
                values.append(self.again(a))
            elif what == "relu":
                values.append(part(a.clone()))  # another value must not change when this one is rectified
            else:
                values.append(part(a))
        return self.head(values[-1])


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, add_policy=st.sampled_from(["after_relu", "both_inputs"]), units=st.sampled_from(["auto", "layer"]))
def test_laws_of_random_networks(steps: list[tuple[str, int, int]], add_policy: str, units: str) -> None:
    network = nets.randomize(Program(steps))
    graph = build_graph(network, nets.images(2), add_policy, units)
    check_graph(graph, network, nets.images(4, seed=1))
    if units == "layer":
        assert all(len(unit.layers) == 1 for unit in graph.units)
