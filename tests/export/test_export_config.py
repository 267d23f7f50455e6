from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fronts import LAYERS, POINTS, make_front
from hypothesis import given
from hypothesis import strategies as st

from qsearch.errors import ExportError
from qsearch.export import SCHEMA, configuration_of, load_configuration, parse_configuration
from qsearch.export.schema import SCHEMA_FILE, schema_text
from qsearch.spec import QuantizerSpec, spec_from_mapping
from qsearch.types import BitConfig


def exported(point: int = 1) -> dict[str, Any]:
    front = make_front()
    value: dict[str, Any] = json.loads(configuration_of(front, front.points[point]).to_text())
    return value


def parse(value: Any) -> Any:
    return parse_configuration(json.dumps(value), "it.json")


def test_shipped_schema_is_in_step_with_the_model() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run python -m qsearch.export.schema"


def test_a_file_satisfies_the_shipped_schema_and_a_wrong_one_does_not() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    value = exported()
    validator.validate(value)
    for damage in ({"schema": "other/1"}, {"layers": []}, {"accuracy": {"validation": 101}}, {"extra": 1}):
        assert not validator.is_valid({**value, **damage})
    del value["schema"]
    assert not validator.is_valid(value)


def test_every_field_is_described_in_the_schema() -> None:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    sections = {"ModelSpec", "DataSpec", "JsonValue", "QuantizerSpec", "WeightQuantizerSpec", "ActivationQuantizerSpec"}
    ours = {name: part for name, part in schema["$defs"].items() if name not in sections}
    for name, part in {**ours, "Configuration": schema}.items():
        for field, description in part["properties"].items():
            assert description.get("description"), f"{name}.{field}"


def test_content() -> None:
    value = exported(2)
    assert next(iter(value)) == "schema"
    assert value["schema"] == SCHEMA == "qsearch.configuration/1"
    assert value["point"] == 17
    assert value["accuracy"] == {"validation": 93.0, "test": 92.0}
    assert value["float_accuracy"] == {"validation": 98.5, "test": 98.0}
    assert value["search_accuracy"] == 91.5
    assert value["size_bytes"] == 1000 + 250 * 19
    assert [(layer["name"], layer["weight_bits"], layer["activation_bits"]) for layer in value["layers"]] == [
        ("stem", 8, 8),
        ("body.conv", 3, 4),
        ("head", 8, 8),
    ]
    assert value["metrics"]["cloud"]["batch"] == 16
    assert value["metrics"]["cloud"]["latency_s"] == pytest.approx(16 * value["metrics"]["edge"]["latency_s"])
    assert value["evaluation"]["options"] == {"iterations": 20}
    assert value["evaluation"]["keys"] == {"validation": "key-2-validation", "test": "key-2-test"}
    assert value["digests"]["quantizer"] == "q-brecq"
    assert value["model"]["arguments"] == {"width": 8}
    assert value["data"]["validation"] == 100


def test_the_whole_quantizer_is_recorded() -> None:
    front = make_front()
    section = {"add_policy": "both_inputs", "units": ["layer1.*"], "weights": {"grid": "affine"}, "equalize": True}
    spec = spec_from_mapping({**front.spec.resolved(), "quantizer": section})
    configuration = configuration_of(replace(front, spec=spec), front.points[0])
    assert configuration.quantizer == spec.quantizer
    assert parse_configuration(configuration.to_text()).quantizer == spec.quantizer
    written = json.loads(configuration.to_text())["quantizer"]
    assert written["weights"]["grid"] == "affine"
    assert written["activations"]["range"] == "mse"  # defaults, too


@pytest.mark.parametrize("add_policy", ["after_relu", "both_inputs"])
def test_a_file_from_when_the_add_policy_was_all(add_policy: str) -> None:
    value = exported()
    del value["quantizer"]
    configuration = parse({**value, "add_policy": add_policy})
    assert configuration.quantizer == QuantizerSpec(add_policy=add_policy)
    assert configuration.point == value["point"]
    with pytest.raises(ExportError, match=r"quantizer\.add_policy is \"nowhere\""):
        parse({**value, "add_policy": "nowhere"})
    with pytest.raises(ExportError, match="quantizer is missing"):
        parse(value)
    with pytest.raises(ExportError, match="add_policy is not a field"):
        parse({**exported(), "add_policy": add_policy})


