"""Reconstructed weights are kept by content: reused by other evaluators, recomputed when damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsearch.evaluate import Target
from qsearch.evaluate import sequence as sequence_module
from qsearch.evaluate.artifacts import ArtifactCache
from qsearch.evaluate.brecq import BRECQEvaluator
from qsearch.testing.evaluators import toy_target
from qsearch.types import BitConfig

CPU = torch.device("cpu")
OPTIONS = {"iterations": 8, "fisher_samples": 1}
CONFIG = BitConfig((3,) * 5, (4,) * 5)


@pytest.fixture
def reconstructions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the units that were really reconstructed."""
    seen: list[str] = []
    original = sequence_module.reconstruct_unit

    def counted(graph: Any, unit: Any, *rest: Any, **options: Any) -> Any:
        seen.append(unit.name)
        return original(graph, unit, *rest, **options)

    monkeypatch.setattr(sequence_module, "reconstruct_unit", counted)
    return seen


def evaluator(directory: Path, target: Target | None = None, seed: int = 0, **options: Any) -> BRECQEvaluator:
    return BRECQEvaluator(target or toy_target(), {**OPTIONS, **options}, CPU, seed, ArtifactCache(directory))


def files(directory: Path) -> set[Path]:
    return set(directory.rglob("*.safetensors"))


def test_a_second_evaluator_reuses_files(tmp_path: Path, reconstructions: list[str]) -> None:
    first = evaluator(tmp_path)
    score = first.evaluate(CONFIG, "validation")
    assert reconstructions == ["stem.0", "conv1+conv2+shortcut", "classifier"]
    assert first.evaluate(CONFIG, "validation") == score
    first.evaluate(CONFIG, "test")
    second = evaluator(tmp_path)
    assert second.evaluate(CONFIG, "validation") == score
    assert len(reconstructions) == 3, "the second evaluator reconstructed nothing"
    assert len(files(tmp_path)) == 3


def test_only_changed_units_are_reconstructed(tmp_path: Path, reconstructions: list[str]) -> None:
    worker = evaluator(tmp_path)
    worker.evaluate(CONFIG, "validation")
    reconstructions.clear()
    worker.evaluate(BitConfig((3, 3, 3, 3, 2), (4,) * 5), "validation")
    assert reconstructions == ["classifier"]
    worker.evaluate(BitConfig((8, 3, 3, 3, 3), (4,) * 5), "validation")
    assert reconstructions == ["classifier"], "8-bit weights are rounded to nearest"
    worker.evaluate(BitConfig((3, 8, 3, 8, 3), (4,) * 5), "validation")
    assert reconstructions == ["classifier", "conv1+conv2+shortcut"]


def test_stitching_is_independent_of_the_other_units(tmp_path: Path) -> None:
    """A unit's weights depend on its own bits only, so they are the same in every configuration."""
    worker = evaluator(tmp_path)
    mixed = worker.weights(BitConfig((2, 3, 3, 3, 4), (4,) * 5))
    uniform = worker.weights(CONFIG)
    for layer in (1, 2, 3):
        assert torch.equal(mixed[layer], uniform[layer])
    assert not torch.equal(mixed[0], uniform[0])


def damages() -> dict[str, Any]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    def rename(path: Path) -> None:
        save_file({"7": torch.zeros(1, dtype=torch.int8)}, path)

    def unchecked(path: Path) -> None:
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)

    return {
        "empty": lambda path: path.write_bytes(b""),
        "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "text": lambda path: path.write_text("not a tensor"),
        "one bit": flip,
        "other tensors": rename,
        "other values": unchecked,
    }


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_file_is_computed_again(tmp_path: Path, reconstructions: list[str], damage: str) -> None:
    score = evaluator(tmp_path).evaluate(CONFIG, "validation")
    sound = {path: path.read_bytes() for path in files(tmp_path)}
    victim = sorted(sound)[0]
    damages()[damage](victim)
    assert victim.read_bytes() != sound[victim]
    reconstructions.clear()
    assert evaluator(tmp_path).evaluate(CONFIG, "validation") == score
    assert len(reconstructions) == 1
    assert {path: path.read_bytes() for path in files(tmp_path)} == sound


def test_keys_change_with_everything_that_matters(tmp_path: Path) -> None:
    """Every variation adds three files (or those of the changed unit) and reuses none that are not its own."""
    target = toy_target()
    evaluator(tmp_path, target).evaluate(CONFIG, "validation")
    assert len(files(tmp_path)) == 3

    calibration = target.splits["calibration"]
    other_images = replace(calibration, images=calibration.images + 0.1, digest="")
    splits = {**target.splits, "calibration": other_images}
    changed = toy_target()
    with torch.no_grad():
        changed.graph.layer_module(4).weight.mul_(1.5)
    changed = replace(changed, graph=replace(changed.graph, digest="f" * 64))

    def added(worker: BRECQEvaluator, config: BitConfig = CONFIG) -> int:
        before = files(tmp_path)
        worker.evaluate(config, "validation")
        return len(files(tmp_path) - before)

    assert added(evaluator(tmp_path, target)) == 0
    assert added(evaluator(tmp_path, target, iterations=9)) == 3
    assert added(evaluator(tmp_path, target, fisher_floor=0.2)) == 3
    assert added(evaluator(tmp_path, target, seed=1)) == 3
    assert added(evaluator(tmp_path, replace(target, splits=splits))) == 3
    assert added(evaluator(tmp_path, changed)) == 3
    assert added(evaluator(tmp_path, replace(target, batch_size=7))) == 3
    assert added(evaluator(tmp_path, target), BitConfig((3, 3, 4, 3, 3), (4,) * 5)) == 1
    assert added(evaluator(tmp_path, target), BitConfig((3,) * 5, (4, 4, 4, 4, 5))) == 1
    # The labels of the calibration images play no part in the weights, but they are part of the split.
    assert added(evaluator(tmp_path, target)) == 0


def test_the_validation_split_does_not_matter(tmp_path: Path, reconstructions: list[str]) -> None:
    target = toy_target()
    evaluator(tmp_path, target).evaluate(CONFIG, "validation")
    other = replace(target, splits={**target.splits, "validation": target.splits["test"]})
    evaluator(tmp_path, other).evaluate(CONFIG, "validation")
    assert len(reconstructions) == 3
