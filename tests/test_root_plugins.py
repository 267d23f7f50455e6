"""Plug-ins are found by registered name or by path, and errors say what to do."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from qsearch import plugins
from qsearch.errors import PluginError


def test_the_built_in_ones_are_registered() -> None:
    assert {"ptq", "brecq"} <= set(plugins.names("evaluators"))
    assert "digits" in plugins.names("datasets")
    assert "digits_resnet" in plugins.names("models")
    assert {"systolic", "bismo"} <= set(plugins.names("devices"))
    assert {"genetic", "random"} <= set(plugins.names("searchers"))
    assert plugins.names("evaluators") == sorted(plugins.names("evaluators"))


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_everything_registered_can_be_loaded(kind: str) -> None:
    assert plugins.names(kind)
    for name in plugins.names(kind):
        assert callable(plugins.load(kind, name))


def test_load_by_path() -> None:
    assert plugins.load("searchers", "collections:OrderedDict.fromkeys").__name__ == "fromkeys"


def test_unknown_names() -> None:
    with pytest.raises(PluginError, match="unknown evaluator 'brceq'") as error:
        plugins.load("evaluators", "brceq")
    assert error.value.hint == "did you mean 'brecq'?"


def registered(monkeypatch: pytest.MonkeyPatch, points: dict[str, EntryPoint]) -> None:
    monkeypatch.setattr(plugins, "_registered", lambda kind: points)


def test_nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, {})
    with pytest.raises(PluginError, match="unknown device 'x'") as error:
        plugins.load("devices", "x")
    assert "install the package" in error.value.hint


@pytest.mark.parametrize("value", ["no_such_package.module:thing", "collections:NoSuchThing"])
def test_a_registered_plug_in_that_is_broken(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    registered(monkeypatch, {"mine": EntryPoint("mine", value, "qsearch.devices")})
    with pytest.raises(PluginError, match=f"device 'mine' is registered as '{value}' but cannot be loaded") as error:
        plugins.load("devices", "mine")
    assert "reinstall" in error.value.hint


@pytest.mark.parametrize(
    ("target", "match", "hint"),
    [
        ("json", "not of the form", "colon"),
        (":dumps", "not of the form", "colon"),
        ("json:", "not of the form", "colon"),
        ("json:dmups", "'json' has no 'dmups'", "did you mean 'dumps'?"),
        ("json:decoder.JSONDecodr", "'json' has no 'JSONDecodr'", "did you mean 'JSONDecoder'?"),
        ("jsn_no_such:dumps", "no module named 'jsn_no_such'", "install"),
        ("json.no_such:dumps", "no module named 'json.no_such'", "install"),
        ("..json:dumps", "importing '..json' fails", "by itself"),
    ],
)
def test_bad_paths(target: str, match: str, hint: str) -> None:
    with pytest.raises(PluginError, match=match) as error:
        plugins.resolve(target, "model")
    assert error.value.message.startswith(f"model {target!r}")
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("def f(:", "importing 'users_module' fails: SyntaxError"),
        ("raise OSError('no licence')", "importing 'users_module' fails: OSError: no licence"),
        ("import no_such_dependency", "no module named 'no_such_dependency'"),
        ("from json import no_such_name", "importing 'users_module' fails: ImportError"),
    ],
)
def test_a_users_module_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, match: str) -> None:
    (tmp_path / "users_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_module", raising=False)
    with pytest.raises(PluginError, match=match):
        plugins.resolve("users_module:f", "data")
