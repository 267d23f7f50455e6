"""Options, devices, keys, scoring and the target."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import nets
import pytest
import torch

from qsearch.data import Split
from qsearch.errors import DataError, EvaluationError, ModelError, PluginError, SpecError
from qsearch.evaluate import Target, build_target, evaluation_key, make_evaluator, resolve_device
from qsearch.evaluate.base import read_options
from qsearch.evaluate.scoring import score_logits
from qsearch.models import build_graph
from qsearch.spec import DataSpec, ModelSpec, QuantizerSpec, WeightQuantizerSpec
from qsearch.testing.evaluators import toy_target
from qsearch.types import BitConfig

CPU = torch.device("cpu")
HAS_GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Options:
    steps: int = 3
    rate: float = 0.5
    name: str = "a"
    fast: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be positive, not {self.steps}")


def test_options_are_read() -> None:
    assert read_options(Options, {}, "here") == Options()
    assert read_options(Options, {"steps": 5, "rate": 1, "fast": True}, "here") == Options(5, 1, "a", True)


@pytest.mark.parametrize(
    ("options", "match", "hint"),
    [
        ({"setps": 5}, "here has no option 'setps'", "did you mean 'steps'"),
        ({"quite_another": 5}, "here has no option", "known: fast, name, rate, steps"),
        ({"steps": 5.5}, r"here.steps is 5.5; a value like 3", ""),
        ({"steps": True}, "here.steps is True", ""),
        ({"steps": "3"}, "here.steps is '3'", ""),
        ({"rate": "high"}, "here.rate is 'high'", ""),
        ({"fast": 1}, "here.fast is 1", ""),
        ({"steps": 0}, "here: steps must be positive", ""),
    ],
)
def test_wrong_options(options: dict[str, object], match: str, hint: str) -> None:
    with pytest.raises(SpecError, match=match) as error:
        read_options(Options, options, "here")
    assert hint in error.value.hint
    assert error.value.hint


@pytest.mark.parametrize(
    ("fidelity", "options", "kind", "match"),
    [
        ("brecq", {"iteratoins": 3}, SpecError, "fidelities.brecq has no option 'iteratoins'"),
        ("brecq", {"iterations": 0}, SpecError, "iterations must be positive"),
        ("brecq", {"lr": -1.0}, SpecError, "lr must be positive"),
        ("brecq", {"warm_up": 1.0}, SpecError, "warm_up and fisher_floor lie in"),
        ("brecq", {"round_weight": -0.1}, SpecError, "round_weight must not be negative"),
        ("brecq", {"activation_lr": -1e-3}, SpecError, "activation_lr must not be negative"),
        ("brecq", {"preset": "quick"}, SpecError, "preset is 'quick', not one of bank, fast, paper"),
        ("brecq", {"fisher": "diagonal"}, SpecError, "fisher is 'diagonal', not one of none, published, corrected"),
        ("brecq", {"drop_prob": 0.0}, SpecError, r"drop_prob in \(0, 1\]"),
        ("brecq", {"patience": 3}, SpecError, "give check_every, too"),
        ("brecq", {"correction": "some"}, SpecError, "correction is 'some', not one of mean_std, mean, none"),
        ("ptq", {"rounding": "up"}, SpecError, "rounding is 'up', not one of gptq, nearest"),
        ("ptq", {"correction_images": 0}, SpecError, "correction_images must be positive"),
        ("ptq", {"max_cache_gb": -1}, SpecError, "max_cache_gb not negative"),
        ("ptq", {"iterations": 3}, SpecError, "fidelities.ptq has no option 'iterations'"),
        ("brcq", {}, PluginError, "unknown evaluator 'brcq'"),
    ],
)
def test_wrong_fidelities(fidelity: str, options: dict[str, object], kind: type, match: str) -> None:
    with pytest.raises(kind, match=match):
        make_evaluator(fidelity, toy_target(), options)


def test_devices() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if HAS_GPU else "cpu")


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_a_gpu_that_is_not_there(name: str) -> None:
    with pytest.raises(EvaluationError, match=f"device is '{name}', but torch sees no GPU") as error:
        make_evaluator("ptq", toy_target(), {}, name)
    assert "auto" in error.value.hint


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_a_gpu_too_many() -> None:
    with pytest.raises(EvaluationError, match="there are only"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(EvaluationError, match=f"device is '{name}'") as error:
        resolve_device(name)
    assert "cuda" in error.value.hint


def test_evaluation_keys_differ_wherever_scores_may() -> None:
    target = toy_target()
    config, other = (BitConfig((bits,) * 5, (8,) * 5) for bits in (4, 8))
    ptq, brecq = (make_evaluator(name, target, {}) for name in ("ptq", "brecq"))
    longer = make_evaluator("brecq", target, {"iterations": 7})
    changed = replace(target, splits={**target.splits, "calibration": target.splits["validation"]})
    rebuilt = replace(target, graph=replace(target.graph, digest="0" * 64))
    keys = {
        evaluation_key(ptq, target, config, "validation", 0).digest,
        evaluation_key(ptq, target, other, "validation", 0).digest,
        evaluation_key(ptq, target, config, "test", 0).digest,
        evaluation_key(ptq, target, config, "validation", 1).digest,
        evaluation_key(ptq, changed, config, "validation", 0).digest,
        evaluation_key(ptq, rebuilt, config, "validation", 0).digest,
        evaluation_key(brecq, target, config, "validation", 0).digest,
        evaluation_key(longer, target, config, "validation", 0).digest,
    }
    assert len(keys) == 8
    again = evaluation_key(make_evaluator("ptq", toy_target(), {}), toy_target(), config, "validation", 0)
    assert again.digest in keys


def test_where_quantizers_stand_is_part_of_the_settings() -> None:
    """The add policy moves quantizers but leaves the network's digest as it is."""
    network, x = nets.randomize(nets.Residual()), nets.images(40)
    split = Split("calibration", x, torch.zeros(40).long())
    targets = [
        Target(build_graph(network, x[:2], policy), {"calibration": split, "validation": split}, 32)
        for policy in ("after_relu", "both_inputs")
    ]
    assert targets[0].graph.digest == targets[1].graph.digest
    evaluators = [make_evaluator("ptq", target, {}) for target in targets]
    config = BitConfig((4,) * 7, (2,) * 7)
    scores = [e.evaluate(config, "validation") for e in evaluators]
    assert scores[0] != scores[1]
    keys = [evaluation_key(e, t, config, "validation", 0) for e, t in zip(evaluators, targets, strict=True)]
    assert keys[0].digest != keys[1].digest


