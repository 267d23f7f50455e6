"""Checkpoints: what is accepted, and what is refused with an error that says why."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qsearch.errors import ModelError
from qsearch.models import load_checkpoint


@pytest.fixture
def trained() -> nn.Module:
    return nets.randomize(nets.Residual(), seed=1)


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_state_dicts_are_loaded(tmp_path: Path, trained: nn.Module, prefix: str, wrapped: bool) -> None:
    state: dict[str, Any] = {prefix + name: value for name, value in trained.state_dict().items()}
    if wrapped:
        state = {"epoch": 7, "state_dict": state}
    torch.save(state, tmp_path / "net.pt")
    network = nets.Residual()
    assert not same(network, trained)
    load_checkpoint(network, tmp_path / "net.pt")
    assert same(network, trained)


def test_safetensors(tmp_path: Path, trained: nn.Module) -> None:
    save_file(trained.state_dict(), tmp_path / "net.safetensors")
    network = nets.Residual()
    load_checkpoint(network, tmp_path / "net.safetensors")
    assert same(network, trained)


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path, trained: nn.Module) -> None:
    state = {k: v for k, v in trained.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) < len(trained.state_dict())
    torch.save(state, tmp_path / "net.pt")
    network = nets.Residual()
    load_checkpoint(network, tmp_path / "net.pt")
    assert same(network, trained)


def test_a_network_with_a_part_called_module(tmp_path: Path) -> None:
    """The prefix is only removed where the network does not have it."""
    trained, network = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(trained.state_dict(), tmp_path / "net.pt")
    load_checkpoint(network, tmp_path / "net.pt")
    assert same(network, trained)


def refuse(path: Path, match: str, network: nn.Module | None = None) -> ModelError:
    network = network or nets.Residual()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ModelError, match=match) as error:
        load_checkpoint(network, path)
    assert error.value.hint
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    return error.value


def test_wrong_shape(tmp_path: Path, trained: nn.Module) -> None:
    state = trained.state_dict()
    state["head.fc.weight"] = torch.zeros(10, 6)
    torch.save(state, tmp_path / "net.pt")
    error = refuse(tmp_path / "net.pt", r"head\.fc\.weight: shape \(10, 6\), the network has \(3, 6\)")
    assert "number of classes" in error.hint


def test_missing_and_unknown_names(tmp_path: Path, trained: nn.Module) -> None:
    state = trained.state_dict()
    state["head.fc.wieght"] = state.pop("head.fc.weight")
    torch.save(state, tmp_path / "net.pt")
    error = refuse(tmp_path / "net.pt", r"head\.fc\.weight: missing")
    assert "head.fc.wieght: not in the network (did you mean 'head.fc.weight'?)" in error.message


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "net.pt")
    error = refuse(tmp_path / "net.pt", "missing; and [0-9]+ more")
    assert error.message.count("missing") == 4


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_truncated_files(tmp_path: Path, trained: nn.Module, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(trained.state_dict(), path)
    else:
        save_file(trained.state_dict(), path)
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        refuse(path, "net.*cannot be read|net.*is not a plain state dict")


def test_no_file(tmp_path: Path) -> None:
    refuse(tmp_path / "net.pt", "does not exist")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(3)], ids=["list", "numbers", "tensor"])
def test_not_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "net.pt")
    refuse(tmp_path / "net.pt", "does not hold a state dict")


def test_a_whole_module_is_not_loaded(tmp_path: Path, trained: nn.Module) -> None:
    torch.save(trained, tmp_path / "net.pt")
    error = refuse(tmp_path / "net.pt", "not a plain state dict")
    assert "state_dict()" in error.hint


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, legacy: bool) -> None:
    bomb = {"head.fc.weight": Bomb(tmp_path / "exploded")}
    if legacy:
        (tmp_path / "net.pt").write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, tmp_path / "net.pt")
    refuse(tmp_path / "net.pt", "not a plain state dict")
    assert not (tmp_path / "exploded").exists()
    torch.load(tmp_path / "net.pt", weights_only=False) if not legacy else pickle.loads(pickle.dumps(bomb))
    assert (tmp_path / "exploded").exists()  # the bomb was a live one
