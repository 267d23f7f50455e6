"""Conformance suite for evaluators: what every fidelity must keep, whatever it measures.

A plug-in's author subclasses :class:`EvaluatorSuite` in a test module and overrides the fixture ``evaluator_class``::

    class TestMyEvaluator(EvaluatorSuite):
        @pytest.fixture
        def evaluator_class(self):
            return MyEvaluator
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from qsearch.data import Split
from qsearch.errors import EvaluationError, SpecError
from qsearch.evaluate import Evaluator, Target, evaluation_key
from qsearch.models import build_graph
from qsearch.models.graph import graph_digest
from qsearch.types import BitConfig, Score, canonical_json

#: Makes an evaluator of a target; two calls share nothing that was computed.
Make = Callable[[Target], Evaluator]


class _Toy(nn.Module):
    """Stem, residual block whose shortcut reads the same tensor as its first layer, classifier: five layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.shortcut = nn.Conv2d(4, 6, 1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))
        logits: torch.Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


def toy_target(images: int = 60, batch_size: int = 25) -> Target:
    """A small untrained network with noise for images; the labels are its own predictions, a tenth of them wrong.

    Args:
        images: Images of the validation and of the test split.
        batch_size: Does not divide them, so that the last batch is a small one.
    """
    generator = torch.Generator().manual_seed(0)
    network = _Toy().eval()
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) - (0.5 if value.dim() > 1 else 0.0))
        logits = network(torch.randn(100, 2, 6, 6, generator=generator))
        network.classifier.bias.sub_(logits.mean(0))  # or one class would win nearly always
        splits = {}
        for name, size in (("calibration", 32), ("validation", images), ("test", images)):
            noise = torch.randn(size, 2, 6, 6, generator=generator)
            labels = network(noise).argmax(1)
            labels[::10] = (labels[::10] + 1) % 3
            splits[name] = Split(name, noise, labels)
    return Target(build_graph(network, splits["calibration"].images[:2]), splits, batch_size)


