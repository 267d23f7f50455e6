"""Cost tables kept on disk by content, so that a device is asked once per network."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qsearch.cache import write_atomically
from qsearch.errors import DeviceError
from qsearch.hardware.device import Device, graph_digest
from qsearch.hardware.table import ENGINE_VERSION, METRICS, CostTable
from qsearch.types import LayerShape, digest


def build_table(device: Device, layers: Sequence[LayerShape], cache_dir: Path | None = None) -> CostTable:
    """Returns the cost table of a network on a device, from the cache where it is there.

    Args:
        device: The device.
        layers: The network.
        cache_dir: Directory of ``KEY.npz`` files, made if missing; see :func:`qsearch.cache.cache_dir`. KEY is a
            digest of the layers, the device (its numbers, name and texts) and the engine version. Without it nothing
            is read or written. A file that cannot be read is built again.

    Raises:
        DeviceError: The device cannot run the network.
        QSearchError: The directory cannot be written.
    """
    if cache_dir is None:
        return device.build(layers)
    key = digest(
        {
            "device": [device.digest, device.name, device.notes, device.validation, device.batch],
            "graph": graph_digest(layers),
            "engine": ENGINE_VERSION,
            "metrics": METRICS,
        }
    )
    path = cache_dir / f"{key}.npz"
    table = _read(path)
    if table is None:
        table = device.build(layers)
        _write(path, table)
    return table


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
