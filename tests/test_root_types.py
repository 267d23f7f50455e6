"""The words every room shares, by hand."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsearch.types import (
    BIT_ALPHABET,
    BitConfig,
    EvaluationKey,
    LayerShape,
    Metrics,
    Score,
    TrialState,
    canonical_json,
    digest,
)

CONV = LayerShape("c", "conv", 8, 12, (3, 5), (2, 1), 4, (16, 10), (8, 10), tensor=0)
DEPTHWISE = LayerShape("d", "conv", 12, 12, (3, 3), groups=12, in_size=(8, 10), out_size=(6, 8), tensor=1)
LINEAR = LayerShape("f", "linear", 20, 7, tensor=2)
TOKENS = LayerShape("t", "linear", 20, 7, in_size=(9, 1), out_size=(9, 1), tensor=2)


def test_layer_counts_by_hand() -> None:
    assert (CONV.positions, CONV.reduction, CONV.columns) == (80, 2 * 15, 3)
    assert (CONV.macs, CONV.weight_count) == (80 * 30 * 12, 30 * 12)
    assert (CONV.input_count, CONV.output_count) == (8 * 160, 12 * 80)
    assert (DEPTHWISE.reduction, DEPTHWISE.columns, DEPTHWISE.macs) == (9, 1, 48 * 9 * 12)
    assert (LINEAR.positions, LINEAR.macs, LINEAR.weight_count) == (1, 140, 140)
    assert (TOKENS.macs, TOKENS.weight_count, TOKENS.input_count) == (9 * 140, 140, 180)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [(CONV, False), (DEPTHWISE, True), (LINEAR, False), (LayerShape("o", "conv", 1, 4, groups=1), False)],
)
def test_depthwise(layer: LayerShape, expected: bool) -> None:
    assert layer.is_depthwise is expected


def test_layers_survive_json() -> None:
    for layer in (CONV, DEPTHWISE, TOKENS):
        assert LayerShape.from_json(json.loads(json.dumps(layer.to_json()))) == layer


def test_mean_bits_by_hand() -> None:
    layers = (CONV, DEPTHWISE, LINEAR, TOKENS)
    config = BitConfig((2, 4, 8, 8), (8, 4, 2, 2))
    assert config.mean_weight_bits(layers) == pytest.approx((2 * 360 + 4 * 108 + 8 * 280) / (360 + 108 + 280))
    # LINEAR and TOKENS read tensor 2: it counts once.
    assert config.mean_activation_bits(layers) == pytest.approx((8 * 1280 + 4 * 960 + 2 * 180) / (1280 + 960 + 180))


def test_configurations_must_have_one_width_each() -> None:
    with pytest.raises(ValueError, match="2 weight widths but 1 activation widths"):
        BitConfig((8, 8), (8,))


bits = st.sampled_from(BIT_ALPHABET)


@given(st.lists(st.tuples(bits, bits), max_size=30))
def test_configurations_survive_json(pairs: list[tuple[int, int]]) -> None:
    config = BitConfig(tuple(w for w, _ in pairs), tuple(a for _, a in pairs))
    again = BitConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert hash(again) == hash(config)


def test_scores() -> None:
    score = Score(50.0, 0.5, 2, 4)
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score
    diverged = Score(10.0, math.inf, 1, 10)
    assert diverged.to_json()["loss"] is None
    assert Score.from_json(json.loads(json.dumps(diverged.to_json(), allow_nan=False))) == diverged
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="accuracy is"):
            Score(value, 0.0, 0, 1)


def test_metrics() -> None:
    costs = Metrics({"size": 3.0})
    assert costs.with_error(97.5)["error"] == 2.5
    assert costs.with_error(97.5)["size"] == 3.0
    with pytest.raises(KeyError):
        costs["error"]


def test_canonical_json() -> None:
    assert canonical_json({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.0})
    assert digest([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"  # of the text "[]"
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(math.nan)


KEY = EvaluationKey("m", "d", "test", "q", BitConfig((8,), (4,)), "ptq", 0, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "x"},
        {"data": "x"},
        {"split": "x"},
        {"quantizer": "x"},
        {"config": BitConfig((4,), (8,))},
        {"fidelity": "x"},
        {"seed": 1},
        {"version": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_an_evaluation_key_counts(change: dict[str, object]) -> None:
    assert replace(KEY, **change).digest != KEY.digest  # type: ignore[arg-type]


def test_an_evaluation_key_is_a_value() -> None:
    """Pinned: a change of this digest would orphan every result in every store."""
    assert KEY.digest == "ddb0d5a29ca67b27a2106a28bd2347deb785c4e274716ad5e166d6e966090032"
    assert pickle.loads(pickle.dumps(KEY)).digest == copy.copy(KEY).digest == KEY.digest
    with pytest.raises(FrozenInstanceError):
        KEY.seed = 3  # type: ignore[misc]


def test_final_states() -> None:
    final = {state for state in TrialState if state.is_final}
    assert final == {TrialState.COMPLETE, TrialState.ABANDONED, TrialState.INFEASIBLE}
