"""Seconds per candidate: with a shared beginning, without one, and by a loop over modules that nobody optimized.

    python tests/benchmarks/prefix_reuse.py --candidates 8

ResNet-20 on CIFAR-10; all kinds of candidates take turns in one run, so that ratios mean something on a busy machine.

random  every layer draws its weight bits (2 3 4 6 8) and activation bits (4 8) anew.
late    one configuration in which only the last convolution's weight bits change.
loop    for each candidate the folded module is copied, weights are quantized and installed, a module that divides,
        rounds, clips and multiplies is put behind every activation tensor, and the images run through in batches of
        256. It is not corrected, so it is compared with qsearch without correction; both read one bank.

"corrected" rows are qsearch as it is used: the statistics of every candidate are corrected on calibration images first.
The ``loop`` must find the accuracy that qsearch finds; the largest difference is printed. Cells are medians over
candidates, then means (standard deviations) over seeds.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from bench_tools import (
    FREE,
    PlainModule,
    Table,
    accuracy,
    add_common,
    build,
    fresh_cache,
    load_halves,
    load_plans,
    random_mix,
    seconds,
    start,
)
from torch import nn

from qsearch.evaluate import Target
from qsearch.evaluate.bank import Bank
from qsearch.evaluate.ptq import PTQEvaluator, tensor_bits
from qsearch.quant.grids import ActivationGrid
from qsearch.types import BitConfig

WIDTHS = (2, 3, 4, 6, 8)
ACTIVATIONS = (4, 8)
LATE = FREE[-1]
FLOAT_ROW, LOOP_ROW = "float forward, plain module", "loop over modules"


class FakeQuantize(nn.Module):
    """Quantizes and dequantizes what passes, one operation after the other."""

    def __init__(self, grid: ActivationGrid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Maps a tensor of any shape to the same shape."""
        codes = torch.clamp(torch.round(values / self.grid.scale) + self.grid.zero_point, self.grid.low, self.grid.high)
        return (codes - self.grid.zero_point) * self.grid.scale


class ModuleLoop:
    """Builds a quantized module for every candidate and runs it.

    Args:
        target: Network and data.
        bank: Where weights and grids come from.
    """

    def __init__(self, target: Target, bank: Bank) -> None:
        self._target = target
        self._bank = bank

    @torch.no_grad()
    def accuracy(self, config: BitConfig) -> float:
        """Top-1 in percent over all scored images."""
        network = self._network(config)
        correct = total = 0
        for name in ("validation", "test"):
            split = self._target.splits[name]
            for images, labels in zip(torch.split(split.images, 256), torch.split(split.labels, 256), strict=True):
                correct += int((network(images).argmax(1) == labels).sum())
                total += len(labels)
        return 100 * correct / total

    def _network(self, config: BitConfig) -> nn.Module:
        graph = self._target.graph
        network = copy.deepcopy(graph.module)
        for index, layer in enumerate(graph.layers):
            weight = self._bank.weight(index, config.weights[index]).values
            network.get_parameter(f"{layer.name}.weight").copy_(weight)
        nodes = {node.name: node for node in network.graph.nodes}
        for tensor, bits in tensor_bits(self._target, config).items():
            node, name = nodes[graph.tensors[tensor].node], f"fake_quantize_{tensor}"
            network.add_submodule(name, FakeQuantize(self._bank.grid(tensor, bits)))
            with network.graph.inserting_after(node):
                quantized = network.graph.call_module(name, (node,))
            node.replace_all_uses_with(quantized, delete_user_cb=lambda user, keep=quantized: user is not keep)
        network.recompile()
        return network


def late_changes(base: BitConfig) -> itertools.cycle[BitConfig]:
    """The configuration with every other width of the last convolution."""
    others = [bits for bits in range(1, 9) if bits != base.weights[LATE]]
    return itertools.cycle(
        replace(base, weights=(*base.weights[:LATE], bits, *base.weights[LATE + 1 :])) for bits in others
    )


def measure(table: Table, seed: int, arguments: argparse.Namespace) -> float:
    """One seed; returns the largest difference of accuracies between loop and qsearch, percent."""
    target = build(load_halves(seed, arguments.calibration, arguments.images))
    device, layers = torch.device("cpu"), target.graph.layers
    plain = PlainModule(target)
    evaluators = {
        correction: PTQEvaluator(target, {"correction": correction}, device, seed)
        for correction in ("none", "mean_std")
    }
    loop = ModuleLoop(target, evaluators["none"].bank)
    rng = np.random.default_rng(seed)

    def draw() -> BitConfig:
        return random_mix(rng, layers, WIDTHS, float(rng.uniform(2.2, 5.0)), ACTIVATIONS)

    base = draw()
    late = late_changes(base)
    for evaluator in evaluators.values():
        load_plans(evaluator)
        accuracy(evaluator, base)  # the shared beginning is computed once, before
    taken: dict[str, list[float]] = {}
    difference = 0.0

    def clock(name: str, score: Callable[[BitConfig], object], config: BitConfig) -> None:
        taken.setdefault(name, []).append(seconds(partial(score, config)))

    for _ in range(arguments.candidates):
        config, changed = draw(), next(late)
        clock(FLOAT_ROW, lambda _: plain(), config)
        clock(LOOP_ROW, loop.accuracy, config)
        for correction, evaluator in evaluators.items():
            suffix = "" if correction == "none" else ", corrected"
            clock(f"random{suffix}", partial(accuracy, evaluator), config)
            clock(f"late{suffix}", partial(accuracy, evaluator), changed)
        difference = max(difference, abs(loop.accuracy(config) - accuracy(evaluators["none"], config)))
    by_round = {name: np.array(values) for name, values in taken.items()}
    for name, values in by_round.items():
        table.add(
            name,
            **{
                "s a candidate": statistics.median(values),
                "x float": float(np.median(values / by_round[FLOAT_ROW])),
                "faster than loop": float(np.median(by_round[LOOP_ROW] / values)),
            },
        )
    return difference


def main() -> None:
    """Parses arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, images=10_000, seeds=(0,))
    parser.add_argument("--candidates", type=int, default=7, help="of each kind")
    arguments = parser.parse_args()
    start(arguments)
    table = Table("ResNet-20, CIFAR-10", {"s a candidate": ".3f", "x float": ".2f", "faster than loop": ".1f"})
    differences = []
    for seed in arguments.seeds:
        with fresh_cache():
            differences.append(measure(table, seed, arguments))
    print(f"\n{table}\n\nlargest difference of top-1 between loop and qsearch: {max(differences):.2f} points")


if __name__ == "__main__":
    main()
