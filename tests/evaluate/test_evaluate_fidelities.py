"""What the fidelities measure: exact where they must be, close to float at 8 bits, brecq above ptq at few bits."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nets
import pytest
import torch
from torch import nn

from qsearch.data import Split
from qsearch.errors import EvaluationError
from qsearch.evaluate import Target, make_evaluator
from qsearch.evaluate.artifacts import ArtifactCache
from qsearch.evaluate.brecq import BRECQEvaluator
from qsearch.evaluate.ptq import PTQEvaluator, tensor_bits
from qsearch.models import build_graph
from qsearch.testing.evaluators import toy_target
from qsearch.types import BitConfig

CPU = torch.device("cpu")


def uniform(target: Target, weights: int, activations: int, ends: int | None = None) -> BitConfig:
    """One width for all layers; ``ends`` for the first and last."""
    n = len(target.graph.layers)
    ends = ends or weights
    return BitConfig((ends, *[weights] * (n - 2), ends), (activations,) * n)


def test_an_exactly_representable_network_loses_nothing() -> None:
    """Weights and pixels on their 8-bit grids: the quantized network is the float network, counted by hand."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 3)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(3) * 127)
        network[1].bias.copy_(torch.tensor([0.0, 0.5, 1.0]))
    calibration = torch.arange(256.0).repeat(3).reshape(-1, 3, 1, 1)
    images = torch.tensor([[255, 254, 0], [7, 7, 7], [0, 3, 3], [9, 8, 9]]).float().reshape(4, 3, 1, 1)
    labels = torch.tensor([0, 2, 1, 0])  # right, right (by the bias), wrong, wrong
    splits = {"calibration": Split("calibration", calibration, torch.zeros(256).long())}
    splits["test"] = Split("test", images, labels)
    evaluator = PTQEvaluator(Target(build_graph(network, images), splits, 3), {}, CPU, 0)
    exact = evaluator.evaluate_float("test")
    quantized = evaluator.evaluate(BitConfig((8,), (8,)), "test")
    assert (quantized.correct, quantized.samples, quantized.accuracy) == (2, 4, 50.0)
    assert quantized.loss == pytest.approx(exact.loss, rel=1e-6)
    coarse = evaluator.evaluate(BitConfig((8,), (1,)), "test")  # pixels become 0 or nearly 255
    assert coarse.loss > exact.loss


def test_8_bit_digits_are_as_good_as_float(digits_target: Target) -> None:
    evaluator = PTQEvaluator(digits_target, {}, CPU, 0)
    for split in ("validation", "test"):
        quantized = evaluator.evaluate(uniform(digits_target, 8, 8), split)
        assert abs(quantized.accuracy - evaluator.evaluate_float(split).accuracy) <= 0.5
    assert evaluator.evaluate_float("test").accuracy >= 97


def test_accuracy_falls_with_bits(digits_target: Target) -> None:
    evaluator = PTQEvaluator(digits_target, {}, CPU, 0)
    losses = [evaluator.evaluate(uniform(digits_target, b, b), "validation").loss for b in (8, 3, 2, 1)]
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 1


def test_two_bit_weights_cost_little_and_nearest_rounding_nearly_all(digits_target: Target) -> None:
    config = uniform(digits_target, 2, 8, ends=8)
    scores = {
        (rounding, correction): PTQEvaluator(
            digits_target, {"rounding": rounding, "correction": correction}, CPU, 0
        ).evaluate(config, "test")
        for rounding in ("gptq", "nearest")
        for correction in ("mean_std", "mean", "none")
    }
    exact = PTQEvaluator(digits_target, {}, CPU, 0).evaluate_float("test")
    assert scores["gptq", "mean_std"].accuracy > exact.accuracy - 1.5
    assert scores["gptq", "mean_std"].loss < scores["gptq", "none"].loss < scores["nearest", "none"].loss
    assert scores["nearest", "mean_std"].loss < scores["nearest", "mean"].loss < scores["nearest", "none"].loss
    assert scores["nearest", "none"].accuracy < exact.accuracy - 10


@pytest.mark.parametrize("preset", ["bank", "fast"])
def test_brecq_beats_ptq_at_few_bits(digits_target: Target, preset: str, tmp_path: Path) -> None:
    """Also on test images, which neither has seen."""
    cache = ArtifactCache(tmp_path)
    ptq = PTQEvaluator(digits_target, {}, CPU, 0, cache)
    brecq = BRECQEvaluator(digits_target, {"preset": preset, "iterations": 60}, CPU, 0, cache)
    for weights, activations in ((2, 2), (1, 2)):
        config = uniform(digits_target, weights, activations, ends=8)
        assert brecq.prepare(config).error < 0.9 * ptq.prepare(config).error
    config = uniform(digits_target, 1, 2, ends=8)
    assert brecq.evaluate(config, "test").loss < ptq.evaluate(config, "test").loss - 0.05


def test_brecq_at_8_bits_is_ptq(digits_target: Target) -> None:
    config = uniform(digits_target, 8, 4)
    expected = PTQEvaluator(digits_target, {}, CPU, 0).evaluate(config, "validation")
    assert make_evaluator("brecq", digits_target, {}).evaluate(config, "validation") == expected


