"""An evaluator with known answers, chosen duration and chosen faults, for tests and benchmarks of the orchestration.

Use it in a study file as ``fidelity: qsearch.testing.synthetic:SyntheticEvaluator``.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qsearch.evaluate.base import read_options
from qsearch.evaluate.target import Target
from qsearch.types import BitConfig, Score, digest

NAME = "qsearch.testing.synthetic:SyntheticEvaluator"

_SAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class SyntheticOptions:
    """Options of the synthetic evaluator.

    Attributes:
        seconds: Duration of one evaluation.
        busy: Compute all the time instead of sleeping.
        fault: ``none``, ``raise``, ``nan``, ``hang`` or ``kill`` (SIGKILL to the worker).
        fault_every: One of this many candidates, chosen by digest, has the fault.
        fault_directory: Where marker files are kept, so that a candidate has its fault only once; empty: every time.
    """

    seconds: float = 0.0
    busy: bool = False
    fault: str = "none"
    fault_every: int = 10
    fault_directory: str = ""


class SyntheticEvaluator:
    """Accuracy is a smooth, layer-additive function of the bits: 100 * exp(-sum of s_l * 4^-bits).

    Args:
        target: Only its layer table is read.
        options: See :class:`SyntheticOptions`.
        device: Not used.
        seed: Not used.
    """

    name = NAME
    version = 1

    def __init__(self, target: Target, options: Mapping[str, Any], device: torch.device, seed: int) -> None:
        self.options = read_options(SyntheticOptions, options, "fidelities.synthetic")
        self.layers = target.graph.layers

    def settings(self) -> dict[str, Any]:
        """What decides the score; durations and faults do not."""
        return {"formula": "100 exp(-sum s 4^-b)"}

    def evaluate(self, config: BitConfig, split: str) -> Score:
        """See :class:`qsearch.evaluate.base.Evaluator`."""
        self._spend()
        self._fail(config)
        loss = sum(
            (0.5 + (i % 5)) * (4.0**-w + 0.5 * 4.0**-a)
            for i, (w, a) in enumerate(zip(config.weights, config.activations, strict=True))
        )
        correct = round(_SAMPLES * math.exp(-loss) * (0.99 if split == "test" else 1.0))
        return Score(100.0 * correct / _SAMPLES, loss, correct, _SAMPLES)

    def _spend(self) -> None:
        if not self.options.busy:
            time.sleep(self.options.seconds)
            return
        end = time.perf_counter() + self.options.seconds
        while time.perf_counter() < end:
            sum(range(1000))

    def _fail(self, config: BitConfig) -> None:
        key = digest(config.to_json())
        if self.options.fault == "none" or int(key[:8], 16) % self.options.fault_every:
            return
        if self.options.fault_directory:
            marker = Path(self.options.fault_directory, key)
            if marker.exists():
                return
            marker.touch()
        if self.options.fault == "raise":
            raise RuntimeError("synthetic failure")
        if self.options.fault == "nan":
            Score(math.nan, 0.0, 0, _SAMPLES)  # refuses
        if self.options.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)
