"""Schemes: the same choices and defaults as the study file, and refusals that help."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import pytest

from qsearch.errors import SpecError
from qsearch.quant import schemes
from qsearch.quant.schemes import ActivationScheme, WeightScheme, activation_scheme, weight_scheme
from qsearch.spec import ActivationQuantizerSpec, QuantizerSpec, WeightQuantizerSpec
from qsearch.types import canonical_json


def test_the_study_file_has_the_same_defaults() -> None:
    assert weight_scheme(QuantizerSpec()) == WeightScheme()
    assert activation_scheme(QuantizerSpec()) == ActivationScheme()


def test_the_study_file_has_the_same_choices() -> None:
    weights, activations = WeightQuantizerSpec.model_fields, ActivationQuantizerSpec.model_fields
    assert get_args(weights["grid"].annotation) == schemes.WEIGHT_GRIDS
    assert get_args(weights["granularity"].annotation) == schemes.GRANULARITIES
    assert get_args(weights["range"].annotation) == schemes.WEIGHT_RANGES
    assert get_args(activations["grid"].annotation) == schemes.ACTIVATION_GRIDS
    assert get_args(activations["range"].annotation) == schemes.ACTIVATION_RANGES


def test_choices_arrive() -> None:
    spec = QuantizerSpec.model_validate(
        {
            "weights": {"grid": "affine", "granularity": "group", "group_size": 64, "norm": 2.4},
            "activations": {"range": "ema", "momentum": 0.99, "power_of_two": True},
        }
    )
    assert weight_scheme(spec) == WeightScheme("affine", "group", 64, norm=2.4)
    assert activation_scheme(spec) == ActivationScheme(range="ema", momentum=0.99, power_of_two=True)
    assert "affine" in canonical_json(asdict(weight_scheme(spec)))  # goes into the settings' digest


@pytest.mark.parametrize(
    ("choice", "hint"),
    [
        ({"grid": "symetric"}, "did you mean 'symmetric'"),
        ({"granularity": "row"}, "known: channel, group, tensor"),
        ({"range": "ema"}, "known:"),
        ({"group_size": 0}, "at least 1"),
        ({"norm": 0.0}, "positive"),
        ({"percentile": 50.0}, "more than 50"),
        ({"percentile": 100.1}, "at most 100"),
        ({"grid": "codebook", "power_of_two": True}, "power_of_two: false"),
    ],
)
def test_wrong_weight_schemes_are_refused(choice: dict[str, Any], hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        WeightScheme(**choice)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("choice", "hint"),
    [
        ({"grid": "affine"}, "known: auto, symmetric"),
        ({"range": "kld"}, "kl"),
        ({"norm": -1.0}, "positive"),
        ({"percentile": 0.99}, "more than 50"),
        ({"momentum": 1.0}, "less than 1"),
    ],
)
def test_wrong_activation_schemes_are_refused(choice: dict[str, Any], hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        ActivationScheme(**choice)
    assert hint in caught.value.hint
