"""Weight bits under a budget from a sensitivity table: exact for the additive part, then improved with interactions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from qsearch.evaluate.sensitivity import SensitivityTable
from qsearch.types import BitConfig


def allocate(
    table: SensitivityTable, free: Sequence[int], widths: Sequence[int], mean_bits: float, other: BitConfig
) -> BitConfig:
    """Chooses the weight widths of some layers so that the predicted loss is least.

    A 0/1 program over (layer, bits) minimises the sum of single-layer losses under the bound on all weight bits; from
    there, the best change of one or two layers by :meth:`SensitivityTable.predict`, which knows of interactions, is
    taken as long as there is one.

    Args:
        table: Measured losses of every free layer at every width.
        free: Indices of the layers to choose for.
        widths: Widths to choose from, bits.
        mean_bits: Largest mean weight width over all weights, bits.
        other: Widths of everything else.

    Raises:
        ValueError: The bound is below what the other layers and the least widths need.
    """
    start = _solve(table, free, widths, mean_bits, other)
    return _improve(table, free, widths, mean_bits, start)


def _solve(
    table: SensitivityTable, free: Sequence[int], widths: Sequence[int], mean_bits: float, other: BitConfig
) -> BitConfig:
    layers = table.target.graph.layers
    pairs = [(i, b) for i in free for b in widths]
    total = mean_bits * sum(layer.weight_count for layer in layers)
    fixed = sum(layer.weight_count * other.weights[i] for i, layer in enumerate(layers) if i not in free)
    one_each = np.array([[float(i == layer) for i, _ in pairs] for layer in free])
    bits = np.array([[float(layers[i].weight_count * b) for i, b in pairs]])
    found = milp(
        np.array([table.weights[pair] for pair in pairs]),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(bits, -np.inf, total - fixed)],
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0, 1),
    )
    if found.x is None:
        raise ValueError(f"no choice of {list(widths)} bits has a mean of {mean_bits} bits or less: {found.message}")
    return _with(other, {i: b for (i, b), taken in zip(pairs, found.x, strict=True) if taken > 0.5})


def _improve(
    table: SensitivityTable, free: Sequence[int], widths: Sequence[int], mean_bits: float, config: BitConfig
) -> BitConfig:
    layers = table.target.graph.layers
    loss = table.predict(config)
    while True:
        best = config
        for first, second in itertools.combinations_with_replacement(free, 2):
            for pair in itertools.product(widths, repeat=2):
                changed = _with(config, dict(zip((first, second), pair, strict=True)))
                if changed.mean_weight_bits(layers) > mean_bits:
                    continue
                predicted = table.predict(changed)
                if predicted < loss - 1e-12:
                    best, loss = changed, predicted
        if best is config:
            return config
        config = best


def _with(config: BitConfig, weights: dict[int, int]) -> BitConfig:
    return BitConfig(tuple(weights.get(i, b) for i, b in enumerate(config.weights)), config.activations)
