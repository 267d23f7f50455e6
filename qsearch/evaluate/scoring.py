"""Top-1 accuracy and cross-entropy of a network on a split."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from qsearch.data import Split
from qsearch.errors import EvaluationError
from qsearch.types import Score


@torch.no_grad()
def score(
    network: Callable[[torch.Tensor], torch.Tensor], split: Split, batch_size: int, device: torch.device
) -> Score:
    """Scores a network on a split.

    Args:
        network: Maps images ``[n, channels, height, width]`` to logits ``[n, classes]``.
        split: Images and labels.
        batch_size: Images a forward pass.
        device: Where the network is.

    Raises:
        EvaluationError: A logit is NaN or infinite.
    """
    correct, loss = 0, 0.0
    batches = zip(torch.split(split.images, batch_size), torch.split(split.labels, batch_size), strict=True)
    for images, labels in batches:
        logits = network(images.to(device)).cpu()
        if not torch.isfinite(logits).all():
            raise EvaluationError(
                f"the quantized network returns NaN or infinite logits on the {split.name} split",
                "does the float network return finite logits on these images?",
            )
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    return Score(accuracy=100.0 * correct / len(split), loss=loss / len(split), correct=correct, samples=len(split))
