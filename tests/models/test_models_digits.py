"""``qsearch:digits_resnet``: accurate, cached, and the same on every machine state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from qsearch.data.digits import digits
from qsearch.errors import DataError
from qsearch.models import build_graph, load_network
from qsearch.models import digits_resnet as module
from qsearch.models.train import train_classifier


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every training."""
    seen: list[int] = []

    def counted(*args: object, **keywords: object) -> None:
        seen.append(1)
        train_classifier(*args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train_classifier", counted)
    return seen


def state(network: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in network.state_dict().values())


def test_accuracy_of_the_default() -> None:
    data = digits()
    network = load_network("qsearch:digits_resnet", None, {}, data)
    images, labels = data["test"].tensors
    with torch.no_grad():
        accuracy = (network(images).argmax(1) == labels).double().mean()
    assert accuracy >= 0.97
    graph = build_graph(network, images[:2])
    assert len(graph.layers) >= 8
    assert any(layer.is_depthwise for layer in graph.layers)


def test_training_is_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    monkeypatch.setenv("QSEARCH_CACHE_DIR", str(tmp_path))
    data = digits()
    first = module.digits_resnet(data, epochs=1, width=4)
    again = module.digits_resnet(data, epochs=1, width=4)
    assert len(calls) == 1
    assert state(first) == state(again)
    assert not first.training
    assert not again.training
    module.digits_resnet(data, epochs=1, width=4, seed=1)
    module.digits_resnet(digits(seed=1), epochs=1, width=4)
    assert len(calls) == 3
    assert len(list((tmp_path / "models").iterdir())) == 3


@pytest.mark.parametrize("damage", ["empty", "half", "one tensor", "other shapes"])
def test_a_damaged_cache_entry_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("QSEARCH_CACHE_DIR", str(tmp_path))
    data = digits()
    sound = state(module.digits_resnet(data, epochs=1, width=4))
    (path,) = (tmp_path / "models").iterdir()
    content = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "half":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "one tensor":
        path.write_bytes(module.save({"stem.0.weight": torch.ones(4, 1, 3, 3)}))
    else:
        path.write_bytes(module.save(module.DigitsResNet(width=5).state_dict()))
    assert state(module.digits_resnet(data, epochs=1, width=4)) == sound
    assert len(calls) == 2
    assert "damaged" in caplog.text
    assert path.read_bytes() == content


def test_training_is_bit_identical_for_any_number_of_threads() -> None:
    images, labels = digits()["train"].tensors
    states = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            network = module.DigitsResNet(width=4)
            torch.manual_seed(threads)  # the global generator plays no part
            train_classifier(network, images, labels, epochs=1, seed=5)
            assert torch.get_num_threads() == threads
            states.append(state(network))
    finally:
        torch.set_num_threads(before)
    assert states[0] == states[1]


def test_threads_come_back_after_a_failure() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        train_classifier(module.DigitsResNet(channels=3), torch.zeros(64, 1, 8, 8), torch.zeros(64).long(), epochs=1)
    assert torch.get_num_threads() == before


def test_the_global_generator_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSEARCH_CACHE_DIR", str(tmp_path))
    data = {"train": TensorDataset(torch.rand(70, 1, 8, 8), torch.arange(70) % 3)}
    before = torch.get_rng_state()
    network = module.digits_resnet(data, epochs=1, width=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert network.classifier.out_features == 3  # type: ignore[union-attr]


def test_data_without_training_images() -> None:
    with pytest.raises(DataError, match="no 'train' split"):
        load_network("qsearch:digits_resnet", None, {}, {"test": digits()["test"]})
