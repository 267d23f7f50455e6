"""Fidelity ``brecq``: the rounding of every unit is reconstructed once per bit combination, then stitched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from qsearch.evaluate.artifacts import ArtifactCache
from qsearch.evaluate.ptq import PTQEvaluator, tensor_bits
from qsearch.evaluate.target import Target
from qsearch.models import Unit
from qsearch.quant import Recorder, Schedule, extract_unit, fisher_weights, reconstruct_unit
from qsearch.types import BitConfig, digest

#: Units whose weights all have this width or more keep nearest rounding: there is nothing to gain.
NEAREST_FROM_BITS = 8


@dataclass(frozen=True, slots=True)
class BRECQOptions:
    """Options of ``fidelities.brecq``.

    Attributes:
        iterations: Steps a unit.
        lr: Learning rate of the rounding variables; ``iterations * lr`` should be 5 or more.
        batch_size: Calibration images a step.
        round_weight: Weight of the rounding penalty.
        warm_up: Share of the steps without penalty.
        fisher_samples: Labels drawn for each image to estimate the Fisher diagonal.
        fisher_floor: Least Fisher weight.
    """

    iterations: int = 200
    lr: float = 0.1
    batch_size: int = 32
    round_weight: float = 0.1
    warm_up: float = 0.2
    fisher_samples: int = 4
    fisher_floor: float = 0.05

    def __post_init__(self) -> None:
        positive = ("iterations", "lr", "batch_size", "fisher_samples")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.warm_up < 1 or not 0 <= self.fisher_floor < 1 or self.round_weight < 0:
            raise ValueError("warm_up and fisher_floor lie in [0, 1), round_weight is not negative")


class BRECQEvaluator(PTQEvaluator):
    """Block reconstruction with AdaRound and Fisher-diagonal weighting (Li et al. 2021), as a bank of units.

    A unit is reconstructed on its float inputs, with its own activations quantized, independently of the other
    units; so its weights depend only on its own bits, are cached by content, and a candidate is stitched from them.

    Args:
        target: Network and data.
        options: ``fidelities.brecq`` of the study file.
        device: Where to compute.
        seed: Seed of batches and Fisher labels.
        cache: Where artifacts are kept.
    """

    name = "brecq"
    version = 1

    def __init__(
        self,
        target: Target,
        options: Mapping[str, Any],
        device: torch.device,
        seed: int,
        cache: ArtifactCache | None = None,
    ) -> None:
        super().__init__(target, options, device, seed)
        self.cache = cache or ArtifactCache()
        self._codes: dict[str, dict[int, torch.Tensor]] = {}
        self._tensors: dict[Unit, tuple[int, ...]] = {}
        self._streams: dict[str, torch.Tensor] = {}
        self._fisher: dict[str, torch.Tensor] = {}

    @classmethod
    def options_type(cls) -> type[Any]:
        """Dataclass of the options."""
        return BRECQOptions

    def settings(self) -> dict[str, Any]:
        """Conventions in force."""
        return {
            **super().settings(),
            "rounding": f"AdaRound per unit on float inputs, Fisher-diagonal; nearest from {NEAREST_FROM_BITS} bits on",
            "units": [[unit.name, list(unit.layers)] for unit in self.target.graph.units],
            **asdict(self.options),
        }

    @cached_property
    def _base_digest(self) -> str:
        """Digest of all that determines an artifact beside the unit and its bits."""
        return digest(
            {
                "model": self.target.graph.digest,
                "calibration": self.target.splits["calibration"].digest,
                "settings": {**self.settings(), "batch_size_forward": self.target.batch_size},
                "seed": self.seed,
                "version": self.version,
                "torch": torch.__version__,
                "device": self.device.type,
                "threads": torch.get_num_threads(),  # the order of sums in a backward pass depends on them
            }
        )

    def weights(self, config: BitConfig) -> dict[int, torch.Tensor]:
        """Stitched weights of a configuration, by layer index."""
        stitched = super().weights(config)
        bits_of = tensor_bits(self.target, config)
        for unit in self.target.graph.units:
            bits = {layer: config.weights[layer] for layer in unit.layers}
            if min(bits.values()) < NEAREST_FROM_BITS:
                for layer, codes in self._unit_codes(unit, bits, bits_of).items():
                    stitched[layer] = self.weight_grid(layer, bits[layer]).decode(codes)
        return stitched

    def _unit_codes(self, unit: Unit, bits: Mapping[int, int], bits_of: Mapping[int, int]) -> dict[int, torch.Tensor]:
        if unit not in self._tensors:
            self._tensors[unit] = extract_unit(self.target.graph, unit)[1]
        activation_bits = {t: bits_of[t] for t in self._tensors[unit] if t in bits_of}
        key = digest(
            {
                "base": self._base_digest,
                "unit": [unit.name, unit.entry, unit.exit],
                "weights": sorted(bits.items()),
                "activations": sorted(activation_bits.items()),
            }
        )
        if key not in self._codes:
            found = self.cache.get(key)
            if found is None:
                generator = torch.Generator().manual_seed(int(key[:15], 16))
                module, _ = extract_unit(self.target.graph, unit)
                inputs, targets = self._stream(unit.entry), self._stream(unit.exit)
                codes = reconstruct_unit(
                    self.target.graph,
                    unit,
                    module.to(self.device),
                    {layer: self.weight_grid(layer, b) for layer, b in bits.items()},
                    {t: self.activation_grid(t, b) for t, b in activation_bits.items()},
                    inputs,
                    targets,
                    self._fisher_of(unit.exit),
                    self._schedule(),
                    generator,
                )
                found = {str(layer): code.to(torch.int8).cpu() for layer, code in codes.items()}
                self.cache.put(key, found)
            self._codes[key] = {int(layer): code.to(self.device, torch.float32) for layer, code in found.items()}
        return self._codes[key]

    def _schedule(self) -> Schedule:
        o = self.options
        return Schedule(o.iterations, o.lr, o.batch_size, o.round_weight, o.warm_up)

    def _images(self) -> torch.Tensor:
        return self.target.splits["calibration"].images.to(self.device)

    def _stream(self, node: str) -> torch.Tensor:
        """Value of a node in the float network on all calibration images; all unit borders are recorded at once."""
        if node not in self._streams:
            wanted = {name for unit in self.target.graph.units for name in (unit.entry, unit.exit)}
            parts: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}
            with torch.no_grad():
                for batch in torch.split(self._images(), self.target.batch_size):
                    recorder = Recorder(self.target.graph, wanted)
                    recorder.run(batch)
                    for name in wanted:
                        parts[name].append(recorder.values[name])
            self._streams = {name: torch.cat(values) for name, values in parts.items()}
        return self._streams[node]

    def _fisher_of(self, node: str) -> torch.Tensor:
        if node not in self._fisher:
            self._fisher[node] = fisher_weights(
                self.target.graph,
                node,
                self._images(),
                samples=self.options.fisher_samples,
                floor=self.options.fisher_floor,
                batch_size=self.target.batch_size,
                generator=torch.Generator().manual_seed(self.seed),
            )
        return self._fisher[node]
