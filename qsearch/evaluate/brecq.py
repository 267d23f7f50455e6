"""Fidelity ``brecq``: the rounding of every unit is learned so that the unit's output stays (Li et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Final

from qsearch.evaluate.engine import Guarded
from qsearch.evaluate.ptq import FLOAT_BITS, PTQEvaluator, check_common, check_fits, tensor_bits
from qsearch.evaluate.sequence import Sequence, with_learned
from qsearch.quant.program import Plan
from qsearch.quant.reconstruct import PRECISIONS, Schedule
from qsearch.types import BitConfig

#: What a preset stands for; every value can be overridden by an option of its name.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "bank": {"sequential": False, "iterations": 200, "lr": 0.1, "round_weight": 0.1, "activation_lr": 0.0},
    "fast": {"sequential": True, "iterations": 200, "lr": 0.07, "round_weight": 0.03, "activation_lr": 0.0},
    "paper": {"sequential": True, "iterations": 20_000, "lr": 1e-3, "round_weight": 0.01, "activation_lr": 4e-5},
}

FISHER_MODES = ("none", "published", "corrected")


@dataclass(frozen=True, slots=True)
class BRECQOptions:
    """Options of ``fidelities.brecq``. Those that are null take the value of the preset.

    Attributes:
        preset: ``bank``: every (unit, bits) once on float inputs, candidates stitched; ``fast``: unit after unit on
            the quantized inputs of the candidate, a few hundred steps; ``paper``: the published schedule.
        iterations: Steps a unit.
        lr: Learning rate of the rounding variables; ``iterations * lr`` should be 5 or more.
        round_weight: Weight of the rounding penalty.
        activation_lr: Learning rate of activation steps; 0 leaves them as calibrated.
        warm_start: Begin at the closed-form rounding of the bank; at the float weights otherwise. Null: but for the
            preset ``paper``.
        batch_size: Calibration images a step.
        warm_up: Share of the steps without penalty.
        drop_prob: Probability that an activation element is quantized while learning (QDrop takes 0.5); 1 drops none.
        check_every: Steps between checks of the held-out loss; 0 for none before the end.
        patience: Checks without improvement after which a unit is done; 0 never stops early.
        fisher: ``none`` (squared error, the default of the published code), ``published`` or ``corrected``.
        fisher_samples: Labels drawn for each image by the corrected Fisher diagonal.
        fisher_floor: Least weight of the corrected Fisher diagonal.
        precision: ``float32``, or ``bfloat16`` for the passes of the reconstruction, faster where the processor has it.
        rounding: As for ``ptq``; of layers that are not reconstructed, and of the warm start.
        correction: As for ``ptq``; after reconstruction.
        correction_images: As for ``ptq``.
        max_cache_gb: Memory for values that candidates share, and for calibration streams (more goes to disk), GB.
    """

    preset: str = "fast"
    iterations: int | None = None
    lr: float | None = None
    round_weight: float | None = None
    activation_lr: float | None = None
    warm_start: bool | None = None
    batch_size: int = 32
    warm_up: float = 0.2
    drop_prob: float = 1.0
    check_every: int = 0
    patience: int = 0
    fisher: str = "none"
    fisher_samples: int = 4
    fisher_floor: float = 0.05
    precision: str = "float32"
    rounding: str = "gptq"
    correction: str = "mean_std"
    correction_images: int = 256
    max_cache_gb: float = 2.0

    def __post_init__(self) -> None:
        check_common(self)
        choices = (("preset", tuple(PRESETS)), ("fisher", FISHER_MODES), ("precision", tuple(PRECISIONS)))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(known)}")
        for name in ("iterations", "lr", "batch_size", "fisher_samples"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        for name in ("round_weight", "activation_lr", "check_every", "patience"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"{name} must not be negative, not {value}")
        if not 0 <= self.warm_up < 1 or not 0 <= self.fisher_floor < 1 or not 0 < self.drop_prob <= 1:
            raise ValueError("warm_up and fisher_floor lie in [0, 1), drop_prob in (0, 1]")
        if self.patience and not self.check_every:
            raise ValueError("patience counts checks of the held-out loss: give check_every, too")

    @property
    def sequential(self) -> bool:
        """Whether a unit is reconstructed on the quantized inputs of the candidate."""
        return bool(PRESETS[self.preset]["sequential"])

    @property
    def warm(self) -> bool:
        """Whether to begin at the bank's rounding."""
        return self.preset != "paper" if self.warm_start is None else self.warm_start

    def schedule(self) -> Schedule:
        """Hyper-parameters of one unit."""
        values = {
            name: PRESETS[self.preset][name] if getattr(self, name) is None else getattr(self, name)
            for name in ("iterations", "lr", "round_weight", "activation_lr")
        }
        return Schedule(
            **values,
            batch_size=self.batch_size,
            warm_up=self.warm_up,
            drop_prob=self.drop_prob,
            check_every=self.check_every,
            patience=self.patience,
            precision=self.precision,
        )


class BRECQEvaluator(PTQEvaluator):
    """Block reconstruction: AdaRound over all layers of a unit, with activations quantized.

    Units are reconstructed in network order, each on what the quantized units before it hand on; what was learned is
    kept by everything that decides it, so candidates that begin alike share it. With preset ``bank`` units see float
    inputs and are shared by all candidates. Statistics are corrected afterwards as in ``ptq``.

    Args:
        target: Network and data.
        options: ``fidelities.brecq`` of the study file.
        device: Where to compute.
        seed: Seed of batches, dropped elements and Fisher labels.
        cache: Where artifacts are kept; by default the user's.
    """

    name = "brecq"
    version = 2

    @cached_property
    def _sequence(self) -> Sequence:
        return Sequence(self.engine, self.bank, self.cache, self.options, self.seed, self.settings, self.version)

    @classmethod
    def options_type(cls) -> type[Any]:
        """Dataclass of the options."""
        return BRECQOptions

    def settings(self) -> dict[str, Any]:
        """Conventions in force."""
        return {
            **super().settings(),
            **asdict(self.options.schedule()),
            "sequential": self.options.sequential,
            "warm_start": self.options.warm,
            "units": [[unit.name, list(unit.layers)] for unit in self.target.graph.units],
        }

    def _judge(self, config: BitConfig) -> Guarded:
        """The reconstructed network, or the stitched one where held-out calibration images prefer it."""
        plan, bank = self.plan(config), super().plan(config)
        stitched = self.judge(bank)
        if all(plan.layers[i] is layer for i, layer in bank.layers.items()):  # there was nothing to be learned
            return stitched
        learned = self.judge(plan)
        return replace(learned, weights="reconstructed") if learned.error <= stitched.error else stitched

    def plan(self, config: BitConfig) -> Plan:
        """Reconstructs a configuration, or takes what is known of it."""
        check_fits(self.target, config)
        stitched = super().plan(config)
        bits_of = {t: b for t, b in tensor_bits(self.target, config).items() if b not in FLOAT_BITS}
        learned = self._sequence.learn(config, bits_of, stitched)
        return with_learned(stitched, learned, self.engine.program)
