"""The bank: made once, kept by content, read by everybody."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from noise_targets import noise_target

from qsearch.data import Split
from qsearch.errors import EvaluationError
from qsearch.evaluate import Target
from qsearch.evaluate import bank as bank_module
from qsearch.evaluate.artifacts import ArtifactCache
from qsearch.evaluate.bank import Bank
from qsearch.evaluate.engine import Engine
from qsearch.quant.bank import WIDTHS, nearest
from qsearch.quant.codebook import CodebookGrid
from qsearch.quant.grids import search_activation_grid
from qsearch.quant.schemes import ActivationScheme, WeightScheme
from qsearch.testing.evaluators import toy_target

CPU = torch.device("cpu")


def bank(
    folder: Path,
    target: Target | None = None,
    weights: WeightScheme | None = None,
    activations: ActivationScheme | None = None,
    rounding: str = "gptq",
) -> Bank:
    engine = Engine(target or toy_target(), CPU, 16, 0)
    return Bank(engine, weights or WeightScheme(), activations or ActivationScheme(), rounding, ArtifactCache(folder))


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every layer that was really rounded."""
    seen: list[int] = []
    original = bank_module.closed_form

    def counted(*args: Any, **options: Any) -> Any:
        seen.append(1)
        return original(*args, **options)

    monkeypatch.setattr(bank_module, "closed_form", counted)
    return seen


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*.safetensors"))


def test_one_pass_makes_every_layer_at_every_width(tmp_path: Path, rounded: list[int]) -> None:
    first = bank(tmp_path)
    for layer in range(5):
        for bits in WIDTHS:
            found = first.weight(layer, bits)
            assert found.grid.bits == bits
            assert found.codes.shape == first._graph.layer_module(layer).weight.shape
            assert first.plan(layer, bits) is first.plan(layer, bits), "candidates share it"
    assert len(rounded) == 5
    assert len(files(tmp_path)) == 7, "five layers, the activations, and the mark that all is done"


def test_trap_20_plans_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = bank(tmp_path)
    sizes = {layer: subject.weight(layer, 2).codes.nbytes for layer in range(5)}
    monkeypatch.setattr(bank_module, "PLAN_BYTES", 2 * max(sizes.values()))
    before = {layer: subject.plan(layer, 2) for layer in range(5)}
    for bits in WIDTHS:
        for layer in range(5):
            subject.plan(layer, bits)
            held = sum(sizes[kept] for kept, _ in subject._plans)
            assert held == subject._plan_bytes <= 2 * max(sizes.values())
    again = subject.plan(0, 2)
    assert again is not before[0]
    assert torch.equal(again.weight, before[0].weight)
    assert again.token == before[0].token


def test_another_process_reads_what_was_made(tmp_path: Path, rounded: list[int]) -> None:
    first, second = bank(tmp_path), bank(tmp_path)
    for layer in range(5):
        assert torch.equal(first.weight(layer, 3).values, second.weight(layer, 3).values)
    for tensor in first._graph.tensors:
        for bits in WIDTHS:
            assert first.grid(tensor.index, bits) == second.grid(tensor.index, bits)
    assert len(rounded) == 5


def test_a_part_that_was_lost_is_made_again(tmp_path: Path, rounded: list[int]) -> None:
    before = bank(tmp_path).weight(2, 3).values
    sound = {path: path.read_bytes() for path in files(tmp_path)}
    for path in sorted(sound)[::2]:
        path.write_bytes(b"damaged") if path.stat().st_size % 2 else path.unlink()
    again = bank(tmp_path)
    for layer in range(5):
        again.weight(layer, 2)
    again.grid(0, 4)
    assert torch.equal(again.weight(2, 3).values, before)
    assert {path: path.read_bytes() for path in files(tmp_path)} == sound


def test_a_cache_that_keeps_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArtifactCache, "get", lambda self, key: None)
    with pytest.raises(EvaluationError, match="cannot be kept") as error:
        bank(tmp_path).weight(0, 2)
    assert "disk" in error.value.hint


