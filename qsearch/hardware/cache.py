"""Cost tables kept on disk by content, so that a device is asked once per network."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from qsearch.cache import write_atomically
from qsearch.errors import DeviceError
from qsearch.hardware.device import Device, graph_digest
from qsearch.hardware.size import SizeRules, layer_size_bytes
from qsearch.hardware.table import ENGINE_VERSION, METRICS, CostTable
from qsearch.types import BIT_ALPHABET, LayerShape, digest


def build_table(
    device: Device,
    layers: Sequence[LayerShape],
    cache_dir: Path | None = None,
    sizes: SizeRules | None = None,
) -> CostTable:
    """Returns the cost table of a network on a device, from the cache where it is there.

    Args:
        device: The device.
        layers: The network.
        cache_dir: Directory of ``KEY.npz`` files, made if missing; see :func:`qsearch.cache.cache_dir`. KEY is a
            digest of the layers, the device (its numbers, name and texts), the size rules and the engine version.
            Without it nothing is read or written. A file that cannot be read is built again.
        sizes: What a layer stores beside its weights; a device knows nothing of it, so ``size_bytes`` is set here.

    Raises:
        DeviceError: The device cannot run the network.
        QSearchError: The directory cannot be written.
    """
    sizes = sizes or SizeRules()
    if cache_dir is None:
        return _with_sizes(device.build(layers), layers, sizes)
    key = digest(
        {
            "device": [device.digest, device.name, device.notes, device.validation, device.batch],
            "graph": graph_digest(layers),
            "engine": ENGINE_VERSION,
            "metrics": METRICS,
            "sizes": asdict(sizes),
        }
    )
    path = cache_dir / f"{key}.npz"
    table = _read(path)
    if table is None:
        table = _with_sizes(device.build(layers), layers, sizes)
        _write(path, table)
    return table


def _with_sizes(table: CostTable, layers: Sequence[LayerShape], sizes: SizeRules) -> CostTable:
    if sizes == SizeRules():
        return table
    rows = np.array([[layer_size_bytes(layer, bits, sizes) for bits in BIT_ALPHABET] for layer in layers])
    cost = table.cost.copy()
    cost[METRICS.index("size_bytes")] = np.where(table.supported, rows[:, :, None], np.nan)
    return replace(table, cost=cost, provenance={**table.provenance, "sizes": asdict(sizes)})


def _read(path: Path) -> CostTable | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            head = json.loads(str(stored["head"]))
            return CostTable(
                device=head["device"],
                cost=stored["cost"],
                supported=stored["supported"],
                layers=tuple(head["layers"]),
                constant=stored["constant"],
                provenance=head["provenance"],
            )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, DeviceError):
        return None  # absent, cut short or damaged: a cache may always be rebuilt


def _write(path: Path, table: CostTable) -> None:
    head = {"device": table.device, "layers": list(table.layers), "provenance": dict(table.provenance)}

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez(
                file,
                head=np.array(json.dumps(head)),
                cost=table.cost,
                supported=table.supported,
                constant=table.constant,
            )

    write_atomically(path, save)
