"""Scoring one configuration outside a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from qsearch.errors import EvaluationError, SpecError
from qsearch.evaluate import Target, build_target, make_evaluator
from qsearch.hardware import SizeRules, layer_size_bytes
from qsearch.models import QuantGraph
from qsearch.run.reproduce import measure, uniform_config
from qsearch.spec import DataSpec, LayerPin, ModelSpec, PinSpec, QuantizerSpec, WeightQuantizerSpec
from qsearch.types import BitConfig, Score

MODEL = ModelSpec(source="nets:Residual")
DATA = DataSpec(source="test_run_reproduce:noise", batch_size=16)
FREE = PinSpec(first=None, last=None)


def noise() -> dict[str, TensorDataset]:
    """Images without meaning; the splits share none."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"calibration": 24, "validation": 20, "test": 20}
    return {
        name: TensorDataset(torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 3)
        for name, size in sizes.items()
    }


class Fixed:
    """A third party's evaluator, found by its dotted name; its option decides the score."""

    name = "fixed"
    version = 1

    def __init__(self, target: Target, options: Mapping[str, Any], device: torch.device, seed: int) -> None:
        self.correct = int(options.get("correct", 5)) + seed
        self.threads = torch.get_num_threads()

    def settings(self) -> dict[str, Any]:
        return {"correct": self.correct, "threads_then": self.threads}

    def evaluate(self, config: BitConfig, split: str) -> Score:
        return Score(accuracy=5.0 * self.correct, loss=1.0, correct=self.correct, samples=20)


@pytest.fixture(autouse=True)
def same_network() -> Iterator[None]:
    """The network of `nets` is random: the same one in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def uniform(w: int, a: int, pin: PinSpec = FREE) -> Any:
    return lambda graph: uniform_config(graph, w, a, pin)


def graph() -> QuantGraph:
    return build_target(MODEL, DATA).graph


def test_the_quantizer_arrives() -> None:
    spec = QuantizerSpec(add_policy="both_inputs", weights=WeightQuantizerSpec(grid="affine", granularity="tensor"))
    torch.manual_seed(0)
    report = measure(MODEL, DATA, uniform(3, 8), ["validation"], quantizer=spec)
    torch.manual_seed(0)
    target = build_target(MODEL, DATA, spec)
    expected = make_evaluator("ptq", target, {})
    config = uniform_config(target.graph, 3, 8, FREE)
    assert report["scores"]["validation"] == expected.evaluate(config, "validation").to_json()
    assert len(report["tensors"]) == len(target.graph.tensors) > len(graph().tensors)
    assert QuantizerSpec.model_validate(report["quantizer"]) == spec
    rules = SizeRules.from_spec(spec)
    layers = sum(layer_size_bytes(layer, 3, rules) for layer in target.graph.layers)
    assert report["size_bytes"] == layers + 4 * target.graph.float_parameters


def test_what_was_asked_for_is_reported() -> None:
    report = measure(MODEL, DATA, uniform(4, 8), ["test"], options={"correction": "none"}, seed=5)
    assert ModelSpec.model_validate(report["model"]) == MODEL
    assert DataSpec.model_validate(report["data"]) == DATA
    assert (report["fidelity"], report["options"], report["seed"]) == ("ptq", {"correction": "none"}, 5)
    assert report["seconds"]["load"] > 0
    phases = [seconds for name, seconds in report["seconds"].items() if name != "total"]
    assert report["seconds"]["total"] == pytest.approx(sum(phases))


def test_a_third_partys_evaluator() -> None:
    before = torch.get_num_threads()
    where = "test_run_reproduce:Fixed"
    report = measure(
        MODEL, DATA, uniform(4, 8), ["validation"], fidelity=where, options={"correct": 7}, seed=2, threads=2
    )
    assert torch.get_num_threads() == before
    assert report["fidelity"] == where  # as it has to be given again
    assert report["accuracy"]["validation"] == 45.0
    assert "guard" not in report
    values = {row["name"]: row["value"] for row in report["conventions"]}
    assert (values["correct"], values["threads_then"], values["threads"]) == ("9", "2", "2")


def test_wrong_options_name_their_place() -> None:
    with pytest.raises(SpecError, match=r"fidelities.ptq has no option 'corection'") as error:
        measure(MODEL, DATA, uniform(4, 8), ["validation"], options={"corection": "none"})
    assert "correction" in error.value.hint
    with pytest.raises(EvaluationError, match=r"no GPU|only"):
        measure(MODEL, DATA, uniform(4, 8), ["validation"], device="cuda:99")


def test_a_width_that_nobody_evaluates() -> None:
    with pytest.raises(EvaluationError, match="9-bit weights"):
        measure(MODEL, DATA, uniform(9, 8), ["validation"])


def test_uniform_with_pins() -> None:
    network = graph()
    groups = [network.tensors[layer.tensor].group for layer in network.layers]
    config = uniform_config(network, 2, 4, PinSpec(last=LayerPin(weights=6, activations=7)))
    count = len(network.layers)
    assert config.weights == (8, *[2] * (count - 2), 6)
    for group, width in zip(groups, config.activations, strict=True):
        assert width == (8 if group == groups[0] else 7 if group == groups[-1] else 4)


@pytest.mark.parametrize("float_bits", [16, 32])
def test_a_pin_quantizes_nothing_that_is_to_stay_float(float_bits: int) -> None:
    network = graph()
    count = len(network.layers)
    weights_only = uniform_config(network, 2, float_bits, PinSpec())
    assert weights_only == BitConfig((8, *[2] * (count - 2), 8), (float_bits,) * count)
    activations_only = uniform_config(network, float_bits, 4, PinSpec())
    assert activations_only.weights == (float_bits,) * count
    assert activations_only.activations[0] == activations_only.activations[-1] == 8


def test_float_everywhere_is_the_float_network() -> None:
    report = measure(MODEL, DATA, uniform(32, 32, PinSpec()), ["validation", "test"])
    assert report["scores"] == report["float_scores"]
    assert {layer["output_relative_error"] for layer in report["layers"]} == {0.0}
    assert all(tensor["bits"] is None for tensor in report["tensors"])
