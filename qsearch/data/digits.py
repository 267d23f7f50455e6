"""``qsearch:digits``: the scanned handwritten digits that scikit-learn carries (1,797 images of 8 x 8 pixels)."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from qsearch.data.splits import stratified_split

#: Calibration images are taken out of the training images (their labels are not used); validation and test are apart.
SIZES = {"test": 450, "validation": 450, "train": 897}
CALIBRATION_IMAGES = 256


def digits(seed: int = 0, calibration: int = CALIBRATION_IMAGES) -> dict[str, TensorDataset]:
    """Returns stratified splits with disjoint calibration, validation and test.

    Images are float32 ``[1, 8, 8]`` in [0, 1]; calibration is a stratified part of train.

    Args:
        seed: Seed of the split.
        calibration: Number of calibration images, at most the 897 of train.
    """
    raw = load_digits()
    images = torch.from_numpy(raw.images).to(torch.float32).div(16.0).unsqueeze(1)
    labels = torch.from_numpy(raw.target).to(torch.int64)
    parts = stratified_split(raw.target.tolist(), SIZES, seed)
    train = parts["train"]
    chosen = stratified_split([int(labels[i]) for i in train], {"calibration": calibration}, seed)["calibration"]
    parts["calibration"] = [train[i] for i in chosen]
    return {name: TensorDataset(images[index], labels[index]) for name, index in parts.items()}