def test_threads_make_it_once(tmp_path: Path, rounded: list[int]) -> None:
    target, found = toy_target(), []
    threads = [
        threading.Thread(target=lambda: found.append(bank(tmp_path, target).weight(1, 2).values)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rounded) == 5
    assert len(found) == 4
    assert all(torch.equal(values, found[0]) for values in found)


def test_activation_grids_are_those_of_the_calibration_images(tmp_path: Path) -> None:
    target = toy_target()
    subject = bank(tmp_path, target)
    image = target.graph.layers[0].tensor
    samples = subject._engine.fit_images
    for bits in WIDTHS:
        expected = search_activation_grid(samples, bits, False).scale
        assert subject.grid(image, bits).scale == pytest.approx(expected, rel=0.05)  # extremes count once more
    unsigned = next(t.index for t in target.graph.tensors if t.unsigned)
    grid = subject.grid(unsigned, 3)
    assert (grid.bits, grid.zero_point, grid.low, grid.high) == (3, 0, 0, 7)
    symmetric = bank(tmp_path, target, activations=ActivationScheme(grid="symmetric")).grid(image, 3)
    assert (symmetric.zero_point, symmetric.low, symmetric.high) == (0, -4, 3)


def test_every_choice_has_a_bank_of_its_own(tmp_path: Path) -> None:
    target = toy_target()
    calibration = target.splits["calibration"]
    other = Split("calibration", calibration.images + 0.1, calibration.labels)
    subjects = [
        bank(tmp_path, target),
        bank(tmp_path, target, weights=WeightScheme(grid="affine")),
        bank(tmp_path, target, weights=WeightScheme(negative_scales=False)),
        bank(tmp_path, target, activations=ActivationScheme(range="kl")),
        bank(tmp_path, target, rounding="nearest"),
        bank(tmp_path, replace(target, splits={**target.splits, "calibration": other})),
        bank(tmp_path, replace(target, graph=replace(target.graph, digest="f" * 64))),
        bank(tmp_path, replace(target, batch_size=9)),
    ]
    assert len({subject.digest for subject in subjects}) == len(subjects)
    scored = replace(target, splits={**target.splits, "validation": target.splits["test"]})
    assert bank(tmp_path, scored).digest == subjects[0].digest
    policies = [bank(tmp_path, noise_target("residual", policy)).digest for policy in ("after_relu", "both_inputs")]
    assert policies[0] != policies[1]


def test_nearest_rounding_needs_no_hessians(tmp_path: Path, rounded: list[int]) -> None:
    subject = bank(tmp_path, rounding="nearest")
    for layer in range(5):
        weight = subject._graph.layer_module(layer).weight.detach()
        assert torch.equal(subject.weight(layer, 3).values, nearest(weight, 3, WeightScheme()).values)
    assert rounded == []


def test_a_codebook_is_kept_like_any_grid(tmp_path: Path) -> None:
    first, second = (bank(tmp_path, weights=WeightScheme(grid="codebook")) for _ in range(2))
    for bits in (1, 4):
        assert isinstance(second.weight(1, bits).grid, CodebookGrid)
        assert torch.equal(first.weight(1, bits).values, second.weight(1, bits).values)
        assert len(second.weight(1, bits).values.unique()) <= 2**bits
        assert second.plan(1, bits).multiplier is None


@pytest.mark.parametrize("bits", [0, -1, 9, 16])
def test_other_widths(bits: int, tmp_path: Path) -> None:
    subject = bank(tmp_path)
    with pytest.raises(EvaluationError, match=f"layer 'stem.0': {bits}-bit weights are not evaluated") as error:
        subject.weight(0, bits)
    assert "1 to 8" in error.value.hint
    with pytest.raises(EvaluationError, match=f"{bits}-bit activations are not evaluated"):
        subject.grid(0, bits)
    assert files(tmp_path) == set(), "nothing was made for it"


def test_tokens_name_the_bank_and_the_width(tmp_path: Path) -> None:
    subject = bank(tmp_path)
    tokens = {subject.plan(1, bits).token for bits in WIDTHS}
    assert len(tokens) == len(WIDTHS)
    assert None not in tokens