def test_how_weights_and_activations_are_quantized_is_part_of_the_settings() -> None:
    config = BitConfig((3,) * 5, (8,) * 5)
    digests, losses = set(), []
    for weights in ({}, {"grid": "affine"}, {"power_of_two": True}, {"negative_scales": False}):
        target = replace(toy_target(), quantizer=QuantizerSpec(weights=WeightQuantizerSpec(**weights)))
        for options in ({}, {"correction": "mean"}, {"rounding": "nearest"}):
            evaluator = make_evaluator("ptq", target, options)
            digests.add(evaluation_key(evaluator, target, config, "validation", 0).digest)
            losses.append(evaluator.evaluate(config, "validation").loss)
    assert len(digests) == 12
    assert len(set(losses[::3])) == 4, "every way to quantize has a result of its own"
    assert len(set(losses)) > 6


def test_trap_17_every_convention_is_named() -> None:
    """An accuracy means nothing without them."""
    target = toy_target()
    settings = make_evaluator("ptq", target, {}).settings()
    for name in ("input_image", "logits", "bias", "batch_norm", "16_and_32_bits", "correction", "rounding", "tensors"):
        assert name in settings, name
    brecq = make_evaluator("brecq", target, {"preset": "paper"}).settings()
    assert (brecq["iterations"], brecq["lr"], brecq["round_weight"], brecq["warm_start"]) == (20_000, 1e-3, 0.01, False)
    assert [unit[0] for unit in brecq["units"]] == [unit.name for unit in target.graph.units]
    assert "max_cache_gb" not in settings, "what cannot change a score is no part of its key"


# --- scoring


