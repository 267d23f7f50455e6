"""Splits in memory: reading, limits, what is refused, duplicates, digests, stratified dealing."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from qsearch.data import Split, read_splits, stratified_split
from qsearch.data.splits import take
from qsearch.errors import DataError


def dataset(n: int, seed: int = 0, classes: int = 10, shape: tuple[int, ...] = (1, 2, 2)) -> TensorDataset:
    """Random images; classes take turns, as they do in many published files."""
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, torch.arange(n) % classes)


def three(**changed: Any) -> dict[str, Any]:
    return {"calibration": dataset(20, 1), "validation": dataset(30, 2), "test": dataset(40, 3), **changed}


def test_everything_is_read_in_order() -> None:
    splits = read_splits(three(), {}, "mine")
    assert list(splits) == ["calibration", "validation", "test"]
    assert [len(split) for split in splits.values()] == [20, 30, 40]
    images, labels = dataset(30, 2).tensors
    assert torch.equal(splits["validation"].images, images)
    assert torch.equal(splits["validation"].labels, labels)
    assert splits["test"].labels.dtype == torch.int64


def test_more_splits_than_needed_are_ignored() -> None:
    assert "train" not in read_splits(three(train="not even a dataset"), {}, "mine")


@pytest.mark.parametrize("limit", [1, 7, 100, 999, 1000, 5000])
def test_limits(limit: int) -> None:
    split = take(dataset(1000), "test", limit, "mine")
    assert len(split) == min(limit, 1000)
    whole = dataset(1000).tensors[0]
    positions = [int((whole == image).flatten(1).all(1).nonzero()) for image in split.images]
    assert all(a < b for a, b in pairwise(positions)), "in order, none twice"
    stretch = 1000 / len(split)
    assert all(i * stretch - 1 <= p <= (i + 1) * stretch for i, p in enumerate(positions)), "spread over all"


def test_a_limit_does_not_alias_with_the_order_of_the_classes() -> None:
    """Every tenth image of a file whose ten classes take turns would be one class."""
    counts = Counter(take(dataset(10_000), "validation", 1000, "mine").labels.tolist())
    assert set(counts) == set(range(10))
    assert min(counts.values()) > 60


def test_a_limit_repeats_itself() -> None:
    assert take(dataset(500), "a", 50, "x").digest == take(dataset(500), "b", 50, "y").digest


class Items(Dataset[Any]):
    """A dataset of arbitrary items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


GOOD = (torch.zeros(1, 2, 2), 0)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (Stream(), "not a map-style dataset"),
        (7, "a int, not a map-style dataset"),
        ([], "split 'test' is empty"),
        (Items([torch.zeros(3)]), "item 0 of split 'test' is not an"),
        (Items([3]), "item 0 of split 'test' is not an"),
        (Items([GOOD, (1, 2, 3)]), "item 1 of split 'test' is not an"),
        (Items([GOOD, FileNotFoundError("cat.png")]), "item 1 of split 'test' cannot be read: FileNotFoundError: cat"),
        (Items([(np.zeros((1, 2, 2)), 0)]), "image 0 of split 'test' is ndarray"),
        (Items([(torch.zeros(1, 2, 2, dtype=torch.uint8), 0)]), r"image 0 of split 'test' is torch.uint8 \(1, 2, 2\)"),
        (Items([(torch.zeros(2, 2), 0)]), r"is torch.float32 \(2, 2\); a float tensor C x H x W is expected"),
        (Items([GOOD, (torch.zeros(1, 3, 2), 0)]), r"image 1 of split 'test' has shape \(1, 3, 2\), the first \(1, 2"),
        (Items([GOOD, (torch.full((1, 2, 2), torch.nan), 0)]), "NaN or infinite"),
        (Items([(torch.full((1, 2, 2), 1e300, dtype=torch.float64), 0)]), "NaN or infinite"),
        (Items([(GOOD[0], "cat")]), "label 0 of split 'test' is 'cat', not an integer"),
        (Items([(GOOD[0], 1.5)]), "label 0 of split 'test' is 1.5, not an integer"),
        (Items([(GOOD[0], torch.zeros(3))]), "not an integer"),
        (Items([(GOOD[0], -1)]), "label -1"),
        (dataset(40, 3, shape=(3, 2, 2)), "splits differ in image shape"),
    ],
)
def test_malformed_splits(wrong: Any, match: str) -> None:
    with pytest.raises(DataError, match=match) as error:
        read_splits(three(test=wrong), {}, "mine")
    assert error.value.message.startswith("mine")
    assert error.value.hint


