"""Data sources: the embedded digits, and factories of the user."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import torch

from qsearch.data import load_datasets, read_splits
from qsearch.data.digits import digits
from qsearch.errors import DataError, PluginError, SpecError

HERE = "test_data_sources"


def three(size: int = 2) -> dict[str, list[Any]]:
    return {
        name: [(torch.full((1, 2, 2), float(i)), 0) for i in range(start, start + size)]
        for name, start in (("calibration", 0), ("validation", 10), ("test", 20))
    }


def fails() -> None:
    raise OSError("disk is gone")


def fails_with_hint() -> None:
    raise SpecError("wrong", "right it")


def as_list() -> list[int]:
    return [1]


def test_digits_are_stratified_disjoint_and_whole() -> None:
    data = load_datasets("qsearch:digits", {})
    splits = read_splits(data, {}, "digits")
    assert {name: len(split) for name, split in splits.items()} == {"calibration": 256, "validation": 450, "test": 450}
    assert len(data["train"]) == 1797 - 900
    for name in ("validation", "test", "train"):
        counts = Counter(data[name].tensors[1].tolist())
        expected = len(data[name]) / 10
        assert set(counts) == set(range(10))
        assert all(abs(count - expected) < 0.05 * expected + 4 for count in counts.values())
    images = {name: {image.numpy().tobytes() for image in part.tensors[0]} for name, part in data.items()}
    for a, b in combinations(("train", "validation", "test"), 2):
        assert not images[a] & images[b]
    assert images["calibration"] <= images["train"]
    assert splits["test"].images.shape[1:] == (1, 8, 8)
    assert (float(splits["test"].images.min()), float(splits["test"].images.max())) == (0.0, 1.0)


def test_digits_arguments() -> None:
    assert len(digits(calibration=100)["calibration"]) == 100
    a, b, c = digits(), digits(), digits(seed=1)
    assert torch.equal(a["test"].tensors[0], b["test"].tensors[0])
    assert not torch.equal(a["test"].tensors[0], c["test"].tensors[0])
    with pytest.raises(DataError, match="898"):
        load_datasets("qsearch:digits", {"calibration": 898})


def test_factory() -> None:
    datasets = load_datasets(f"{HERE}:three", {"size": 3})
    assert len(read_splits(datasets, {"test": 2}, "mine")["test"]) == 2


@pytest.mark.parametrize(
    ("source", "arguments", "kind", "match"),
    [
        (f"{HERE}:fails", {}, DataError, "failed: OSError: disk is gone"),
        (f"{HERE}:fails_with_hint", {}, SpecError, "wrong"),
        (f"{HERE}:as_list", {}, DataError, "returned a list, not a mapping of splits"),
        (f"{HERE}:three", {"sise": 3}, DataError, "unexpected keyword argument 'sise'"),
        (f"{HERE}:four", {}, PluginError, "has no 'four'"),
        (f"{HERE}:HERE", {}, DataError, "failed: TypeError"),
        ("qsearch:digit", {}, PluginError, "unknown dataset 'digit'"),
        ("no_such_module_anywhere:f", {}, PluginError, "no module named 'no_such_module_anywhere'"),
    ],
)
def test_bad_sources(source: str, arguments: dict[str, Any], kind: type, match: str) -> None:
    with pytest.raises(kind, match=match):
        load_datasets(source, arguments)
