"""A synthetic network whose accuracy loss and cost are known in closed form, for testing searchers without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import moocore
import numpy as np
import numpy.typing as npt

from qsearch.space import SearchSpace
from qsearch.types import BIT_ALPHABET, BitConfig, LayerShape

FloatArray: TypeAlias = npt.NDArray[np.float64]

#: Widths that genes of the synthetic networks choose from, in bits.
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True, slots=True, eq=False)
class AdditiveProblem:
    """Two additive objectives on L layers: log10 of an accuracy loss, and a relative cost.

    The loss is ``sum_l s_l 4^-w_l + t_l 4^-a_l``: the power of uniform quantization noise falls by 4 with every bit,
    and sensitivities s, t are lognormal over layers. The cost is ``sum_l m_l w_l a_l``, as on a bit-serial array,
    relative to all widths being 8. Real networks add layer interactions and noise; both objectives being additive,
    the best front of this one can be computed exactly.

    Attributes:
        space: The search space; one layer in five shares its input tensor with the layer before.
        loss: [L, 9, 9] over ``BIT_ALPHABET``, weights first.
        cost: [L, 9, 9], summing to 1 at 8 bits everywhere.
    """

    space: SearchSpace
    loss: FloatArray
    cost: FloatArray

    @classmethod
    def make(cls, n_layers: int, seed: int = 0, widths: tuple[int, ...] = WIDTHS) -> AdditiveProblem:
        """Draws a problem.

        Args:
            n_layers: L.
            seed: Seed of sensitivities and layer sizes.
            widths: Choices of every gene, in bits.
        """
        rng = np.random.default_rng(seed)
        tensor = 0
        layers = []
        for index in range(n_layers):
            tensor += 0 if index % 5 == 1 else 1
            columns = int(rng.integers(16, 512))
            layers.append(LayerShape(f"layer{index}", "linear", 64, columns, tensor=tensor))
        n_widths = len(BIT_ALPHABET)
        bits = np.array(BIT_ALPHABET, dtype=np.float64)
        noise = 0.25**bits
        sensitivity = rng.lognormal(size=(2, n_layers, 1, 1))
        macs = np.array([layer.macs for layer in layers], dtype=np.float64)
        everything = np.ones((n_layers, n_widths, n_widths), dtype=np.bool_)
        return cls(
            SearchSpace.build(layers, [widths] * n_layers, [widths] * n_layers, everything),
            sensitivity[0] * noise[None, :, None] + sensitivity[1] * noise[None, None, :],
            (macs / macs.sum())[:, None, None] * np.outer(bits, bits)[None] / 64.0,
        )

    def objectives(self, config: BitConfig) -> tuple[float, float]:
        """Returns (log10 of the loss, relative cost) of a configuration, both to be minimised."""
        layers = np.arange(self.space.n_layers)
        weights = [BIT_ALPHABET.index(bits) for bits in config.weights]
        activations = [BIT_ALPHABET.index(bits) for bits in config.activations]
        loss = self.loss[layers, weights, activations].sum()
        return float(np.log10(loss)), float(self.cost[layers, weights, activations].sum())

    def hypervolume(self, points: FloatArray) -> float:
        """Returns the hypervolume of points [n, 2] up to the worst corner, as a share of the box between corners."""
        low, high = self.objectives(self.space.max_config()), self.objectives(self.space.min_config())
        box = (high[0] - low[0]) * (low[1] - high[1])
        return float(moocore.hypervolume(points, ref=np.array([high[0], low[1]]))) / box

    def supported_front(self, n_slopes: int = 1000) -> FloatArray:
        """Returns objectives [n, 2] of the configurations on the convex hull of (loss, cost).

        Each minimises ``loss + slope * cost``, which separates by activation group (Lagrangian relaxation, Everett
        1963). They are optimal; the full front also has points between them.
        """
        found = set()
        for slope in np.geomspace(1e-8, 1e8, n_slopes):
            table = self.space.project(self.loss + slope * self.cost)
            best = np.where(self.space.allowed, table, np.inf)
            activations = np.zeros(self.space.n_groups, dtype=np.int64)
            for group, gene in enumerate(self.space.activation_genes):
                by_choice = best[list(gene.layers), : len(gene.choices)].min(axis=2).sum(axis=0)
                activations[group] = by_choice.argmin()
            weights = best[np.arange(self.space.n_layers), activations[self.space.group_of]].argmin(axis=1)
            found.add(self.objectives(self.space.decode(self.space.compress(activations, weights))))
        return np.array(sorted(found))
