"""What evaluators keep on disk: reused by others, made again when damaged, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsearch.evaluate import sequence as sequence_module
from qsearch.evaluate.artifacts import ArtifactCache
from qsearch.evaluate.brecq import BRECQEvaluator
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.testing.evaluators import toy_target
from qsearch.types import BitConfig

CPU = torch.device("cpu")
CONFIG = BitConfig((3,) * 5, (4,) * 5)

#: Five layers, the activations and a mark that all is done.
BANK_FILES = 7


def evaluator(directory: Path) -> BRECQEvaluator:
    return BRECQEvaluator(toy_target(), {"iterations": 8}, CPU, 0, ArtifactCache(directory))


def files(directory: Path) -> set[Path]:
    return set(directory.rglob("*.safetensors"))


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


def test_a_second_evaluator_reuses_files(tmp_path: Path, reconstructions: list[str]) -> None:
    first = evaluator(tmp_path)
    score = first.evaluate(CONFIG, "validation")
    assert reconstructions == ["stem.0", "conv1+conv2+shortcut", "classifier"]
    assert len(files(tmp_path)) == BANK_FILES + 3
    second = evaluator(tmp_path)
    assert second.evaluate(CONFIG, "validation") == score
    assert len(reconstructions) == 3, "the second evaluator reconstructed nothing"


def test_ptq_and_brecq_share_the_bank(tmp_path: Path) -> None:
    PTQEvaluator(toy_target(), {}, CPU, 0, ArtifactCache(tmp_path)).evaluate(CONFIG, "validation")
    assert len(files(tmp_path)) == BANK_FILES
    evaluator(tmp_path).evaluate(CONFIG, "validation")
    assert len(files(tmp_path)) == BANK_FILES + 3


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
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: str) -> None:
    score = evaluator(tmp_path).evaluate(CONFIG, "validation")
    sound = {path: path.read_bytes() for path in files(tmp_path)}
    for victim in sorted(sound)[::3]:
        damages()[damage](victim)
        assert victim.read_bytes() != sound[victim]
    again = evaluator(tmp_path)
    assert again.evaluate(CONFIG, "validation") == score
    for layer in range(5):
        again.bank.weight(layer, 2)
    left = {path: path.read_bytes() for path in files(tmp_path)}
    # The mark that the bank is done is asked for only when a part of it is missing.
    assert sum(left[path] != content for path, content in sound.items()) <= 1


def test_artifacts_are_small(tmp_path: Path) -> None:
    """Codes of one byte, for all widths together; scales and names beside them."""
    subject = evaluator(tmp_path)
    subject.evaluate(CONFIG, "validation")
    weights = sum(layer.weight_count for layer in subject.target.graph.layers)
    rows = sum(layer.out_channels for layer in subject.target.graph.layers)
    total = sum(path.stat().st_size for path in files(tmp_path))
    assert total < 9 * (weights + 8 * rows) + 12_000 * (BANK_FILES + 3)
