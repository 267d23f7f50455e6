"""What one pass of the float network leaves behind."""

from __future__ import annotations

import nets
import pytest
import torch
from quantized import make, tensor_samples

from qsearch.errors import EvaluationError
from qsearch.quant import calibrate
from qsearch.quant.calibrate import collect, sample_activations
from qsearch.quant.hessian import Hessians
from qsearch.quant.program import Program


@pytest.mark.parametrize("name", ["residual", "split", "sums"])
def test_small_tensors_are_kept_whole(name: str) -> None:
    graph, x = make(name, n=7)
    program = Program(graph)
    kept = sample_activations(program, x, 3)
    everything = tensor_samples(program, x)
    assert len(kept) == len(graph.tensors)
    for tensor in graph.tensors:
        assert [part.dim() for part in kept[tensor.index]] == [1, 1, 1], "one a chunk"
        values = torch.cat([part[:-2] for part in kept[tensor.index]])
        torch.testing.assert_close(values.sort().values, everything[tensor.index].sort().values, rtol=1e-5, atol=1e-6)


def test_samples_hold_the_extremes_and_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SAMPLES_PER_TENSOR", 2000)
    graph, x = make("residual", n=50)
    program = Program(graph)
    everything = tensor_samples(program, x)
    for tensor, parts in enumerate(sample_activations(program, x, 16)):
        kept, values = torch.cat(parts), everything[tensor]
        assert len(parts) == 4
        assert len(kept) <= 4 * (2 * 500 + 2), "bounded"
        torch.testing.assert_close(kept.min(), values.min())
        torch.testing.assert_close(kept.max(), values.max())
        torch.testing.assert_close(kept.mean(), values.mean(), rtol=0.1, atol=0.05)


def test_no_column_of_a_map_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position of a map has its own values here; all of them are seen."""
    monkeypatch.setattr(calibrate, "SAMPLES_PER_TENSOR", 8 * 3 * 8 * 8 // 4)
    graph, _ = make("residual")
    position = torch.arange(64.0).reshape(1, 1, 8, 8).expand(8, 3, 8, 8) + 1000.0
    kept = torch.cat(sample_activations(Program(graph), position, 8)[0])
    assert len(kept) < 8 * 3 * 64 / 3
    assert len(kept.unique()) == 64


def test_collecting_is_sampling_and_hessians_at_once() -> None:
    graph, x = make("residual", n=9)
    program = Program(graph)
    samples, hessians = collect(program, x, 4)
    for ours, theirs in zip(samples, sample_activations(program, x, 4), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    expected = Hessians(graph, 9)
    for part in x.split(4):
        expected.on_input(0, part.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(hessians.take(0), expected.take(0))
    for layer in range(1, len(graph.layers)):
        width = graph.layer_module(layer).weight[0].numel()
        found = hessians.take(layer)
        assert found.shape == (1, width, width)
        torch.testing.assert_close(found, found.mT)
        assert float(torch.linalg.eigvalsh(found.double()).min()) > -1e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("entry", [sample_activations, collect])
def test_activations_that_are_not_finite(entry, value: float) -> None:  # type: ignore[no-untyped-def]
    graph, x = make("residual")
    x = x.clone()
    x[-1, 0, 3, 3] = value
    with pytest.raises(EvaluationError, match=f"activation '{graph.tensors[0].node}' is NaN or infinite") as error:
        entry(Program(graph), x, 4)
    assert "normalised" in error.value.hint


def test_no_gradient_is_recorded_and_nothing_changed() -> None:
    graph, x = make("residual")
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    graph.module.requires_grad_(True)
    samples, hessians = collect(Program(graph), x, 4)
    assert not any(part.requires_grad for parts in samples for part in parts)
    assert not hessians.take(3).requires_grad
    assert all(torch.equal(value, before[name]) for name, value in graph.module.state_dict().items())


def test_trap_21_calibration_takes_images_as_they_are() -> None:
    """No augmentation of its own: the images are those of the split, in its order."""
    graph, x = make("residual", n=5)
    kept = torch.cat([part[:-2] for part in sample_activations(Program(graph), x, 5)[0]])
    assert torch.equal(kept.sort().values, x.flatten().sort().values)
    assert torch.equal(nets.images(5), x)
