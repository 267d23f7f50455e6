"""Units as the user wants them: one a layer, by module path, by a function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import nets
import pytest
import torch
from graph_laws import check_units
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qsearch.errors import ModelError, PluginError
from qsearch.models import QuantGraph, UnitRule, build_graph, read_unit_rule
from qsearch.types import LayerShape


def names(graph: QuantGraph) -> list[list[str]]:
    return [[graph.layers[layer].name for layer in unit.layers] for unit in graph.units]


def residual(units: UnitRule) -> QuantGraph:
    graph = build_graph(nets.randomize(nets.Residual()), nets.images(2), units=units)
    check_units(graph)
    return graph


SAME = ["same.conv1", "same.conv2"]
WIDER = ["wider.conv1", "wider.conv2", "wider.shortcut"]


def test_every_layer_by_itself() -> None:
    graph = residual("layer")
    assert names(graph) == [["stem.0"], *([layer] for layer in (*SAME, *WIDER)), ["head.fc"]]
    # A convolution takes its ReLU along, unless there is an addition in between.
    assert [graph.units[i].exit for i in (0, 1, 2)] == ["stem_1", "same_relu", "same_conv2"]


def test_patterns_name_modules_and_the_rest_is_automatic() -> None:
    assert names(residual(["stem", "same"])) == [["stem.0"], SAME, WIDER, ["head.fc"]]
    assert names(residual(["same.*"])) == [["stem.0"], ["same.conv1"], ["same.conv2"], WIDER, ["head.fc"]]
    assert names(residual([r"re:(same|wider)\.conv\d"])) == [
        ["stem.0"], ["same.conv1"], ["same.conv2"], ["wider.conv1"], ["wider.conv2"], ["wider.shortcut"], ["head.fc"],
    ]  # fmt: skip


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stages = nn.Sequential(
            nn.Sequential(nets.Basic(4, 4), nets.Basic(4, 4)), nn.Sequential(nets.Basic(4, 6), nets.Basic(6, 6))
        )
        self.head = nets.Head(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(torch.relu(self.stem(x))))


@pytest.mark.parametrize(
    ("units", "sizes"),
    [
        ("auto", [1, 2, 2, 3, 2, 1]),
        (["stages"], [1, 9, 1]),
        (["stages.*"], [1, 4, 5, 1]),  # the outermost module that matches
        (["stages.?"], [1, 4, 5, 1]),
        (["stages.1", "stages.*.0"], [1, 2, 2, 5, 1]),  # the first pattern that matches
        ([r"re:stages\.\d\.\d"], [1, 2, 2, 3, 2, 1]),
        (["stages.0", "stages.1.*"], [1, 4, 3, 2, 1]),
    ],
)
def test_patterns_over_nested_modules(units: UnitRule, sizes: list[int]) -> None:
    graph = build_graph(Stages(), nets.images(2), units=units)
    check_units(graph)
    assert [len(unit.layers) for unit in graph.units] == sizes


def test_a_unit_of_a_module_ends_with_the_module() -> None:
    graph = build_graph(Stages(), nets.images(2), units=["stages.0"])
    unit = next(unit for unit in graph.units if len(unit.layers) == 4)
    assert (unit.name, unit.entry, unit.exit) == ("stages.0", "relu", "stages_0_1_relu_1")


def whole_blocks(layers: Sequence[LayerShape]) -> Iterable[Iterable[str]]:
    return [[layer.name for layer in layers if layer.name.startswith(("same", "wider"))]]


def test_a_function_groups_layers_and_the_rest_is_automatic() -> None:
    assert names(residual(whole_blocks)) == [["stem.0"], [*SAME, *WIDER], ["head.fc"]]
    assert names(residual(lambda layers: [])) == names(residual("auto"))


def test_units_change_nothing_else() -> None:
    graph = residual("auto")
    for rule in ("layer", ["same.*"], whole_blocks):
        other = residual(rule)  # type: ignore[arg-type]
        assert other.units != graph.units
        assert replace(other, units=graph.units, module=graph.module) == graph


@pytest.mark.parametrize(
    ("units", "message", "hint"),
    [
        (["nosuch.*"], "'nosuch.*' matches no module that holds a quantized layer", "known: "),
        (["same.relu"], "matches no module that holds a quantized layer", "did you mean"),
        (["same", "sam"], "'sam' matches no module", "did you mean 'same'?"),
        (lambda layers: [["same.conv"]], "names 'same.conv', which is no quantized layer", "did you mean"),
        (lambda layers: [SAME, SAME[:1]], "puts layer 'same.conv1' into two units", "one of them"),
        (lambda layers: [[]], "returned an empty group", "leave it out"),
        (lambda layers: 3, "failed: TypeError", "lists of layer names"),
        (lambda layers: [layers[99].name], "failed: IndexError", "lists of layer names"),
        (
            lambda layers: [["stem.0", "wider.conv1"]],
            "'stem.0', 'wider.conv1' cannot be one reconstruction unit: .* also holds 'same.conv1', 'same.conv2'",
            "name the other layers",
        ),
        (
            lambda layers: [["wider.conv1", "wider.shortcut"]],
            "'wider.conv1', 'wider.shortcut' cannot be one reconstruction unit: .* also holds 'wider.conv2'",
            "name the other layers",
        ),
        (["same.conv?", "wider.*1", "wider.*2"], None, None),
    ],
)
def test_rules_that_do_not_fit(units: UnitRule, message: str | None, hint: str | None) -> None:
    if message is None or hint is None:
        residual(units)
        return
    with pytest.raises(ModelError, match=message.replace("*'", r"\*'")) as error:
        residual(units)
    assert hint in error.value.hint


class TwoHeads(nn.Module):
    """Both convolutions feed the logits by paths of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.ModuleList((nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([conv(x).mean((2, 3)) for conv in self.pair], 1)


def test_a_unit_may_reach_from_the_image_to_the_logits() -> None:
    graph = build_graph(TwoHeads(), nets.images(2), units=lambda layers: [["pair.0", "pair.1"]])
    check_units(graph)
    assert [(unit.entry, unit.exit) for unit in graph.units] == [("x", "cat")]


class Touching(nn.Module):
    """Two groups of layers whose regions touch: the one ends where the other begins."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.head = nets.Head(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.a(x) + torch.relu(self.b(x)))


def test_regions_of_two_groups_may_touch() -> None:
    graph = build_graph(Touching(), nets.images(2), units=lambda layers: [["a", "b"], ["stem"]])
    check_units(graph)
    assert [(unit.name, unit.entry, unit.exit) for unit in graph.units[:2]] == [
        ("stem", "x", "stem"), ("a+b", "stem", "add"),
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["auto", "layer", ["layer1.*", r"re:head\..*"]])
def test_rules_of_a_study_file(value: str | list[str]) -> None:
    assert read_unit_rule(value) == value


def test_a_function_of_a_study_file() -> None:
    assert read_unit_rule("test_models_unit_rules:whole_blocks") is whole_blocks


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("blocks", ModelError, "unknown unit rule 'blocks'"),
        ("", ModelError, "unknown unit rule ''"),
        ([], ModelError, "unknown unit rule"),
        ([""], ModelError, "unit pattern '' is no"),
        (["re:("], ModelError, "is no regular expression"),
        ("re:layer.*", ModelError, "unknown unit rule 're:layer"),
        ("test_models_unit_rules:SAME", ModelError, "is a list, not a function"),
        ("test_models_unit_rules:absent", PluginError, "has no 'absent'"),
        ("no_such_module:rule", PluginError, "no module named"),
    ],
)
def test_rules_of_a_study_file_that_are_none(value: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        read_unit_rule(value)


def test_a_rule_is_checked_before_the_network_is_traced() -> None:
    with pytest.raises(ModelError, match="unknown unit rule 'nosuch'"):
        build_graph(nets.Residual(), nets.images(2), units="nosuch")


LENGTH = 7


def line() -> nn.Sequential:
    convs = [layer for _ in range(LENGTH - 1) for layer in (nn.Conv2d(3, 3, 1), nn.ReLU())]
    return nn.Sequential(*convs, nets.Head(3, 2))


@settings(max_examples=30, deadline=None)
@given(cuts=st.sets(st.integers(1, LENGTH - 1)))
def test_any_division_of_a_chain_is_possible(cuts: set[int]) -> None:
    bounds = [0, *sorted(cuts), LENGTH]
    wanted = [tuple(range(a, b)) for a, b in pairwise(bounds)]
    graph = build_graph(
        line(), nets.images(2, size=2), units=lambda layers: [[layers[i].name for i in group] for group in wanted]
    )
    check_units(graph)
    assert [unit.layers for unit in graph.units] == wanted
    # One unit begins where the one before ended, but for the pooling before the classifier.
    if cuts:
        assert graph.units[0].exit == graph.units[1].entry or graph.units[1].layers == (LENGTH - 1,)


@settings(max_examples=30, deadline=None)
@given(group=st.sets(st.integers(0, LENGTH - 1), min_size=2))
def test_a_group_of_a_chain_has_no_holes(group: set[int]) -> None:
    has_hole = max(group) - min(group) + 1 > len(group)

    def rule(layers: Sequence[LayerShape]) -> list[list[str]]:
        return [[layers[i].name for i in group]]

    if has_hole:
        with pytest.raises(ModelError, match="also holds"):
            build_graph(line(), nets.images(2, size=2), units=rule)
    else:
        graph = build_graph(line(), nets.images(2, size=2), units=rule)
        assert tuple(sorted(group)) in [unit.layers for unit in graph.units]
