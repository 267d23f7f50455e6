"""What a device is: the protocol, and the base class that turns per-layer closed forms into a cost table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qsearch.errors import DeviceError, nearest
from qsearch.hardware.size import layer_size_bytes
from qsearch.hardware.table import ENGINE_VERSION, METRICS, WIDTHS, CostTable
from qsearch.types import BIT_ALPHABET, LayerShape, digest

#: ``[w, a]`` grids of widths in bits over ``BIT_ALPHABET``, in table order.
W_GRID, A_GRID = np.meshgrid(np.array(BIT_ALPHABET), np.array(BIT_ALPHABET), indexing="ij")
for _grid in (W_GRID, A_GRID):
    _grid.flags.writeable = False

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
DatapathBits = Literal[1, 2, 3, 4, 5, 6, 7, 8]


@runtime_checkable
class Device(Protocol):
    """An accelerator: it says which pairs of widths it runs and what each layer costs.

    A plug-in (entry point in the group ``qsearch.devices``) is a callable ``(name, description) -> Device``.
    """

    @property
    def name(self) -> str:
        """The user's name for it; appears in ``latency@NAME``."""

    @property
    def notes(self) -> str:
        """Where its parameters come from, for reports."""

    @property
    def validation(self) -> str:
        """What its numbers were checked against, or ``"unvalidated"``; printed with every result."""

    @property
    def batch(self) -> int:
        """Images per run: latency and energy in the table are for this many."""

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything that changes its numbers: equal digests mean equal tables."""

    def supported_pairs(self, layer: LayerShape) -> NDArray[np.bool_]:
        """Returns bool ``[w, a]`` over ``BIT_ALPHABET``: the pairs it runs ``layer`` at."""

    def build(self, layers: Sequence[LayerShape]) -> CostTable:
        """Returns the cost table of a network; deterministic, and additive over layers."""


class Description(BaseModel):
    """Base of the parts of a device description: immutable, no unknown fields, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Precision(Description):
    """The widths a datapath takes, each operand on its own."""

    weights: tuple[DatapathBits, ...] = Field(default=(1, 2, 3, 4, 5, 6, 7, 8), min_length=1, strict=False)
    activations: tuple[DatapathBits, ...] = Field(default=(1, 2, 3, 4, 5, 6, 7, 8), min_length=1, strict=False)


class DeviceDescription(Description):
    """Fields every described device has.

    Attributes:
        notes: Origin of the parameters.
        validation: What the numbers were checked against.
        freq_hz: Clock, Hz.
        batch: Images per run.
        static_mw: Static power in mW, drawn for as long as the batch takes.
        precision: Supported widths.
    """

    notes: str = ""
    validation: str = "unvalidated"
    freq_hz: PositiveFloat
    batch: PositiveInt = 1
    static_mw: NonNegativeFloat = 0.0
    precision: Precision = Precision()


DescriptionT = TypeVar("DescriptionT", bound=DeviceDescription)


def parse_description(schema: type[DescriptionT], name: str, description: Mapping[str, Any]) -> DescriptionT:
    """Checks a description against the fields of a device class.

    Args:
        schema: The fields.
        name: Name of the device, for the error.
        description: The mapping a user wrote.

    Raises:
        DeviceError: A field is unknown, missing, of the wrong type or out of range; names the device and each field.
    """
    try:
        return schema.model_validate(dict(description))
    except ValidationError as error:
        problems, hints = [], []
        for item in error.errors():
            path = [str(part) for part in item["loc"]]
            known = _fields_at(schema, path[:-1])
            where = f"field {'.'.join(path)!r}"
            if item["type"] == "extra_forbidden":
                problems.append(f"{where} is unknown")
                hints.append(nearest(path[-1], known))
            elif item["type"] == "missing":
                problems.append(f"{where} is missing")
                hints.append(f"add {path[-1]!r} to the description, or start from a preset")
            else:
                problems.append(f"{where} is {item['input']!r}: {item['msg'].lower()}")
                hints.append(f"correct {'.'.join(path)!r}")
        raise DeviceError(f"device {name!r}: {'; '.join(problems)}", "; ".join(dict.fromkeys(hints))) from None


