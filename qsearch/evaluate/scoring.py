"""Top-1 accuracy and cross-entropy of logits on a split."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from qsearch.data import Split
from qsearch.errors import EvaluationError
from qsearch.types import Score


def score_logits(chunks: Iterable[torch.Tensor], split: Split) -> Score:
    """Scores the logits of all images of a split.

    Args:
        chunks: Logits ``[n, classes]`` of the images, in order.
        split: The labels.

    Raises:
        EvaluationError: A logit is NaN or infinite.
    """
    logits = torch.cat([chunk.detach().cpu() for chunk in chunks])
    if not torch.isfinite(logits).all():
        raise EvaluationError(
            f"the quantized network returns NaN or infinite logits on the {split.name} split",
            "does the float network return finite logits on these images?",
        )
    correct = int((logits.argmax(1) == split.labels).sum())
    loss = float(F.cross_entropy(logits.double(), split.labels))
    return Score(accuracy=100.0 * correct / len(split), loss=loss, correct=correct, samples=len(split))