def test_a_tensor_has_the_width_of_its_tie_group() -> None:
    bits = {tensor["node"]: tensor["bits"] for tensor in exported(2)["tensors"]}
    assert bits == {"x": 8, "relu": 4, "flatten": 8, "sum": 4, "unread": None}


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=3, max_size=3))
def test_round_trip_gives_the_same_bits(widths: list[tuple[int, int]]) -> None:
    w, a = zip(*widths, strict=True)
    front = make_front([(w, a, 50.0, None)], knee=None)
    configuration = configuration_of(front, front.points[0])
    again = parse_configuration(configuration.to_text())
    assert again == configuration
    assert again.to_bit_config(LAYERS) == BitConfig(w, a)


def test_bits_follow_the_layer_order_of_the_network() -> None:
    configuration = parse(exported(2))
    assert configuration.to_bit_config(LAYERS[::-1]) == BitConfig((8, 3, 8), (8, 4, 8)[::-1])
    assert configuration.to_bit_config(LAYERS) == BitConfig(*POINTS[2][:2])


def test_other_layers_than_the_network_has() -> None:
    configuration = parse(exported())
    renamed = (LAYERS[0], replace(LAYERS[1], name="body.conf"), LAYERS[2])
    with pytest.raises(ExportError, match=r"no layer 'body.conv'") as error:
        configuration.to_bit_config(renamed)
    assert "body.conf" in error.value.hint
    with pytest.raises(ExportError, match="says nothing of layer 'more'"):
        configuration.to_bit_config((*LAYERS, replace(LAYERS[0], name="more")))


def test_load_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "point.json"
    path.write_text(json.dumps(exported()), encoding="utf-8")
    assert load_configuration(path).point == 10
    with pytest.raises(ExportError, match="no such file"):
        load_configuration(tmp_path / "other.json")
    with pytest.raises(ExportError, match="cannot be read"):
        load_configuration(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ExportError, match="not UTF-8"):
        load_configuration(path)


@pytest.mark.parametrize("text", ["", "{", '{"schema": "qsearch.configuration/1"', "[" * 100_000])
def test_not_json(text: str) -> None:
    with pytest.raises(ExportError, match=r"it\.json is not JSON"):
        parse_configuration(text, "it.json")


@pytest.mark.parametrize("value", [[], 3, None, {}, {"schema": 1}, {"schema": "qsearch.front/1"}])
def test_not_a_configuration(value: Any) -> None:
    with pytest.raises(ExportError, match="not an exported configuration"):
        parse(value)


def test_another_version_of_the_format() -> None:
    with pytest.raises(ExportError, match=r"'qsearch\.configuration/2'") as error:
        parse({**exported(), "schema": "qsearch.configuration/2"})
    assert "install the version" in error.value.hint


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("evaluation", "seed"), None, r"evaluation\.seed is missing"),
        (("layers", 1, "weight_bits"), None, r"layers\[1\]\.weight_bits is missing"),
        (("layers", 1, "weight_bits"), "8", r"layers\[1\]\.weight_bits is \"8\""),
        (("layers", 0, "weight_bits"), 17, r"layers\[0\]\.weight_bits is 17"),
        (("layers", 0, "kernel"), [3], r"layers\[0\]\.kernel"),
        (("layers", 1, "name"), "stem", "layer 'stem' is listed twice"),
        (("accuracy", "test"), 100.5, r"accuracy\.test is 100\.5"),
        (("typo",), 1, "typo is not a field"),
        (("model", "source"), "nowhere", r"model\.source is \"nowhere\""),
        (("metrics", "edge", "batch"), 0, r"metrics\.edge\.batch is 0"),
        (("quantizer", "weights", "grid"), "afine", r"quantizer\.weights\.grid is \"afine\""),
        (("quantizer", "typo"), 1, r"quantizer\.typo is not a field"),
    ],
)
def test_damaged_fields_are_named(path: tuple[str | int, ...], value: Any, message: str) -> None:
    content = exported()
    part: Any = content
    for step in path[:-1]:
        part = part[step]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    with pytest.raises(ExportError, match=message):
        parse(content)


def test_numbers_that_are_none() -> None:
    text = json.dumps(exported()).replace('"search_accuracy": 95.5', '"search_accuracy": NaN')
    assert "NaN" in text
    with pytest.raises(ExportError, match="search_accuracy"):
        parse_configuration(text)


def test_many_problems_are_counted() -> None:
    with pytest.raises(ExportError, match=r"and [0-9]+ more"):
        parse({"schema": SCHEMA})
