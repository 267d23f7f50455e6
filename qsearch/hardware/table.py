"""The cost table: what every device model emits and everything else reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qsearch.errors import DeviceError, nearest
from qsearch.types import BIT_ALPHABET, BitConfig

#: Version of the table's meaning (metrics, units, size rule). Part of every cache key.
ENGINE_VERSION: Final = 1

#: Number of bit-widths a table has columns for.
WIDTHS: Final = len(BIT_ALPHABET)

#: Metrics of a table, in storage order. All but ``size_bytes`` are for one batch (``provenance["batch"]`` images):
#: clock cycles, cycles in which the array works, cycles in which it waits for data, bits read from and written to
#: external memory, seconds, joules, bytes of the stored network, and the joules split into datapath, on-chip memory,
#: external memory and static power.
METRICS: Final[tuple[str, ...]] = (
    "cycles",
    "compute_cycles",
    "stall_cycles",
    "dram_read_bits",
    "dram_write_bits",
    "latency_s",
    "energy_j",
    "size_bytes",
    "e_core_j",
    "e_sram_j",
    "e_dram_j",
    "e_static_j",
)

_INDEX_OF_BITS: Final[NDArray[np.int64]] = np.full(max(BIT_ALPHABET) + 1, -1, dtype=np.int64)
_INDEX_OF_BITS[list(BIT_ALPHABET)] = np.arange(WIDTHS)
_INDEX_OF_BITS.flags.writeable = False


def code(bits: ArrayLike) -> NDArray[np.int64]:
    """Returns the index of each bit-width in ``BIT_ALPHABET``.

    Args:
        bits: Integer bit-widths, any shape.

    Raises:
        DeviceError: A width has no column. (Indexing with a width that wraps around, as HAQ's released search does
            for its first layer, would silently read another width's cost.)
    """
    array = np.asarray(bits)
    if array.dtype.kind not in "iu":
        raise DeviceError(f"bit-widths must be integers, got dtype {array.dtype}", "round them before the lookup")
    inside = (array >= 0) & (array < len(_INDEX_OF_BITS))
    index = _INDEX_OF_BITS[np.where(inside, array, 0)]  # width 0 has no column either, so it maps to -1
    if (index < 0).any():
        unknown = int(array[index < 0].flat[0])
        raise DeviceError(
            f"no cost table has a column for {unknown} bits", f"known: {', '.join(map(str, BIT_ALPHABET))}"
        )
    return index


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """Cost of every layer at every pair of widths, on one device. A candidate's cost is a gather and a sum.

    Attributes:
        device: Name of the device.
        cost: float64 ``[metric, layer, w, a]`` over :data:`METRICS` and ``BIT_ALPHABET``; NaN where the pair is not
            supported. Read-only.
        supported: bool ``[layer, w, a]``. Read-only.
        layers: Layer names, in network order.
        constant: float64 ``[metric]``, added once per network (host transfers, a float head); zeros by default.
            Read-only.
        provenance: JSON-ready origin of the numbers: device name and digest, graph digest, engine version, batch,
            validation status, notes.
    """

    device: str
    cost: NDArray[np.float64]
    supported: NDArray[np.bool_]
    layers: tuple[str, ...]
    constant: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(METRICS)))
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pairs = (len(self.layers), WIDTHS, WIDTHS)
        expected = {
            "cost": ((len(METRICS), *pairs), np.float64),
            "supported": (pairs, np.bool_),
            "constant": ((len(METRICS),), np.float64),
        }
        for name, (shape, dtype) in expected.items():
            array: NDArray[Any] = np.array(
                getattr(self, name), dtype=dtype
            )  # a private copy, so that read-only is a promise
            if array.shape != shape:
                raise DeviceError(
                    f"device {self.device!r}: {name} has shape {array.shape}, not {shape}",
                    "order the axes as metric, layer, w, a over METRICS and BIT_ALPHABET",
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if (np.isnan(self.cost) != ~self.supported).any() or not np.isfinite(self.constant).all():
            raise DeviceError(
                f"device {self.device!r}: costs must be NaN exactly where a pair is unsupported, and constants finite",
                "check layer_cost and supported_pairs of the device class",
            )

    def metric(self, name: str) -> NDArray[np.float64]:
        """Returns one metric as a read-only view ``[layer, w, a]``.

        Raises:
            DeviceError: The metric does not exist.
        """
        view: NDArray[np.float64] = self.cost[self._metric_index(name)]
        return view

    def totals(self, weights: ArrayLike, activations: ArrayLike, metric: str) -> NDArray[np.float64]:
        """Returns the cost of many candidates.

        Args:
            weights: Weight widths in bits, integers ``[B, L]``.
            activations: Input-activation widths in bits, integers ``[B, L]``.
            metric: One of :data:`METRICS`.

        Returns:
            ``[B]``, in the metric's unit, the per-network constant included.

        Raises:
            DeviceError: The shapes do not fit, a width has no column, or a pair is not supported; the message names
                the layer and the pair.
        """
        index = self._metric_index(metric)
        w, a = code(weights), code(activations)
        if w.shape != a.shape or w.ndim != 2 or w.shape[1] != len(self.layers):
            raise DeviceError(
                f"device {self.device!r}: widths have shapes {w.shape} and {a.shape}, not [B, {len(self.layers)}]",
                "pass one weight and one activation width per layer",
            )
        layer = np.arange(len(self.layers))
        legal = self.supported[layer, w, a]
        if not legal.all():
            row, column = np.argwhere(~legal)[0]
            pair = BIT_ALPHABET[w[row, column]], BIT_ALPHABET[a[row, column]]
            raise DeviceError(
                f"device {self.device!r}, layer {self.layers[column]!r}: w{pair[0]} a{pair[1]} is not supported",
                f"supported there: {self._supported_text(int(column))}",
            )
        gathered: NDArray[np.float64] = self.cost[index][layer, w, a]
        total: NDArray[np.float64] = gathered.sum(axis=1) + self.constant[index]
        return total

    def total(self, config: BitConfig, metric: str) -> float:
        """Returns the cost of one candidate; see :meth:`totals`."""
        weights = np.array([config.weights], dtype=np.int64)
        return float(self.totals(weights, np.array([config.activations], dtype=np.int64), metric)[0])

    def to_json(self) -> dict[str, Any]:
        """Returns the provenance and what the table covers, JSON-ready (not the numbers)."""
        return {**self.provenance, "device": self.device, "layers": list(self.layers), "metrics": list(METRICS)}

    def _metric_index(self, name: str) -> int:
        if name not in METRICS:
            raise DeviceError(f"device {self.device!r}: a cost table has no metric {name!r}", nearest(name, METRICS))
        return METRICS.index(name)

    def _supported_text(self, layer: int) -> str:
        pairs = [f"w{BIT_ALPHABET[w]} a{BIT_ALPHABET[a]}" for w, a in np.argwhere(self.supported[layer])]
        if len(pairs) <= 6:
            return ", ".join(pairs) or "no pair at all"
        return f"{len(pairs)} pairs from {pairs[0]} to {pairs[-1]}"
