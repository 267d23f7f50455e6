"""Every shipped evaluator keeps the promises that a third party's evaluator must keep."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from qsearch.evaluate import Evaluator, Target
from qsearch.evaluate.artifacts import ArtifactCache
from qsearch.evaluate.brecq import BRECQEvaluator
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.testing.evaluators import EvaluatorSuite, Make, toy_target
from qsearch.types import BitConfig, Score

CPU = torch.device("cpu")


class TestPTQ(EvaluatorSuite):
    widths = (8, 5, 3, 1)

    @pytest.fixture
    def evaluator_class(self) -> Callable[..., Evaluator]:
        return PTQEvaluator


class TestBRECQ(EvaluatorSuite):
    @pytest.fixture
    def evaluator_class(self) -> Callable[..., Evaluator]:
        return BRECQEvaluator

    @pytest.fixture
    def options(self) -> Mapping[str, Any]:
        return {"iterations": 10, "fisher_samples": 1}

    @pytest.fixture
    def make(self, options: Mapping[str, Any], tmp_path: Path) -> Make:
        made: list[int] = []

        def evaluator(target: Target) -> Evaluator:
            made.append(1)
            return BRECQEvaluator(target, options, CPU, 0, ArtifactCache(tmp_path / str(len(made))))

        return evaluator


class TestBRECQWithSharedArtifacts(TestBRECQ):
    """As workers use it: what one evaluator reconstructed, the next one reads."""

    @pytest.fixture
    def make(self, options: Mapping[str, Any], tmp_path: Path) -> Make:
        return lambda target: BRECQEvaluator(target, options, CPU, 0, ArtifactCache(tmp_path))


class Broken(PTQEvaluator):
    """Keeps all promises but one."""

    kind = ""

    def settings(self) -> dict[str, Any]:
        extra = {"chance": random.random()} if self.kind == "unstable settings" else {}
        return {**super().settings(), **extra, **({"device": CPU} if self.kind == "not JSON" else {})}

    def evaluate(self, config: BitConfig, split: str) -> Score:
        if self.kind == "no check of ties":
            bits = max(config.activations, default=8) or 8
            config = BitConfig(config.weights, (bits,) * len(config.activations))
        score = super().evaluate(config, split)
        if self.kind == "chance":
            return Score(score.accuracy, score.loss + random.random(), score.correct, score.samples)
        if self.kind == "memory":
            self.calls = getattr(self, "calls", 0) + 1
            return Score(score.accuracy, score.loss + 1e-9 * self.calls, score.correct, score.samples)
        if self.kind == "wrong accuracy":
            return Score(score.accuracy / 100, score.loss, score.correct, score.samples)
        if self.kind == "seeds":
            torch.manual_seed(0)
        if self.kind == "spoils the network":
            with torch.no_grad():
                self.target.graph.layer_module(0).weight.zero_()
        return score


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        ("unstable settings", "test_settings_are_json_and_stable"),
        ("not JSON", "test_settings_are_json_and_stable"),
        ("chance", "test_deterministic"),
        ("memory", "test_order_does_not_matter"),
        ("wrong accuracy", "test_scores_are_sound"),
        ("seeds", "test_global_state_is_left_alone"),
        ("spoils the network", "test_the_target_is_not_changed"),
        ("no check of ties", "test_wrong_configurations"),
    ],
)
def test_the_suite_catches_a_broken_evaluator(kind: str, test: str) -> None:
    target, suite = toy_target(), EvaluatorSuite()

    def make(target: Target) -> Evaluator:
        evaluator = Broken(target, {}, CPU, 0)
        evaluator.kind = kind
        return evaluator

    configs = EvaluatorSuite.configs.__wrapped__(suite, target)  # type: ignore[attr-defined]
    of = {"make": make, "target": target, "configs": configs, "evaluator": make(target)}
    function = getattr(suite, test)
    names = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    with pytest.raises((AssertionError, TypeError, pytest.fail.Exception)):
        function(*(of[name] for name in names))


def test_the_toy_has_what_the_suite_needs() -> None:
    target = toy_target()
    tensors = [layer.tensor for layer in target.graph.layers]
    assert len(set(tensors)) < len(tensors)
    assert len({int(label) for label in target.splits["test"].labels}) == 3
    exact = PTQEvaluator(target, {}, CPU, 0).evaluate_float("test")
    assert (exact.correct, exact.samples) == (54, 60)
    assert toy_target().graph.digest == target.graph.digest