@pytest.mark.parametrize("fidelity", ["ptq", "brecq"])
def test_16_and_32_bits_are_float(fidelity: str) -> None:
    target = toy_target()
    evaluator = make_evaluator(fidelity, target, {"iterations": 5} if fidelity == "brecq" else {})
    exact = evaluator.evaluate_float("test")  # type: ignore[attr-defined]
    for bits in (16, 32):
        found = evaluator.evaluate(BitConfig((bits,) * 5, (bits,) * 5), "test")
        assert (found.correct, found.samples) == (exact.correct, exact.samples)
        assert found.loss == pytest.approx(exact.loss, rel=1e-6)
    mixed = evaluator.evaluate(BitConfig((2, 16, 32, 3, 8), (16, 4, 8, 4, 32)), "test")
    assert mixed.loss != pytest.approx(exact.loss, rel=1e-3)


def test_trap_05_the_image_is_quantized_and_the_logits_are_not(digits_target: Target) -> None:
    """The image has the width that its reader is given; unsigned pixels lost their sign by normalisation, so its grid
    has a zero point (or signed codes). No grid stands behind the last layer."""
    graph = digits_target.graph
    evaluator = PTQEvaluator(digits_target, {}, CPU, 0)
    last = graph.layer_nodes[-1]
    assert last not in {tensor.node for tensor in graph.tensors}
    image = graph.tensors[graph.layers[0].tensor]
    assert not image.unsigned
    images = digits_target.splits["validation"].images
    logits = evaluator.engine.program.logits(images, evaluator.prepare(uniform(digits_target, 2, 2)).plan)
    assert len(logits.unique()) > 100
    losses = []
    for bits in (1, 2, 8):
        config = BitConfig((8,) * len(graph.layers), (bits, *[8] * (len(graph.layers) - 1)))
        losses.append(evaluator.evaluate(config, "validation").loss)
    assert losses[0] > losses[2]
    signed = PTQEvaluator(toy_target(), {}, CPU, 0)
    grid = signed.bank.grid(signed.target.graph.layers[0].tensor, 8)
    assert 0 < grid.zero_point < 255, "noise has both signs"


def test_trap_10_the_test_split_is_read_only_when_it_is_asked_for() -> None:
    """Nor is the validation split read by anything but its own score; what is fitted is fitted on calibration images,
    and judged on others of them."""
    target = toy_target()

    class Untouchable(dict):  # type: ignore[type-arg]
        def __getitem__(self, name: str) -> Split:
            if name in ("validation", "test") and name not in allowed:
                raise AssertionError(f"the {name} split was read")
            found: Split = super().__getitem__(name)
            return found

    allowed: set[str] = set()
    guarded = replace(target, splits=Untouchable(target.splits))
    for fidelity in ("ptq", "brecq"):
        evaluator = make_evaluator(fidelity, guarded, {"iterations": 4} if fidelity == "brecq" else {})
        evaluator.prepare(BitConfig((2,) * 5, (4,) * 5))  # type: ignore[attr-defined]
        allowed.add("validation")
        evaluator.evaluate(BitConfig((2,) * 5, (4,) * 5), "validation")
        allowed.clear()
        engine = evaluator.engine  # type: ignore[attr-defined]
        images = target.splits["calibration"].images
        assert torch.equal(torch.cat([engine.fit_images, engine.holdout_images]), images)
        assert 0.1 <= len(engine.holdout_images) / len(images) <= 0.2


def test_trap_10_what_is_fitted_never_sees_held_out_images() -> None:
    target = toy_target()
    calibration = target.splits["calibration"]
    evaluators = []
    for factor in (1.0, 100.0):
        images = calibration.images.clone()
        images[-4:] *= factor  # the held-out eighth
        splits = {**target.splits, "calibration": Split("calibration", images, calibration.labels)}
        evaluators.append(PTQEvaluator(replace(target, splits=splits), {}, CPU, 0))
    for layer in range(5):
        codes = [e.bank.weight(layer, 3).codes for e in evaluators]
        assert torch.equal(*codes)
    for tensor in target.graph.tensors:
        assert evaluators[0].bank.grid(tensor.index, 4) == evaluators[1].bank.grid(tensor.index, 4)
    moments = [e.engine.moments for e in evaluators]
    assert all(torch.equal(moments[0][i].mean, moments[1][i].mean) for i in range(5))


def test_trap_22_all_candidates_are_scored_on_the_same_images_in_the_same_order() -> None:
    """So that differences between candidates are paired: their noise is far below that of either score."""
    target = toy_target(images=60)
    evaluator = PTQEvaluator(target, {}, CPU, 0)
    split = target.splits["validation"]
    for bits in (8, 3):
        plan = evaluator.prepare(uniform(target, bits, 8)).plan
        logits = evaluator.engine.program.logits(split.images, plan)
        score = evaluator.evaluate(uniform(target, bits, 8), "validation")
        assert score.correct == int((logits.argmax(1) == split.labels).sum())
        assert score.samples == len(split), "all of them"


