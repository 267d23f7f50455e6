"""ResNet-20 on CIFAR-10 at low bits: accuracy and seconds of every fidelity.

    python tests/benchmarks/resnet20_quantization.py                    # all but the published schedule
    python tests/benchmarks/resnet20_quantization.py --only ptq,mixed --seeds 0
    python tests/benchmarks/resnet20_quantization.py --only paper --paper --seeds 0      # an hour or more
    python tests/benchmarks/resnet20_quantization.py --quick            # does it run at all

First and last layer have 8 bits in every row (in rows with quantized activations so have their inputs); W3 means 3-bit
weights and float activations, W4A4 both. Sections:

ptq     closed-form bank, stitched and corrected: W4 W3 W2 W1; then seconds per further candidate (random mixes of
        weight bits) beside one float forward pass over the same images, as a plain folded module (channels last, best
        batch size) and through qsearch, taking turns in one run.
fast    ``brecq`` with preset ``fast``: W3 W2.
paper   ``brecq`` with preset ``paper`` (20,000 iterations): W2. Runs with ``--paper`` only.
w4a4    W4A4 by ``ptq`` and by the three settings of reconstruction below.
lowbit  W2A4 and W3A3 by the same.
mixed   mean weight bits of at most 2.5 over all weights, activations 8 bits: sensitivity table and allocation of
        2 3 4 6 8 bits (counted as setup), then the chosen configuration by ``ptq`` and by ``brecq fast``.

The settings of reconstruction differ in nothing but: ``AdaRound`` learns layer by layer, activation steps stay as
calibrated; ``BRECQ`` learns residual blocks, activation steps too; ``QDrop`` does the same with half of the activation
elements left float meanwhile. Iterations are per unit, and there are twice as many layers as blocks.

``setup`` is what is done once per network from nothing (empty cache): tracing, folding, Hessians, rounding of all
layers at all widths, statistics. ``candidate`` is quantizing, correcting and scoring one configuration after that, its
reconstruction included. Reading images from disk is not counted. Cells are means (standard deviations) over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from allocation import allocate
from bench_tools import (
    FREE,
    PlainModule,
    Table,
    accuracy,
    add_common,
    build,
    fresh_cache,
    listed,
    load_halves,
    load_plans,
    random_mix,
    seconds,
    start,
    uniform,
)

from qsearch.data import Split
from qsearch.evaluate.brecq import BRECQEvaluator
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.evaluate.sensitivity import measure_sensitivity
from qsearch.quant.program import Plan
from qsearch.types import BitConfig

SECTIONS = ("ptq", "fast", "paper", "w4a4", "lowbit", "mixed")
WIDTHS = (2, 3, 4, 6, 8)
MEAN_BITS = 2.5

COLUMNS = {"top-1": ".2f", "setup s": ".1f", "candidate s": ".1f", "from nothing s": ".1f", "x float": ".2f"}

#: Reconstruction settings: units, and options that differ.
SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "AdaRound": ("layer", {"activation_lr": 0.0}),
    "BRECQ": ("auto", {}),
    "QDrop": ("auto", {"drop_prob": 0.5}),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """An evaluator with everything that is made once per network.

    Attributes:
        evaluator: The evaluator.
        seconds: What that took.
    """

    evaluator: PTQEvaluator
    seconds: float

    @classmethod
    def make(
        cls, splits: Mapping[str, Split], options: Mapping[str, Any] | None, seed: int, units: str = "auto"
    ) -> Setup:
        """Makes an evaluator from nothing; the cache must be empty.

        Args:
            splits: The images.
            options: Of ``brecq``; None for ``ptq`` with its defaults.
            seed: Of the evaluator.
            units: What is reconstructed together.
        """
        started = time.perf_counter()
        target, device = build(splits, units), torch.device("cpu")
        evaluator = (
            PTQEvaluator(target, {}, device, seed) if options is None else BRECQEvaluator(target, options, device, seed)
        )
        evaluator.bank.grid(0, 8)  # makes all of the bank
        _ = evaluator.engine.moments
        return cls(evaluator, time.perf_counter() - started)

    def measure(self, table: Table, row: str, config: BitConfig) -> None:
        """Scores one configuration and adds it to the table."""
        started = time.perf_counter()
        found = accuracy(self.evaluator, config)
        spent = time.perf_counter() - started
        all_in = self.seconds + spent
        table.add(row, **{"top-1": found, "setup s": self.seconds, "candidate s": spent, "from nothing s": all_in})


def measure_ptq(table: Table, splits: Mapping[str, Split], seed: int, arguments: argparse.Namespace) -> None:
    """Uniform widths, then seconds per further candidate."""
    setup = Setup.make(splits, None, seed)
    table.add("float", **{"top-1": accuracy(setup.evaluator, None)})
    for bits in (4, 3, 2, 1):
        setup.measure(table, f"ptq W{bits}", uniform(bits))
    measure_price(table, setup.evaluator, seed, arguments.rounds)


def measure_price(table: Table, evaluator: PTQEvaluator, seed: int, rounds: int) -> None:
    """Seconds of a further candidate and of float forward passes, taking turns."""
    plain = PlainModule(evaluator.target)
    load_plans(evaluator)
    # Without memory for prefixes, or the second float pass would not be one.
    engine = PTQEvaluator(evaluator.target, {"max_cache_gb": 0.0}, evaluator.device, seed).engine
    rng = np.random.default_rng(seed)
    layers = evaluator.target.graph.layers
    taken: dict[str, list[float]] = {"plain": [], "engine": [], "candidate": []}
    for _ in range(rounds):
        config = random_mix(rng, layers, WIDTHS, float(rng.uniform(2.2, 5.0)))
        taken["plain"].append(seconds(plain))
        taken["engine"].append(seconds(lambda: [engine.score(Plan(), half) for half in ("validation", "test")]))
        taken["candidate"].append(seconds(partial(accuracy, evaluator, config)))
    names = {
        "plain": f"float forward, plain module, batch {plain.batch_size}",
        "engine": "float forward, qsearch",
        "candidate": "ptq, further candidate",
    }
    for name, row in names.items():
        ratios = [a / b for a, b in zip(taken[name], taken["plain"], strict=True)]
        table.add(row, **{"candidate s": statistics.median(taken[name]), "x float": statistics.median(ratios)})


def measure_brecq(
    table: Table, splits: Mapping[str, Split], seed: int, preset: str, widths: tuple[int, ...], iterations: int | None
) -> None:
    """Weights only, sequential reconstruction."""
    options: dict[str, Any] = {"preset": preset}
    if iterations is not None:
        options["iterations"] = iterations
    setup = Setup.make(splits, options, seed)
    for bits in widths:
        setup.measure(table, f"brecq {preset} W{bits}", uniform(bits))


def measure_settings(
    table: Table, splits: Mapping[str, Split], seed: int, widths: list[tuple[int, int]], arguments: argparse.Namespace
) -> None:
    """Activations quantized: ptq, and the settings of reconstruction at equal iterations."""
    common = {"preset": "fast", "iterations": arguments.iterations, "activation_lr": arguments.activation_lr}
    runs: dict[str, tuple[str, Mapping[str, Any] | None]] = {"ptq": ("auto", None)}
    for name, (units, changed) in SETTINGS.items():
        runs[f"{name} {arguments.iterations} iterations"] = (units, {**common, "fisher": "none", **changed})
    for name, (units, options) in runs.items():
        with fresh_cache():
            setup = Setup.make(splits, options, seed, units)
            for w, a in widths:
                setup.measure(table, f"{name} W{w}A{a}", uniform(w, a))


def measure_mixed(table: Table, splits: Mapping[str, Split], seed: int, iterations: int | None) -> None:
    """From nothing to a mixed configuration, and its scores."""
    started = time.perf_counter()
    evaluator = Setup.make(splits, None, seed).evaluator
    target = evaluator.target
    losses = measure_sensitivity(evaluator, WIDTHS)
    config = allocate(losses, FREE, WIDTHS, MEAN_BITS, uniform(8, 8))
    spent = time.perf_counter() - started
    name = f"mixed, at most {MEAN_BITS} bits, A8"
    Setup(evaluator, spent).measure(table, f"{name}: ptq", config)
    options: dict[str, Any] = {"preset": "fast"}
    if iterations is not None:
        options["iterations"] = iterations
    Setup(BRECQEvaluator(target, options, evaluator.device, seed), spent).measure(table, f"{name}: brecq fast", config)
    print(
        f"seed {seed}: mean {config.mean_weight_bits(target.graph.layers):.3f} bits, weights {listed(config.weights)}"
    )


def main() -> None:
    """Parses arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, images=10_000, seeds=(0, 1, 2))
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--paper", action="store_true", help="run the section paper, too")
    parser.add_argument("--iterations", type=int, default=300, help="of the sections w4a4 and lowbit")
    parser.add_argument("--activation-lr", type=float, default=4e-4, help="of BRECQ and QDrop in w4a4 and lowbit")
    parser.add_argument("--rounds", type=int, default=7, help="further candidates that are timed")
    parser.add_argument("--quick", action="store_true", help="few images, iterations and rounds, one seed")
    arguments = parser.parse_args()
    sections = arguments.only.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}; known: {', '.join(SECTIONS)}")
    iterations = None
    if arguments.quick:
        arguments.images, arguments.calibration = min(arguments.images, 500), min(arguments.calibration, 256)
        arguments.iterations, arguments.rounds, arguments.seeds = 10, 2, arguments.seeds[:1]
        iterations = 10
    start(arguments)
    if arguments.quick:
        print("quick        10 iterations everywhere: the numbers mean nothing", flush=True)

    table = Table("ResNet-20, CIFAR-10", COLUMNS)
    for seed in arguments.seeds:
        splits = load_halves(seed, arguments.calibration, arguments.images)
        for section in sections:
            if section == "paper" and not arguments.paper:
                continue
            with fresh_cache():
                if section == "ptq":
                    measure_ptq(table, splits, seed, arguments)
                elif section == "fast":
                    measure_brecq(table, splits, seed, "fast", (3, 2), iterations)
                elif section == "paper":
                    measure_brecq(table, splits, seed, "paper", (2,), iterations)
                elif section == "w4a4":
                    measure_settings(table, splits, seed, [(4, 4)], arguments)
                elif section == "lowbit":
                    measure_settings(table, splits, seed, [(2, 4), (3, 3)], arguments)
                else:
                    measure_mixed(table, splits, seed, iterations)
    print(f"\n{table}")


if __name__ == "__main__":
    main()
