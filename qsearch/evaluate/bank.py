"""The bank of a target on disk: codes of every (layer, bits) and grids of every (tensor, bits), made once for all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from qsearch.errors import EvaluationError
from qsearch.evaluate.artifacts import ArtifactCache
from qsearch.evaluate.engine import Engine
from qsearch.quant.bank import WIDTHS, QuantizedWeight, closed_form, nearest, unpack
from qsearch.quant.calibrate import collect, sample_activations
from qsearch.quant.grids import ActivationGrid, search_activation_grid
from qsearch.quant.hessian import Hessians
from qsearch.quant.program import LayerPlan
from qsearch.quant.schemes import ActivationScheme, WeightScheme
from qsearch.types import digest

#: Bound of the weights, unpacked, that candidates share.
PLAN_BYTES = 1 << 30

#: Raised whenever what is in a bank changes.
BANK_VERSION = 1


class Bank:
    """Quantized weights and activation grids of one network, by width.

    Args:
        engine: The network and its calibration images.
        weights: How weights are quantized.
        activations: How activations are quantized.
        rounding: ``gptq`` (closed form, with Hessians) or ``nearest``.
        cache: Where artifacts are kept.
    """

    def __init__(
        self,
        engine: Engine,
        weights: WeightScheme,
        activations: ActivationScheme,
        rounding: str,
        cache: ArtifactCache,
    ) -> None:
        self._engine = engine
        self._graph = engine.target.graph
        self._weight_scheme = weights
        self._activation_scheme = activations
        self._rounding = rounding
        self._cache = cache
        self._plans: OrderedDict[tuple[int, int], LayerPlan] = OrderedDict()
        self._plan_bytes = 0
        self._grids: dict[tuple[int, int], ActivationGrid] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Conventions in force."""
        return {
            "weights": asdict(self._weight_scheme),
            "activations": asdict(self._activation_scheme),
            "rounding": self._rounding,
        }

    @property
    def digest(self) -> str:
        """Digest of everything that decides the content."""
        return digest(
            {
                **self.settings,
                "version": BANK_VERSION,
                "model": self._graph.digest,
                "layers": [[layer.name, layer.tensor] for layer in self._graph.layers],
                "tensors": [[t.node, t.unsigned] for t in self._graph.tensors],
                "calibration": self._engine.target.splits["calibration"].digest,
                "chunk": self._engine.chunk,
                # Sums in another order may flip a rounding.
                "torch": torch.__version__,
                "device": self._engine.device.type,
                "threads": torch.get_num_threads(),
            }
        )

    def weight(self, layer: int, bits: int) -> QuantizedWeight:
        """Weights of a layer at a width.

        Raises:
            EvaluationError: There is no such width.
        """
        if bits not in WIDTHS:
            raise EvaluationError(
                f"layer {self._graph.layers[layer].name!r}: {bits}-bit weights are not evaluated",
                "widths from 1 to 8 bits are",
            )
        return unpack(self._artifact(f"layer {layer}"), str(bits), self._engine.device)

    def plan(self, layer: int, bits: int) -> LayerPlan:
        """How a layer computes at a width; shared by all candidates."""
        if (layer, bits) in self._plans:
            self._plans.move_to_end((layer, bits))
        else:
            plan = self.weight(layer, bits).plan(self._engine.program.float_layer(layer).bias)
            self._plans[layer, bits] = replace(plan, token=f"bank {bits}")
            self._plan_bytes += plan.weight.nbytes
            self._make_room()
        return self._plans[layer, bits]

    def _make_room(self) -> None:
        """Drops the plans not used for longest; candidates at work hold on to theirs."""
        while self._plan_bytes > PLAN_BYTES and len(self._plans) > 1:
            _, gone = self._plans.popitem(last=False)
            self._plan_bytes -= gone.weight.nbytes

    def grid(self, tensor: int, bits: int) -> ActivationGrid:
        """Grid of an activation tensor at a width.

        Raises:
            EvaluationError: There is no such width.
        """
        if bits not in WIDTHS:
            raise EvaluationError(f"{bits}-bit activations are not evaluated", "widths from 1 to 8 bits are")
        if self._grids is None:
            table = self._artifact("activations")["grids"]
            self._grids = {
                (t, b): ActivationGrid(b, float(row[0]), int(row[1]), int(row[2]), int(row[3]))
                for t, rows in enumerate(table)
                for b, row in zip(WIDTHS, rows.tolist(), strict=True)
            }
        return self._grids[tensor, bits]

    def _artifact(self, part: str) -> Mapping[str, torch.Tensor]:
        """One part of the bank; all of it is made when that one is missing."""
        found = self._cache.get(self._key(part))
        if found is None:
            # One worker of a machine makes the bank while the others wait for it.
            self._cache.get_or_make(self._key("whole"), self._make)
            found = self._cache.get(self._key(part))
        if found is None:  # removed or damaged since
            self._make()
            found = self._cache.get(self._key(part))
        if found is None:
            raise EvaluationError("the bank of quantized weights cannot be kept", "is the disk of the cache full?")
        return found

    def _key(self, part: str) -> str:
        return digest({"bank": self.digest, "part": part})

    @torch.no_grad()
    def _make(self) -> dict[str, torch.Tensor]:
        engine = self._engine
        with engine.timer.phase("calibrate"):
            samples, hessians = self._collect()
            grids = [self._tensor_grids(t, values) for t, values in enumerate(samples)]
        self._cache.put(self._key("activations"), {"grids": torch.tensor(grids, dtype=torch.float64)})
        with engine.timer.phase("round"):
            for index in range(len(self._graph.layers)):
                packed: dict[str, torch.Tensor] = {}
                for bits, weight in self._rounded(index, hessians).items():
                    packed.update(weight.pack(str(bits)))
                self._cache.put(self._key(f"layer {index}"), packed)
        return {"done": torch.ones(1)}

    def _collect(self) -> tuple[list[list[torch.Tensor]], Hessians | None]:
        program, images, chunk = self._engine.program, self._engine.fit_images, self._engine.chunk
        if self._rounding == "nearest":
            return sample_activations(program, images, chunk), None
        return collect(program, images, chunk)

    def _tensor_grids(self, tensor: int, samples: list[torch.Tensor]) -> list[list[float]]:
        unsigned = self._graph.tensors[tensor].unsigned
        grids = [search_activation_grid(samples, bits, unsigned, self._activation_scheme) for bits in WIDTHS]
        return [[grid.scale, grid.zero_point, grid.low, grid.high] for grid in grids]

    def _rounded(self, layer: int, hessians: Hessians | None) -> dict[int, QuantizedWeight]:
        weight = self._graph.layer_module(layer).weight.detach()
        if hessians is None:
            return {bits: nearest(weight, bits, self._weight_scheme) for bits in WIDTHS}
        groups = self._graph.layers[layer].groups
        return closed_form(weight, hessians.take(layer), groups, self._weight_scheme)