@pytest.fixture(scope="module")
def tied_target() -> Target:
    """Summands are stored quantized, with one width for both."""
    network, x = nets.randomize(nets.Residual()), nets.images(20)
    split = Split("calibration", x, torch.zeros(20).long())
    return Target(build_graph(network, x[:2], "both_inputs"), {"calibration": split, "validation": split}, 32)


def with_activations(target: Target, bits: int, names: tuple[str, ...]) -> BitConfig:
    """8 bits everywhere, but ``bits`` for the inputs of some layers."""
    layers = [layer.name for layer in target.graph.layers]
    return BitConfig((8,) * len(layers), tuple(bits if name in names else 8 for name in layers))


def test_disagreement_in_a_tie_group_is_refused(tied_target: Target) -> None:
    config = with_activations(tied_target, 4, ("wider.shortcut",))
    with pytest.raises(EvaluationError, match=r"'wider\.conv1' and 'wider\.shortcut' share an activation width"):
        make_evaluator("ptq", tied_target, {}).evaluate(config, "validation")


def test_summands_take_the_width_of_their_group(tied_target: Target) -> None:
    config = with_activations(tied_target, 4, ("same.conv1",))
    widths = {tied_target.graph.tensors[i].node: bits for i, bits in tensor_bits(tied_target, config).items()}
    assert len(widths) == len(tied_target.graph.tensors)
    read = tied_target.graph.tensors[tied_target.graph.layers[1].tensor].node
    assert widths[read] == widths["same_conv2"] == 4  # the block's input, and what is added to it
    assert sorted(widths.values()).count(4) == 2
    config = with_activations(tied_target, 4, ("head.fc",))
    widths = {tied_target.graph.tensors[i].node: bits for i, bits in tensor_bits(tied_target, config).items()}
    assert widths["wider_conv2"] == widths["wider_shortcut"] == widths["head_pool"] == 4


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (BitConfig((8,) * 4, (8,) * 4), "has 4 layers, the network 5"),
        (BitConfig((8, 8, 9, 8, 8), (8,) * 5), "layer 'conv2': 9-bit weights are not evaluated"),
        (BitConfig((8,) * 5, (9,) * 5), "9-bit activations are not evaluated"),
    ],
)
@pytest.mark.parametrize("fidelity", ["ptq", "brecq"])
def test_wrong_configurations(fidelity: str, config: BitConfig, match: str) -> None:
    with pytest.raises(EvaluationError, match=match):
        make_evaluator(fidelity, toy_target(), {}).evaluate(config, "validation")


def test_unknown_split_has_a_hint() -> None:
    with pytest.raises(EvaluationError, match="there is no split 'tset'") as error:
        make_evaluator("ptq", toy_target(), {}).evaluate(BitConfig((8,) * 5, (8,) * 5), "tset")
    assert "'test'" in error.value.hint


PROGRAM = """
import pickle, sys
import torch
from qsearch.evaluate import make_evaluator
torch.set_num_threads(int(sys.argv[2]))
target, configs = pickle.load(open(sys.argv[1], "rb"))
for fidelity in ("ptq", "brecq"):
    evaluator = make_evaluator(fidelity, target, {"iterations": 25} if fidelity == "brecq" else {})
    for config in configs:
        print(evaluator.evaluate(config, "validation"))
"""


def test_trap_18_two_processes_give_equal_scores_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = toy_target()
    configs = [BitConfig((b,) * 5, (a,) * 5) for b, a in ((2, 4), (4, 8), (3, 3))]
    (tmp_path / "work.pkl").write_bytes(pickle.dumps((target, configs)))
    outputs = []
    for cache in ("one", "two"):  # each reconstructs for itself
        monkeypatch.setenv("QSEARCH_CACHE_DIR", str(tmp_path / cache))
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "work.pkl"), "1"]
        outputs.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 6
    assert list((tmp_path / "two" / "artifacts").rglob("*.safetensors"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestGPU:
    def test_scores_are_those_of_the_cpu_up_to_rounding(self, digits_target: Target) -> None:
        for bits in (8, 4):
            config = uniform(digits_target, bits, 8)
            cpu, gpu = (make_evaluator("ptq", digits_target, {}, d).evaluate(config, "test") for d in ("cpu", "cuda"))
            assert gpu.accuracy == pytest.approx(cpu.accuracy, abs=0.7)
            assert gpu.loss == pytest.approx(cpu.loss, rel=0.05)

    def test_reconstruction_repeats_itself(self, digits_target: Target, tmp_path: Path) -> None:
        config = uniform(digits_target, 2, 4, ends=8)
        device = torch.device("cuda")
        caches = (ArtifactCache(tmp_path / name) for name in "ab")
        scores = {
            BRECQEvaluator(digits_target, {"iterations": 30}, device, 0, cache).evaluate(config, "test")
            for cache in caches
        }
        assert len(scores) == 1
        assert next(iter(digits_target.graph.module.parameters())).device.type == "cpu"