def test_score_by_hand() -> None:
    """Two of four are right."""
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [5.0, 5.0, 5.0], [0.0, 0.0, 9.0]])
    split = Split("test", torch.zeros(4, 3, 1, 1), torch.tensor([0, 2, 0, 1]))
    for size in (1, 3, 4, 100):
        found = score_logits(iter(logits.split(size)), split)
        assert (found.correct, found.samples, found.accuracy) == (2, 4, 50.0)
        by_hand = [
            math.log(math.exp(2) + 1 + math.exp(1)) - 2,
            math.log(math.exp(1) + 2) - 0,
            math.log(3),
            math.log(math.exp(9) + 2) - 0,
        ]
        assert found.loss == pytest.approx(sum(by_hand) / 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite(value: float) -> None:
    split = Split("validation", torch.zeros(4, 3, 1, 1), torch.zeros(4).long())
    logits = torch.zeros(4, 3)
    logits[-1, 1] = value
    with pytest.raises(EvaluationError, match="NaN or infinite logits on the validation split") as error:
        score_logits(logits.split(3), split)
    assert error.value.hint


def test_nan_and_infinite_activations_are_not_hidden_by_quantizing() -> None:
    """Quantizing maps them to ordinary values, so they are looked for before."""
    target = toy_target()
    images = target.splits["calibration"].images.clone()
    images[7] = 3e38
    splits = {**target.splits, "calibration": Split("calibration", images, target.splits["calibration"].labels)}
    with pytest.raises(EvaluationError, match="activation 'relu' is NaN or infinite on the calibration images"):
        make_evaluator("ptq", replace(target, splits=splits), {}).evaluate(BitConfig((8,) * 5, (8,) * 5), "test")


# --- target


def tiny(**splits: object) -> dict[str, object]:
    def items(start: int, label: int) -> list[tuple[torch.Tensor, int]]:
        return [(torch.full((3, 8, 8), float(start + i)), label) for i in range(4)]

    return {"calibration": items(0, 0), "validation": items(10, 1), "test": items(20, 2), **splits}


def wide() -> dict[str, object]:
    return tiny(test=[(torch.full((3, 8, 8), 30.0), 3)])


def grey() -> dict[str, object]:
    return {
        name: [(torch.full((1, 8, 8), float(i)), 0)] for i, name in enumerate(("calibration", "validation", "test"))
    }


def test_build_target() -> None:
    data = DataSpec(source="test_evaluate_base:tiny", calibration=2, batch_size=3)
    target = build_target(ModelSpec(source="nets:Residual"), data, QuantizerSpec(add_policy="both_inputs"))
    assert {name: len(split) for name, split in target.splits.items()} == {"calibration": 2, "validation": 4, "test": 4}
    assert target.batch_size == 3
    assert (target.graph.classes, target.graph.input_shape) == (3, (3, 8, 8))
    assert len(target.graph.tensors) > 6, "the add policy is passed on"
    assert target.to(CPU) is target
    assert target.data_digest("test") != target.data_digest("validation")


def test_network_and_data_must_fit() -> None:
    with pytest.raises(DataError, match="the data has class 3, but the network returns 3 logits"):
        build_target(ModelSpec(source="nets:Residual"), DataSpec(source="test_evaluate_base:wide"))
    with pytest.raises(ModelError, match=r"fails on a batch of shape \(1, 1, 8, 8\)"):
        build_target(ModelSpec(source="nets:Residual"), DataSpec(source="test_evaluate_base:grey"))


def seeded_residual() -> torch.nn.Module:
    return nets.randomize(nets.Residual())


def test_an_equalized_network_is_evaluated_like_any_other() -> None:
    model, data = ModelSpec(source="test_evaluate_base:seeded_residual"), DataSpec(source="test_evaluate_base:tiny")
    plain, equalized = (
        make_evaluator("ptq", build_target(model, data, QuantizerSpec(equalize=equalize)), {})
        for equalize in (False, True)
    )
    exact = [e.evaluate_float("calibration").loss for e in (plain, equalized)]  # type: ignore[attr-defined]
    assert exact[1] == pytest.approx(exact[0], rel=1e-4)
    config = BitConfig((8,) * 7, (8,) * 7)
    assert equalized.evaluate(config, "calibration").loss == pytest.approx(exact[0], rel=0.1)
    assert plain.settings()["equalized"] is False
    assert equalized.settings()["equalized"] is True
