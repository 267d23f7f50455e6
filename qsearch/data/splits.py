"""The splits of a study as tensors: calibration (labels unused), validation (search sees it), test (read once)."""

from __future__ import annotations

import hashlib
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from qsearch.errors import DataError

REQUIRED = ("calibration", "validation", "test")

#: Identical images in two splits beyond this share of the smaller split are an error, fewer only a warning: some
#: published datasets hold a few duplicates of their own.
MAX_SHARED_IMAGES = 0.01

ImageDataset = Dataset[tuple[torch.Tensor, int]]


@dataclass(frozen=True)
class Split:
    """One split in memory.

    Attributes:
        name: ``calibration``, ``validation`` or ``test``.
        images: ``[n, channels, height, width]`` float32.
        labels: ``[n]`` int64.
        digest: sha256 over images and labels.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    digest: str = field(default="")

    def __post_init__(self) -> None:
        if not self.digest:
            sha = hashlib.sha256(f"{tuple(self.images.shape)}".encode())
            sha.update(self.images.contiguous().numpy().tobytes())
            sha.update(self.labels.contiguous().numpy().tobytes())
            object.__setattr__(self, "digest", sha.hexdigest())

    def __len__(self) -> int:
        return len(self.images)


def take(dataset: Any, name: str, limit: int | None, source: str) -> Split:
    """Reads a map-style dataset of (float tensor C x H x W, int label) into memory.

    Args:
        dataset: Has ``__len__`` and ``__getitem__``.
        name: Split name, for messages.
        limit: Take at most this many images, spread over the dataset: one at random (but always the same) of each
            of ``limit`` stretches. Equal strides would pick one class of a dataset whose classes take turns.
        source: Where the data comes from, for messages.

    Raises:
        DataError: Not such a dataset, empty, of changing shape, not finite, or with labels that are not integers.
    """
    try:
        size = len(dataset)
    except TypeError as error:
        raise DataError(
            f"{source}: split {name!r} is a {type(dataset).__name__}, not a map-style dataset",
            "return an object with __len__ and __getitem__, such as torch.utils.data.TensorDataset",
        ) from error
    if size == 0:
        raise DataError(f"{source}: split {name!r} is empty", "give every split at least one image")
    chosen = range(size)
    if limit is not None and limit < size:
        ends = np.linspace(0, size, limit + 1).astype(int)
        chosen = np.random.default_rng(0).integers(ends[:-1], ends[1:]).tolist()
    images: list[torch.Tensor] = []
    labels: list[int] = []
    for index in chosen:
        try:
            item = dataset[index]
        except Exception as error:
            raise DataError(
                f"{source}: item {index} of split {name!r} cannot be read: {type(error).__name__}: {error}",
                "index the dataset by itself to see why",
            ) from error
        try:
            image, label = item
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{source}: item {index} of split {name!r} is not an (image, label) pair: {error}",
                "each item must be (float tensor C x H x W, int label)",
            ) from error
        if not isinstance(image, torch.Tensor) or not image.is_floating_point() or image.dim() != 3:
            got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, torch.Tensor) else type(image).__name__
            raise DataError(
                f"{source}: image {index} of split {name!r} is {got}; a float tensor C x H x W is expected",
                "convert and normalise in the dataset (for example with ToTensor and Normalize)",
            )
        if images and image.shape != images[0].shape:
            shapes = f"{tuple(image.shape)}, the first {tuple(images[0].shape)}"
            raise DataError(
                f"{source}: image {index} of split {name!r} has shape {shapes}",
                "resize or crop all images to one shape",
            )
        try:
            labels.append(operator.index(label))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{source}: label {index} of split {name!r} is {label!r}, not an integer", "use class indices from 0"
            ) from error
        images.append(image.detach().to("cpu", torch.float32))
    stacked = torch.stack(images)
    if not torch.isfinite(stacked).all():
        raise DataError(f"{source}: split {name!r} holds NaN or infinite pixels", "check the normalisation")
    if min(labels) < 0:
        raise DataError(f"{source}: split {name!r} holds label {min(labels)}", "class indices start at 0")
    return Split(name, stacked, torch.tensor(labels))


def read_splits(datasets: Mapping[str, Any], limits: Mapping[str, int | None], source: str) -> dict[str, Split]:
    """Reads calibration, validation and test into memory and checks that they are disjoint and of one shape.

    Args:
        datasets: What the data factory returned.
        limits: Most images to take, by split; None or absent means all.
        source: Where the data comes from, for messages.

    Raises:
        DataError: A split is missing or malformed, shapes differ, or splits share images.
    """
    if not isinstance(datasets, Mapping):
        raise DataError(
            f"{source} returned a {type(datasets).__name__}, not a mapping of splits",
            "return {'calibration': ..., 'validation': ..., 'test': ...}",
        )
    missing = [name for name in REQUIRED if name not in datasets]
    if missing:
        present = ", ".join(map(repr, datasets)) or "none"
        raise DataError(
            f"{source} has no split {', '.join(map(repr, missing))}; it has: {present}",
            "a data factory returns calibration, validation and test, and optionally train",
        )
    splits = {name: take(datasets[name], name, limits.get(name), source) for name in REQUIRED}
    shapes = {name: tuple(split.images.shape[1:]) for name, split in splits.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{source}: the splits differ in image shape: {shapes}", "use one transform for all splits")
    _check_disjoint(splits, source)
    return splits


def _check_disjoint(splits: Mapping[str, Split], source: str) -> None:
    hashes = {
        name: {hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in split.images}
        for name, split in splits.items()
    }
    names = sorted(hashes)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = len(hashes[first] & hashes[second])
            if shared == 0:
                continue
            message = f"{source}: splits {first!r} and {second!r} share {shared} identical images"
            if shared > math.ceil(MAX_SHARED_IMAGES * min(len(hashes[first]), len(hashes[second]))):
                raise DataError(message, "the three splits must be disjoint, or the results mean nothing")
            warnings.warn(message, stacklevel=2)


def stratified_split(labels: Sequence[int], sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Deals indices into disjoint splits, each with every class in (nearly) the same proportion.

    Args:
        labels: Class of each item.
        sizes: Items wanted in each split; together at most ``len(labels)``.
        seed: Seed of the shuffle.

    Returns:
        Sorted indices by split name.

    Raises:
        DataError: More items are asked for than there are.
    """
    if sum(sizes.values()) > len(labels):
        raise DataError(
            f"splits of {sum(sizes.values())} images were asked for, but there are {len(labels)}", "make them smaller"
        )
    classes = np.asarray(labels)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(classes))
    # Sorting by the rank inside the class interleaves the classes, so that any slice is stratified.
    rank = np.empty(len(classes))
    for label in np.unique(classes):
        members = order[classes[order] == label]
        rank[members] = (np.arange(len(members)) + rng.random()) / len(members)
    interleaved = np.argsort(rank, kind="stable")
    splits, start = {}, 0
    for name, size in sizes.items():
        splits[name] = sorted(interleaved[start : start + size].tolist())
        start += size
    return splits
