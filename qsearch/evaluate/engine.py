"""Runs candidates: one forward pass over a split, and one over a few calibration images to correct it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from qsearch.data import Split
from qsearch.errors import EvaluationError, nearest
from qsearch.evaluate.measure import PhaseTimer
from qsearch.evaluate.scoring import score_logits
from qsearch.evaluate.target import Target
from qsearch.quant.correction import Correction, Moments, float_moments
from qsearch.quant.prefix import PrefixCache, choose_cuts, code_type, expand, shrink, signature
from qsearch.quant.program import Plan, Program, State, Value
from qsearch.types import Score

#: Share of the calibration images that no range, Hessian, rounding or statistic is fitted on, and at most how many.
HOLDOUT_SHARE = 0.125
HOLDOUT_MAX = 128


@dataclass(frozen=True, slots=True)
class Guarded:
    """A corrected candidate.

    Attributes:
        plan: Corrected, or as it came where the correction did not help.
        error: Logit error on held-out calibration images (:func:`logit_error`).
        uncorrected: The same without correction.
        kept: Whether the plan is the corrected one.
        bare: The candidate before correction.
        weights: Where its weights come from: ``stitched`` from the bank, or ``reconstructed``.
    """

    plan: Plan
    error: float
    uncorrected: float
    kept: bool
    bare: Plan
    weights: str = "stitched"


class Engine:
    """One network on one device with its data.

    Args:
        target: Network and data.
        device: Where to compute.
        correction_images: Calibration images that statistics are taken from, for each candidate.
        max_cache_bytes: Bound of the values that are kept for candidates that begin alike.
    """

    def __init__(self, target: Target, device: torch.device, correction_images: int, max_cache_bytes: int) -> None:
        self.target = target
        self.device = device
        self.timer = PhaseTimer(device)
        self.program = Program(target.graph)
        self.chunk = self.program.chunk_size(target.batch_size)
        self._correction_images = correction_images
        self._prefixes = PrefixCache(max_cache_bytes)
        self._cuts = choose_cuts(self.program)

    def warm_up(self) -> None:
        """Runs the float network over the calibration images that candidates are compared with."""
        _ = self.moments, self._float_holdout

    @property
    def fit_images(self) -> torch.Tensor:
        """Calibration images that may be fitted on."""
        images = self.target.splits["calibration"].images
        return images[: max(1, len(images) - self._held_out)]

    @property
    def holdout_images(self) -> torch.Tensor:
        """Calibration images that decide which variant is kept."""
        images = self.target.splits["calibration"].images
        return images[-self._held_out :]

    @property
    def _held_out(self) -> int:
        total = len(self.target.splits["calibration"])
        return max(1, min(HOLDOUT_MAX, int(HOLDOUT_SHARE * total)))

    def split(self, name: str) -> Split:
        """A split by name.

        Raises:
            EvaluationError: There is none of that name.
        """
        if name not in self.target.splits:
            raise EvaluationError(f"there is no split {name!r}", nearest(name, self.target.splits))
        return self.target.splits[name]

    @torch.no_grad()
    def score(self, plan: Plan, split: str) -> Score:
        """Scores a candidate.

        Raises:
            EvaluationError: There is no such split, or a logit is not finite.
        """
        found = self.split(split)
        with self.timer.phase("forward"):
            return score_logits(self._logits(plan, found), found)

    def _logits(self, plan: Plan, split: Split) -> Iterator[torch.Tensor]:
        """Logits chunk by chunk, from the last cut that an earlier candidate shares."""
        program = self.program
        chunks = torch.split(split.images, self.chunk)
        keys = [self._key(split.name, plan, cut) for cut in self._cuts]
        known = self._prefixes.find(keys) if None not in keys else None
        begin = -1 if known is None else known
        kept: dict[int, list[Value]] = {i: [] for i in self._kept(plan, len(split), keys) if i > begin}
        shared = None if known is None else self._prefixes.get(keys[known])
        for number, images in enumerate(chunks):
            state: State
            if known is None or shared is None:
                state, position = program.start(images.to(self.device)), 0
            else:
                state, position = {self._cuts[known]: expand(shared[number])}, program.position[self._cuts[known]] + 1
            for index, values in kept.items():
                cut = self._cuts[index]
                program.advance([state], plan, position, program.position[cut] + 1)
                position = program.position[cut] + 1
                values.append(shrink(state[cut], *self._code_range(plan, cut)))
            program.advance([state], plan, position, len(program.steps))
            yield program.result(state)
        for index, values in kept.items():
            self._prefixes.put(keys[index], values)

    def _key(self, stream: str, plan: Plan, cut: str) -> Hashable | None:
        found = signature(self.program, plan, cut)
        return None if found is None else (stream, found)

    def _kept(self, plan: Plan, images: int, keys: list[Hashable | None]) -> list[int]:
        """Cuts whose values are kept of a candidate: those that fit, together, half the bound."""
        room = self._prefixes.max_bytes // 2
        chosen = []
        for index, cut in enumerate(self._cuts):
            low, high = self._code_range(plan, cut)
            width = code_type(low, high).itemsize
            shape = self.program.steps[self.program.position[cut]].node.meta["shape"]
            size = images * width * torch.Size(shape[1:]).numel()
            if keys[index] is not None and size <= room:
                chosen.append(index)
                room -= size
        return chosen

    def _code_range(self, plan: Plan, cut: str) -> tuple[int | None, int | None]:
        """Least and largest centred code at a cut; None where its values are real."""
        for tensor in self.target.graph.tensors:
            if tensor.node == cut and (grid := plan.grids.get(tensor.index)) is not None:
                return grid.low - grid.zero_point, grid.high - grid.zero_point
        return None, None

    def chunks(self, images: torch.Tensor) -> list[State]:
        """States at the first step, chunk by chunk."""
        return [self.program.start(part.to(self.device)) for part in torch.split(images, self.chunk)]

    def _correction_set(self) -> torch.Tensor:
        return self.fit_images[: self._correction_images]

    @cached_property
    def moments(self) -> dict[int, Moments]:
        """Statistics of the float network that candidates are corrected to."""
        with self.timer.phase("calibrate"), torch.no_grad():
            return float_moments(self.program, self.chunks(self._correction_set()))

    @cached_property
    def _float_holdout(self) -> torch.Tensor:
        with torch.no_grad():
            return self._run_all(Plan(), self.chunks(self.holdout_images))

    def _run_all(self, plan: Plan, states: list[State]) -> torch.Tensor:
        self.program.advance(states, plan, 0, len(self.program.steps))
        return torch.cat([self.program.result(state) for state in states])

    @torch.no_grad()
    def corrected(self, plan: Plan, deviation: bool) -> Guarded:
        """Corrects the statistics of a candidate, unless held-out calibration images say that it does not help.

        Args:
            plan: The candidate.
            deviation: Correct deviations, too; means otherwise.
        """
        moments, reference = self.moments, self._float_holdout
        with self.timer.phase("correct"):
            fit, held_out = self.chunks(self._correction_set()), self.chunks(self.holdout_images)
            hook = Correction(self.program, plan, moments, deviation, len(fit))
            states = fit + held_out
            self.program.advance(states, plan, 0, len(self.program.steps), hook)
            logits = torch.cat([self.program.result(state) for state in held_out])
            with_it = logit_error(logits, reference)
            without = logit_error(self._run_all(plan, self.chunks(self.holdout_images)), reference)
        if with_it <= without:  # false for NaN, too
            return Guarded(plan.with_layers(hook.layers), with_it, without, True, plan)
        return Guarded(plan, without, without, False, plan)

    @torch.no_grad()
    def uncorrected(self, plan: Plan) -> Guarded:
        """Judges a candidate as it is."""
        error = logit_error(self._run_all(plan, self.chunks(self.holdout_images)), self._float_holdout)
        return Guarded(plan, error, error, False, plan)


def logit_error(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Squared error of the logits, relative to the float network's; what they have in common does not count.

    A trained network fits calibration images almost perfectly, so that its predictions there hardly show what a
    quantized one loses; the logits behind them do. (Divergences of predictions ranked variants of one candidate wrongly
    where this ranked them as test accuracy does.)

    Args:
        logits: ``[n, classes]``.
        reference: ``[n, classes]`` of the float network.
    """
    expected = reference.double() - reference.double().mean(1, keepdim=True)
    found = logits.double() - logits.double().mean(1, keepdim=True)
    return float((found - expected).square().sum() / expected.square().sum().clamp_min(1e-30))