@pytest.mark.parametrize("label", [3, np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor([3]), True])
def test_labels_may_be_any_integer(label: Any) -> None:
    labels = take(Items([(torch.zeros(1, 2, 2), label)]), "test", None, "mine").labels
    assert labels.tolist() == [int(label)]


def test_images_are_float32_without_gradient() -> None:
    image = torch.ones(1, 2, 2, dtype=torch.float16, requires_grad=True)
    split = take(Items([(image, 0)]), "test", None, "mine")
    assert split.images.dtype == torch.float32
    assert not split.images.requires_grad


def test_missing_splits() -> None:
    with pytest.raises(DataError, match="has no split 'validation', 'test'; it has: 'calibration', 'val'"):
        read_splits({"calibration": dataset(2), "val": dataset(2)}, {}, "mine")
    with pytest.raises(DataError, match="returned a list, not a mapping"):
        read_splits([dataset(2)], {}, "mine")  # type: ignore[arg-type]


def joined(a: TensorDataset, b: TensorDataset, shared: int) -> TensorDataset:
    """Dataset ``b`` with its first images taken from ``a``."""
    images = b.tensors[0].clone()
    images[:shared] = a.tensors[0][:shared]
    return TensorDataset(images, b.tensors[1])


def test_a_few_shared_images_are_only_a_warning() -> None:
    validation, test = dataset(300, 2), dataset(400, 3)
    with pytest.warns(UserWarning, match="'test' and 'validation' share 3 identical images"):
        read_splits(three(validation=validation, test=joined(validation, test, 3)), {}, "mine")
    with pytest.raises(DataError, match="share 4 identical images"):
        read_splits(three(validation=validation, test=joined(validation, test, 4)), {}, "mine")


def test_duplicates_inside_a_split_are_nobodys_business() -> None:
    images = torch.zeros(5, 1, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_splits(three(test=TensorDataset(images, torch.zeros(5).long())), {}, "mine")


def test_calibration_images_may_not_be_scored() -> None:
    same = dataset(20, 1)
    with pytest.raises(DataError, match="'calibration' and 'test' share 20"):
        read_splits(three(test=same), {}, "mine")


def test_digest_sees_every_pixel_label_and_the_order() -> None:
    images, labels = dataset(12).tensors
    digest = Split("a", images, labels).digest
    assert Split("b", images.clone(), labels.clone()).digest == digest
    changed = images.clone()
    changed[3, 0, 1, 1] += 1e-6
    relabelled = labels.clone()
    relabelled[5] += 1
    others: list[Callable[[], Split]] = [
        lambda: Split("a", changed, labels),
        lambda: Split("a", images, relabelled),
        lambda: Split("a", images.flip(0), labels.flip(0)),
        lambda: Split("a", images.reshape(12, 4, 1, 1), labels),
        lambda: Split("a", images[:-1], labels[:-1]),
    ]
    assert len({digest, *(make().digest for make in others)}) == 1 + len(others)


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    shares=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_stratified_split_laws(counts: list[int], shares: list[float], seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    total = len(labels)
    scale = sum(shares) or 1.0
    sizes = {f"s{i}": int(total * share / scale) for i, share in enumerate(shares)}
    splits = stratified_split(labels, sizes, seed)
    assert splits == stratified_split(labels, sizes, seed)
    assert {name: len(indices) for name, indices in splits.items()} == sizes
    chosen = [index for indices in splits.values() for index in indices]
    assert len(chosen) == len(set(chosen)), "disjoint"
    assert set(chosen) <= set(range(total))
    for name, indices in splits.items():
        assert indices == sorted(indices)
        found = Counter(labels[index] for index in indices)
        for label, count in enumerate(counts):
            # Each end of a slice is off by less than one image, and by the class's share of the others' error.
            slack = 2 * (1 + len(counts) * count / total)
            assert abs(found[label] - sizes[name] * count / total) <= slack


def test_stratified_split_is_shuffled() -> None:
    labels = [0] * 100
    assert stratified_split(labels, {"a": 50}, 0) != stratified_split(labels, {"a": 50}, 1)
    assert stratified_split(labels, {"a": 50}, 0)["a"] != list(range(50))


def test_too_large_splits() -> None:
    with pytest.raises(DataError, match="splits of 11 images were asked for, but there are 10"):
        stratified_split([0] * 10, {"a": 5, "b": 6}, 0)
