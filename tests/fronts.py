"""A hand-made front for the rooms that write and draw one: no network, no log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qsearch.run.results import Front, FrontPoint
from qsearch.spec import spec_from_mapping
from qsearch.types import BitConfig, LayerShape

LAYERS = (
    LayerShape("stem", "conv", 1, 4, (3, 3), (1, 1), 1, (8, 8), (8, 8), True, 0),
    LayerShape("body.conv", "conv", 4, 8, (3, 3), (2, 2), 1, (8, 8), (4, 4), True, 1),
    LayerShape("head", "linear", 8, 10, (1, 1), (1, 1), 1, (1, 1), (1, 1), True, 2),
)

#: Weight and activation widths, validation and test accuracy of the points, best first.
POINTS: tuple[tuple[tuple[int, ...], tuple[int, ...], float, float | None], ...] = (
    ((8, 8, 8), (8, 8, 8), 98.0, 97.5),
    ((8, 4, 8), (8, 8, 8), 97.0, 97.25),
    ((8, 3, 8), (8, 4, 8), 93.0, 92.0),
    ((8, 2, 8), (8, 4, 8), 71.0, 70.0),
)


def make_front(
    points: Sequence[tuple[tuple[int, ...], tuple[int, ...], float, float | None]] = POINTS,
    devices: Mapping[str, int] | None = None,
    name: str = "made",
    knee: int | None = 1,
    is_final: bool = True,
    seed: int = 0,
) -> Front:
    """Makes a front whose size falls with the weight bits and whose latency falls with both.

    Args:
        points: See :data:`POINTS`.
        devices: Batch by device name.
        name: Of the study.
        knee: Index of the knee.
        is_final: Whether the study was finished.
        seed: Of the study; other seeds make other studies.
    """
    devices = {"edge": 1, "cloud": 16} if devices is None else devices
    spec = spec_from_mapping(
        {
            "study": {"name": name, "seed": seed},
            "model": {"source": "qsearch:digits_resnet", "arguments": {"width": 8}},
            "data": {"source": "qsearch:digits", "validation": 100},
            "devices": [{"preset": "bismo_edge", "name": device} for device in devices],
            "finalists": {"fidelity": "brecq"},
            "fidelities": {"brecq": {"iterations": 20}},
        }
    )
    made = [
        _point(index, BitConfig(w, a), validation, test, devices, index == knee)
        for index, (w, a, validation, test) in enumerate(points)
    ]
    return Front(
        spec=spec,
        target=_target(devices),
        points=tuple(made),
        is_final=is_final,
        hypervolume=0.75,
        counts={"waiting": 0, "complete": 12, "failed": 0, "abandoned": 0, "infeasible": 1},
        evaluations=20,
    )


def _point(
    index: int, config: BitConfig, validation: float, test: float | None, devices: Mapping[str, int], is_knee: bool
) -> FrontPoint:
    accuracy = {"validation": validation} if test is None else {"validation": validation, "test": test}
    work = sum(w * a for w, a in zip(config.weights, config.activations, strict=True))
    costs = {"size": 1000.0 + 250.0 * sum(config.weights)}
    for device, batch in devices.items():
        costs[f"latency@{device}"] = 1e-6 * work * batch
        costs[f"energy@{device}"] = 3e-9 * work * batch
    return FrontPoint(
        id=7 * index + 3,
        config=config,
        fidelity="brecq",
        accuracy=accuracy,
        search_accuracy=validation - 1.5,
        costs=costs,
        keys={split: f"key-{index}-{split}" for split in accuracy},
        mean_weight_bits=config.mean_weight_bits(LAYERS),
        mean_activation_bits=config.mean_activation_bits(LAYERS),
        is_knee=is_knee,
    )


def _target(devices: Mapping[str, int]) -> dict[str, Any]:
    return {
        "layers": [layer.to_json() for layer in LAYERS],
        "tensors": [
            {"index": 0, "node": "x", "unsigned": False, "group": 0},
            {"index": 1, "node": "relu", "unsigned": True, "group": 1},
            {"index": 2, "node": "flatten", "unsigned": True, "group": 2},
            {"index": 3, "node": "sum", "unsigned": True, "group": 1},
            {"index": 4, "node": "unread", "unsigned": True, "group": 3},
        ],
        "float_parameters": 12,
        "model_digest": "model",
        "data_digest": {"calibration": "c", "validation": "v", "test": "t"},
        "quantizer": {"ptq": "q-ptq", "brecq": "q-brecq"},
        "evaluators": {"brecq": {"version": 3, "settings": {"rounding": "AdaRound"}}},
        "float": {"validation": 98.5, "test": 98.0},
        "devices": {
            name: {"batch": batch, "validation": "unvalidated", "notes": "made up", "device_digest": f"d-{name}"}
            for name, batch in devices.items()
        },
        "environment": {"qsearch": "0.1.0", "torch": "2.13", "machine": "x86_64", "threads": 1, "device": "cpu"},
    }
