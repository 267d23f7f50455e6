"""Model sources: factories of the user, registered models, torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from torch import nn

from qsearch.errors import DataError, ModelError, PluginError
from qsearch.models import load_network

HERE = "test_models_resolve"
DATA = {"train": object()}
INSTANCE = nn.Linear(2, 2)
NUMBER = 3


def plain(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten()).train()


def with_data(data: Any, flag: bool = False) -> nn.Module:
    network = plain()
    network.seen = data  # type: ignore[assignment]
    return network


def with_anything(**keywords: Any) -> nn.Module:
    network = plain()
    network.seen = keywords  # type: ignore[assignment]
    return network


def fails() -> nn.Module:
    raise FileNotFoundError("weights.bin")


def fails_with_hint() -> nn.Module:
    raise DataError("no images", "find some")


def returns_state() -> Any:
    return plain().state_dict()


def test_factory_with_arguments() -> None:
    network = load_network(f"{HERE}:plain", None, {"width": 7}, DATA)
    assert network[0].out_channels == 7  # type: ignore[index, union-attr]
    assert not network.training


def test_data_goes_to_factories_that_name_it() -> None:
    assert load_network(f"{HERE}:with_data", None, {}, DATA).seen is DATA
    assert load_network(f"{HERE}:with_data", None, {"data": "mine"}, DATA).seen == "mine"
    assert load_network(f"{HERE}:with_anything", None, {"x": 1}, DATA).seen == {"x": 1}


def test_a_class_is_a_factory() -> None:
    assert isinstance(load_network("nets:Residual", None, {}, DATA), nets.Residual)


def test_checkpoint_for_a_factory(tmp_path: Path) -> None:
    trained = nets.randomize(nets.Residual(), seed=3)
    torch.save(trained.state_dict(), tmp_path / "net.pt")
    network = load_network("nets:Residual", str(tmp_path / "net.pt"), {}, DATA)
    assert torch.equal(network.get_parameter("head.fc.weight"), trained.get_parameter("head.fc.weight"))
    with pytest.raises(ModelError, match="does not exist"):
        load_network("nets:Residual", str(tmp_path / "no.pt"), {}, DATA)


@pytest.mark.parametrize(
    ("source", "arguments", "kind", "match", "hint"),
    [
        ("fails", {}, ModelError, "failed: FileNotFoundError: weights.bin", "by itself"),
        ("fails_with_hint", {}, DataError, "no images", "find some"),
        ("returns_state", {}, ModelError, r"returned a \w*[dD]ict, not a torch.nn.Module", "the network itself"),
        ("plain", {"widht": 4}, ModelError, "takes no argument 'widht'", "did you mean 'width'"),
        ("plain", {"width": "four"}, ModelError, "failed: TypeError", ""),
        ("INSTANCE", {}, ModelError, "is a Linear, not a function", "factory"),
        ("NUMBER", {}, ModelError, "is a int, not a function", "factory"),
        ("plian", {}, PluginError, "has no 'plian'", "did you mean 'plain'"),
    ],
)
def test_bad_factories(source: str, arguments: dict[str, Any], kind: type, match: str, hint: str) -> None:
    with pytest.raises(kind, match=match) as error:
        load_network(f"{HERE}:{source}", None, arguments, DATA)
    assert hint in error.value.hint


def test_registered_models() -> None:
    with pytest.raises(PluginError, match="unknown model 'digits_resnt'") as error:
        load_network("qsearch:digits_resnt", None, {}, DATA)
    assert "'digits_resnet'" in error.value.hint


def test_torchvision(tmp_path: Path) -> None:
    network = load_network("torchvision:squeezenet1_1", None, {"num_classes": 4}, DATA)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
    assert not network.training
    torch.save(network.state_dict(), tmp_path / "net.pth")
    again = load_network("torchvision:squeezenet1_1", str(tmp_path / "net.pth"), {"num_classes": 4}, DATA)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "weights", "arguments", "kind", "match", "hint"),
    [
        ("resnet81", None, {}, PluginError, "unknown model 'torchvision:resnet81'", "did you mean 'resnet"),
        ("resnet18", "IMAGENET1K_V2", {}, ModelError, "neither a file nor", "'IMAGENET1K_V1'"),
        ("resnet18", "DEFUALT", {}, ModelError, "neither a file nor", "'DEFAULT'"),
        ("resnet18", "weights/best.pth", {}, ModelError, "neither a file nor", "relative to the study file"),
        ("resnet18", None, {"num_clases": 3}, ModelError, "cannot be built", "model.arguments"),
    ],
)
def test_torchvision_errors(
    name: str, weights: str | None, arguments: dict[str, Any], kind: type, match: str, hint: str
) -> None:
    with pytest.raises(kind, match=match) as error:
        load_network(f"torchvision:{name}", weights, arguments, DATA)
    assert hint in error.value.hint


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(ModelError, match="cannot be downloaded: no route to host") as error:
        load_network("torchvision:squeezenet1_1", "DEFAULT", {}, DATA)
    assert "path of the file" in error.value.hint