def _fields_at(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the fields of the section that ``path`` leads to; empty when it leads to a plain value."""
    for part in path:
        section = schema.model_fields[part].annotation if part in schema.model_fields else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
        schema = section
    return list(schema.model_fields)


def graph_digest(layers: Sequence[LayerShape]) -> str:
    """Returns the sha256 (hex) of the layer table that a cost table was built for."""
    return digest([layer.to_json() for layer in layers])


class AnalyticDevice(ABC, Generic[DescriptionT]):
    """A device whose layers cost what a closed form says, independently of each other.

    A subclass names its fields in :attr:`schema` and implements :meth:`layer_cost`; the derived metrics (stalls,
    latency, energies' sum, static energy, size) are filled in here, the same way for all.

    Args:
        name: The user's name for it.
        description: Its fields, see :attr:`schema`.

    Raises:
        DeviceError: The description is wrong.
    """

    #: The fields of a description.
    schema: ClassVar[type[DeviceDescription]]
    #: Version of the closed forms; a change of numbers must change it, or caches would keep the old ones.
    version: ClassVar[int] = 1

    #: What :meth:`layer_cost` returns.
    LAYER_METRICS: ClassVar[tuple[str, ...]] = (
        "cycles",
        "compute_cycles",
        "dram_read_bits",
        "dram_write_bits",
        "e_core_j",
        "e_sram_j",
        "e_dram_j",
    )

    def __init__(self, name: str, description: Mapping[str, Any]) -> None:
        self._name = name
        self.description: DescriptionT = parse_description(self.schema, name, description)  # type: ignore[assignment]

    @property
    def name(self) -> str:
        """The user's name for it."""
        return self._name

    @property
    def notes(self) -> str:
        """Origin of the parameters."""
        return self.description.notes

    @property
    def validation(self) -> str:
        """What the numbers were checked against."""
        return self.description.validation

    @property
    def batch(self) -> int:
        """Images per run."""
        return self.description.batch

    @property
    def digest(self) -> str:
        """sha256 (hex) of the class, its version and the parameters; the name and the texts do not count."""
        fields = self.description.model_dump(mode="json", exclude={"notes", "validation"})
        origin = f"{type(self).__module__}:{type(self).__qualname__}"
        return digest({"class": origin, "version": self.version, "description": fields})

    def supported_pairs(self, layer: LayerShape) -> NDArray[np.bool_]:
        """Returns bool ``[w, a]``; by default every layer takes all widths of ``precision``."""
        precision = self.description.precision
        supported: NDArray[np.bool_] = np.isin(W_GRID, precision.weights) & np.isin(A_GRID, precision.activations)
        return supported

    @abstractmethod
    def layer_cost(
        self, layer: LayerShape, w: NDArray[np.int64], a: NDArray[np.int64]
    ) -> Mapping[str, NDArray[np.int64] | NDArray[np.float64]]:
        """Returns the cost of one batch of one layer at many pairs of widths.

        Args:
            layer: The layer.
            w: Weight widths in bits, any shape.
            a: Activation widths in bits, the same shape.

        Returns:
            :attr:`LAYER_METRICS`, each of that shape: cycles (stalls included), compute cycles, bits, joules.
        """

    def build(self, layers: Sequence[LayerShape]) -> CostTable:
        """Returns the cost table of a network.

        Raises:
            DeviceError: There is no layer.
        """
        if not layers:
            raise DeviceError(f"device {self.name!r}: the network has no quantizable layer", "check the skip list")
        cost = np.full((len(METRICS), len(layers), WIDTHS, WIDTHS), np.nan)
        supported = np.stack([self.supported_pairs(layer) for layer in layers])
        for index, layer in enumerate(layers):
            legal = supported[index]
            for metric, values in self._all_metrics(layer).items():
                cost[METRICS.index(metric), index][legal] = values[legal]
        return CostTable(
            device=self.name,
            cost=cost,
            supported=supported,
            layers=tuple(layer.name for layer in layers),
            provenance={
                "device": self.name,
                "device_digest": self.digest,
                "graph_digest": graph_digest(layers),
                "engine_version": ENGINE_VERSION,
                "batch": self.batch,
                "validation": self.validation,
                "notes": self.notes,
            },
        )

    def _all_metrics(self, layer: LayerShape) -> dict[str, NDArray[np.float64]]:
        given = self.layer_cost(layer, W_GRID, A_GRID)
        cost = {name: np.asarray(given[name], dtype=np.float64) for name in self.LAYER_METRICS}
        cost["stall_cycles"] = cost["cycles"] - cost["compute_cycles"]
        cost["latency_s"] = cost["cycles"] / self.description.freq_hz
        cost["e_static_j"] = self.description.static_mw * 1e-3 * cost["latency_s"]
        cost["energy_j"] = cost["e_core_j"] + cost["e_sram_j"] + cost["e_dram_j"] + cost["e_static_j"]
        sizes = np.array([layer_size_bytes(layer, bits) for bits in BIT_ALPHABET], dtype=np.float64)
        cost["size_bytes"] = np.repeat(sizes[:, None], WIDTHS, axis=1)
        return cost


def ceil_div(a: Any, b: Any) -> Any:
    """Returns the quotient rounded up, for integers and integer arrays."""
    return -(-a // b)