class EvaluatorSuite:
    """Tests that any :class:`qsearch.evaluate.Evaluator` passes.

    Attributes:
        widths: Widths that the evaluator supports for weights and for activations, best first; at least two.
    """

    widths: ClassVar[tuple[int, ...]] = (8, 4, 2)

    @pytest.fixture
    def evaluator_class(self) -> Callable[..., Evaluator]:
        """The class under test; to be overridden."""
        raise NotImplementedError("override the fixture 'evaluator_class' in the subclass")

    @pytest.fixture
    def options(self) -> Mapping[str, Any]:
        """Its options; override it to make a slow evaluator fast."""
        return {}

    @pytest.fixture
    def make(self, evaluator_class: Callable[..., Evaluator], options: Mapping[str, Any]) -> Make:
        """Makes an evaluator; override it where instances share a cache, or determinism is not tested."""
        return lambda target: evaluator_class(target, options, torch.device("cpu"), 0)

    @pytest.fixture
    def target(self) -> Target:
        """Network and data; made anew for every test."""
        return toy_target()

    @pytest.fixture
    def evaluator(self, make: Make, target: Target) -> Evaluator:
        """The evaluator under test."""
        return make(target)

    @pytest.fixture
    def configs(self, target: Target) -> list[BitConfig]:
        """One configuration for each width, and mixed ones."""
        layers = target.graph.layers
        low, high = self.widths[-1], self.widths[0]
        uniform = [BitConfig((bits,) * len(layers), (bits,) * len(layers)) for bits in self.widths]
        weights = tuple(self.widths[i % len(self.widths)] for i in range(len(layers)))
        # One width for each tie group.
        groups = [target.graph.tensors[layer.tensor].group for layer in layers]
        activations = tuple(high if group % 2 else low for group in groups)
        return [*uniform, BitConfig(weights, (high,) * len(layers)), BitConfig(weights, activations)]

    def test_is_an_evaluator(self, evaluator: Evaluator) -> None:
        """It has every member of the protocol, with plausible values."""
        assert isinstance(evaluator, Evaluator)
        assert isinstance(evaluator.name, str)
        assert evaluator.name
        assert isinstance(evaluator.version, int)

    def test_settings_are_json_and_stable(self, make: Make, target: Target, configs: list[BitConfig]) -> None:
        """Settings are data, are the same for equal evaluators, and do not change with use."""
        evaluator = make(target)
        before = canonical_json(evaluator.settings())
        evaluator.evaluate(configs[0], "validation")
        assert canonical_json(evaluator.settings()) == before
        assert canonical_json(make(target).settings()) == before

    def test_scores_are_sound(self, evaluator: Evaluator, target: Target, configs: list[BitConfig]) -> None:
        """Scores are finite and agree with themselves."""
        for config in configs:
            for split in ("validation", "test"):
                score = evaluator.evaluate(config, split)
                assert isinstance(score, Score)
                assert 0 <= score.correct <= score.samples
                assert score.samples > 0
                assert score.accuracy == pytest.approx(100 * score.correct / score.samples)
                assert math.isfinite(score.loss)
                assert Score.from_json(score.to_json()) == score

    def test_deterministic(self, make: Make, target: Target, configs: list[BitConfig]) -> None:
        """A second evaluation, by the same evaluator or by another, gives the same score to the last bit."""
        first = make(target)
        scores = [first.evaluate(config, "validation") for config in configs]
        assert [first.evaluate(config, "validation") for config in configs] == scores
        second = make(target)
        assert [second.evaluate(config, "validation") for config in configs] == scores

    def test_order_does_not_matter(self, make: Make, target: Target, configs: list[BitConfig]) -> None:
        """A score does not depend on what was evaluated before, nor on which split."""
        forward, backward = make(target), make(target)
        expected = {(i, s): forward.evaluate(c, s) for i, c in enumerate(configs) for s in ("validation", "test")}
        for i, s in reversed(expected):
            assert backward.evaluate(configs[i], s) == expected[i, s]

    def test_a_batch_size_is_a_setting(self, make: Make, target: Target, configs: list[BitConfig]) -> None:
        """Evaluation keys differ wherever scores may: configuration, split, seed, batch size."""
        evaluator = make(target)
        other = Target(target.graph, target.splits, target.batch_size + 1)
        keys = {
            evaluation_key(evaluator, target, configs[0], "validation", 0).digest,
            evaluation_key(evaluator, target, configs[1], "validation", 0).digest,
            evaluation_key(evaluator, target, configs[0], "test", 0).digest,
            evaluation_key(evaluator, target, configs[0], "validation", 1).digest,
            evaluation_key(make(other), other, configs[0], "validation", 0).digest,
        }
        assert len(keys) == 5

    def test_the_target_travels(self, make: Make, target: Target, configs: list[BitConfig]) -> None:
        """A target that was pickled to a worker gives the same scores."""
        arrived = pickle.loads(pickle.dumps(target))
        assert graph_digest(arrived.graph.module) == target.graph.digest
        here, there = make(target), make(arrived)
        assert canonical_json(here.settings()) == canonical_json(there.settings())
        for config in configs:
            assert here.evaluate(config, "validation") == there.evaluate(config, "validation")

    def test_the_target_is_not_changed(self, evaluator: Evaluator, target: Target, configs: list[BitConfig]) -> None:
        """Network and images are as they were; other evaluators work on them, too."""
        for config in configs:
            evaluator.evaluate(config, "test")
        assert graph_digest(target.graph.module) == target.graph.digest
        for name, split in target.splits.items():
            assert Split(name, split.images, split.labels).digest == split.digest
        target_again = pickle.loads(pickle.dumps(target))
        assert target_again.graph.digest == target.graph.digest

    def test_global_state_is_left_alone(self, evaluator: Evaluator, configs: list[BitConfig]) -> None:
        """Nothing that other evaluators in the process depend on is changed."""

        def state() -> list[object]:
            generator = torch.get_rng_state().tolist()
            return [generator, torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()]

        before = state()
        for config in configs:
            evaluator.evaluate(config, "validation")
        assert state() == before

    def test_wrong_configurations(self, evaluator: Evaluator, target: Target, configs: list[BitConfig]) -> None:
        """They raise EvaluationError, and the evaluator works on."""
        good = configs[0]
        expected = evaluator.evaluate(good, "validation")
        count = len(good.weights)
        tensors = [layer.tensor for layer in target.graph.layers]
        twin = next(i for i in range(count) if tensors.index(tensors[i]) < i)  # reads the tensor of a layer before it
        torn = tuple(self.widths[1] if i == twin else bits for i, bits in enumerate(good.activations))
        wrong = [
            BitConfig(good.weights[:-1], good.activations[:-1]),
            BitConfig((*good.weights, good.weights[0]), (*good.activations, good.activations[0])),
            BitConfig((), ()),
            BitConfig((0, *good.weights[1:]), good.activations),
            BitConfig((-1, *good.weights[1:]), good.activations),
            BitConfig(good.weights, (0,) * count),
            BitConfig(good.weights, torn),
        ]
        for config in wrong:
            with pytest.raises(EvaluationError):
                evaluator.evaluate(config, "validation")
            assert evaluator.evaluate(good, "validation") == expected

    def test_unknown_split(self, evaluator: Evaluator, configs: list[BitConfig]) -> None:
        """A split that does not exist raises EvaluationError."""
        with pytest.raises(EvaluationError):
            evaluator.evaluate(configs[0], "vaildation")

    def test_unknown_option(
        self, evaluator_class: Callable[..., Evaluator], options: Mapping[str, Any], target: Target
    ) -> None:
        """A misspelt option of the study file is refused before anything is evaluated."""
        with pytest.raises(SpecError):
            evaluator_class(target, {**options, "no_such_option": 1}, torch.device("cpu"), 0)
