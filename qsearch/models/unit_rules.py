"""How layers are grouped into reconstruction units: automatically, one by one, by module path, or by a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import fx

from qsearch import plugins
from qsearch.errors import ModelError, nearest
from qsearch.models.units import Group, module_paths
from qsearch.types import LayerShape

#: Gets the layers, gives groups of layer names; what it leaves out falls to the automatic rule.
UnitFunction: TypeAlias = Callable[[Sequence[LayerShape]], Iterable[Iterable[str]]]

#: ``auto``, ``layer``, patterns over module paths (globs, or ``re:REGEX``), or a function.
UnitRule: TypeAlias = str | Sequence[str] | UnitFunction

NAMED_RULES = ("auto", "layer")

_REGEX = "re:"

_RULE_HINT = (
    "write auto, layer, a list of module paths (globs such as layer*.*, or re:REGEX), or package.module:function"
)


def read_unit_rule(value: str | Sequence[str]) -> UnitRule:
    """Reads the rule as a study file has it.

    Args:
        value: ``auto``, ``layer``, a list of patterns, or ``package.module:function``.

    Raises:
        ModelError: It is none of these.
        PluginError: The function cannot be imported.
    """
    rule: UnitRule = value
    if isinstance(value, str) and ":" in value and not value.startswith(_REGEX):
        rule = plugins.resolve(value, "unit rule")
        if not callable(rule):
            raise ModelError(f"unit rule {value!r} is a {type(rule).__name__}, not a function", _RULE_HINT)
    check_unit_rule(rule)
    return rule


def check_unit_rule(rule: UnitRule) -> None:
    """Raises ModelError for what can be no rule of any network."""
    if callable(rule) or (isinstance(rule, str) and rule in NAMED_RULES):
        return
    if isinstance(rule, str) or not isinstance(rule, Sequence) or not rule:
        raise ModelError(f"unknown unit rule {rule!r}", _RULE_HINT)
    for pattern in rule:
        if not isinstance(pattern, str) or not pattern:
            raise ModelError(f"unit pattern {pattern!r} is not a module path", _RULE_HINT)
        if pattern.startswith(_REGEX):
            try:
                re.compile(pattern.removeprefix(_REGEX))
            except re.error as error:
                raise ModelError(f"unit pattern {pattern!r} is no regular expression: {error}", _RULE_HINT) from error


def find_groups(rule: UnitRule, layers: Sequence[LayerShape], nodes: Sequence[fx.Node]) -> list[Group]:
    """The groups of layers that a rule asks for.

    Args:
        rule: The rule.
        layers: The layers of the network.
        nodes: The fx node of each layer.

    Raises:
        ModelError: The rule does not fit the network.
    """
    check_unit_rule(rule)
    if callable(rule):
        return _by_function(rule, layers, nodes)
    return [] if isinstance(rule, str) else _by_path(rule, nodes)


def _by_path(patterns: Sequence[str], nodes: Sequence[fx.Node]) -> list[Group]:
    """All layers of one module that matches; of nested modules that match the same pattern, the outermost."""
    members: dict[str, list[str]] = {}
    used: set[str] = set()
    for node in nodes:
        paths = module_paths(node)
        hits = [(pattern, path) for pattern in patterns for path in paths if _matches(pattern, path)]
        used.update(pattern for pattern, _ in hits)
        if hits:
            members.setdefault(hits[0][1], []).append(node.name)
    for pattern in patterns:
        if pattern not in used:
            known = dict.fromkeys(path for node in nodes for path in module_paths(node))
            raise ModelError(
                f"unit pattern {pattern!r} matches no module that holds a quantized layer", nearest(pattern, known)
            )
    return [Group(tuple(names), path) for path, names in members.items()]


def _matches(pattern: str, path: str) -> bool:
    if pattern.startswith(_REGEX):
        return re.fullmatch(pattern.removeprefix(_REGEX), path) is not None
    return fnmatchcase(path, pattern)


def _by_function(rule: UnitFunction, layers: Sequence[LayerShape], nodes: Sequence[fx.Node]) -> list[Group]:
    name = getattr(rule, "__name__", type(rule).__name__)
    try:
        named = [list(group) for group in rule(tuple(layers))]
    except Exception as error:
        raise ModelError(
            f"unit rule {name!r} failed: {type(error).__name__}: {error}",
            "it gets the layers of the network and returns lists of layer names",
        ) from error
    node_of = {layer.name: node.name for layer, node in zip(layers, nodes, strict=True)}
    seen: set[str] = set()
    for group in named:
        if not group:
            raise ModelError(f"unit rule {name!r} returned an empty group", "leave it out")
        for layer in group:
            if layer not in node_of:
                raise ModelError(
                    f"unit rule {name!r} names {layer!r}, which is no quantized layer", nearest(str(layer), node_of)
                )
            if layer in seen:
                raise ModelError(f"unit rule {name!r} puts layer {layer!r} into two units", "name it in one of them")
            seen.add(layer)
    return [Group(tuple(node_of[layer] for layer in group)) for group in named]
