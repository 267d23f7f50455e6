"""Do the cheap fidelities rank candidates like sequential block reconstruction does?

    python tests/benchmarks/rank_fidelity.py --out ranks.jsonl                  # may be stopped and continued
    python tests/benchmarks/rank_fidelity.py --mixes 4 --band-mixes 4 --iterations 5 --images 200     # does it run

ResNet-20 on CIFAR-10, first and last layer at 8 bits. Two sets of random mixes: ``wide``, whose mean weight bits are
spread evenly over a range (2.1 to 6), and ``band``, all within a narrow one (2.4 to 2.6). Every mix is scored on the
validation images by ``ptq``, by ``brecq`` with preset ``bank``, and by the reference: ``brecq``, sequential, with
``--iterations`` steps a unit, once for each seed. Here seeds do not draw other calibration images: all fidelities see
the same ones.

Printed is Kendall's tau (b) between each fidelity and the reference, the mean over the reference's seeds. The noise
ceiling is the tau of the reference against itself with another seed, the mean over pairs of seeds: no fidelity can be
expected to agree better with a reference than the reference does with itself. ``accuracy`` ranks by top-1, ``loss`` by
cross-entropy, which is finer. ``mean gap`` is the accuracy of a fidelity minus that of the reference's first seed.

With ``--out`` every score is appended to a file as soon as it is known, and what the file holds is not computed again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_tools import FLOAT, Journal, Table, add_common, build, fresh_cache, listed, load_splits, random_mix, start
from scipy.stats import kendalltau

from qsearch.evaluate import Target, settings_digest
from qsearch.evaluate.brecq import BRECQEvaluator
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.types import BitConfig

CHEAP = ("ptq", "brecq bank")

#: Scores of one set: (accuracy, loss) of every mix, by fidelity.
Scores = Mapping[str, Sequence[tuple[float, float]]]


def draw_sets(target: Target, arguments: argparse.Namespace) -> dict[str, list[BitConfig]]:
    """The two sets of mixes; always the same for equal arguments."""
    layers = target.graph.layers
    activations = arguments.activation_bits or [FLOAT]
    rng = np.random.default_rng(arguments.mix_seed)
    sets = {}
    for name, count, (low, high) in (
        ("wide", arguments.mixes, arguments.range),
        ("band", arguments.band_mixes, arguments.band),
    ):
        means = np.linspace(low, high, count)
        mixes = [random_mix(rng, layers, arguments.widths, float(mean), activations) for mean in means]
        sets[name] = mixes
    return sets


def make_evaluators(target: Target, arguments: argparse.Namespace) -> dict[str, PTQEvaluator]:
    """All fidelities by name; the reference once for each seed."""
    device, seeds = torch.device("cpu"), arguments.seeds
    bank: dict[str, Any] = {"preset": "bank"}
    if arguments.bank_iterations is not None:
        bank["iterations"] = arguments.bank_iterations
    reference = {"preset": "fast", "iterations": arguments.iterations}
    return {
        "ptq": PTQEvaluator(target, {}, device, seeds[0]),
        "brecq bank": BRECQEvaluator(target, bank, device, seeds[0]),
        **{reference_name(seed): BRECQEvaluator(target, reference, device, seed) for seed in seeds},
    }


def reference_name(seed: int) -> str:
    """Name of the reference with a seed."""
    return f"reference, seed {seed}"


def score(evaluator: PTQEvaluator, config: BitConfig) -> dict[str, Any]:
    """Accuracy, loss and seconds of one candidate on the validation images."""
    started = time.perf_counter()
    found = evaluator.evaluate(config, "validation")
    return {"accuracy": found.accuracy, "loss": found.loss, "seconds": time.perf_counter() - started}


def tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b."""
    return float(kendalltau(first, second).statistic)


def compare(table: Table, name: str, scores: Scores, seeds: Sequence[int]) -> None:
    """Adds the agreement with the reference, and the reference's with itself, to the table."""
    for column, measure in (("accuracy", 0), ("loss", 1)):
        values = {fidelity: [row[measure] for row in rows] for fidelity, rows in scores.items()}
        for fidelity in CHEAP:
            taus = [tau(values[fidelity], values[reference_name(seed)]) for seed in seeds]
            table.add(f"{name}: {fidelity}", **{f"tau, {column}": statistics.fmean(taus)})
        pairs = list(itertools.combinations(seeds, 2))
        if pairs:
            taus = [tau(values[reference_name(a)], values[reference_name(b)]) for a, b in pairs]
            table.add(f"{name}: noise ceiling", **{f"tau, {column}": statistics.fmean(taus)})
    exact = [accuracy for accuracy, _ in scores[reference_name(seeds[0])]]
    for fidelity in CHEAP:
        gaps = [accuracy - other for (accuracy, _), other in zip(scores[fidelity], exact, strict=True)]
        table.add(f"{name}: {fidelity}", **{"mean gap, points": statistics.fmean(gaps)})


def main() -> None:
    """Parses arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, images=5000, seeds=(0, 1))
    parser.add_argument("--mixes", type=int, default=40)
    parser.add_argument("--range", type=float, nargs=2, default=(2.1, 6.0), help="mean weight bits of the wide set")
    parser.add_argument("--band-mixes", type=int, default=20)
    parser.add_argument("--band", type=float, nargs=2, default=(2.4, 2.6), help="mean weight bits of the band")
    parser.add_argument("--mix-seed", type=int, default=0, help="draws other mixes")
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 3, 4, 6, 8], help="weight widths, bits")
    parser.add_argument("--activation-bits", type=int, nargs="+", help="widths drawn from; float when left out")
    parser.add_argument("--iterations", type=int, default=300, help="of the reference")
    parser.add_argument("--bank-iterations", type=int, help="of the bank, instead of the preset's")
    parser.add_argument("--out", type=Path, help="JSON lines; continued where it exists")
    parser.add_argument("--cache", type=Path, help="directory of artifacts; a temporary one when left out")
    arguments = parser.parse_args()
    start(arguments)
    print(f"weight bits  {listed(arguments.widths)}; activation bits {listed(arguments.activation_bits or [FLOAT])}")
    print(f"reference    brecq, sequential, {arguments.iterations} iterations a unit", flush=True)

    target = build(load_splits(0, arguments.calibration, arguments.images, 10))
    journal = Journal(arguments.out)
    if arguments.cache is not None:
        os.environ["QSEARCH_CACHE_DIR"] = str(arguments.cache)
    results: dict[str, dict[str, list[tuple[float, float]]]] = {}
    clocks: dict[str, list[float]] = {}
    with nullcontext() if arguments.cache is not None else fresh_cache():
        evaluators = make_evaluators(target, arguments)
        for name, mixes in draw_sets(target, arguments).items():
            results[name] = {}
            for fidelity, evaluator in evaluators.items():
                key = {"settings": settings_digest(evaluator, target), "version": evaluator.version}
                key["data"], key["seed"] = target.data_digest("validation"), evaluator.seed
                key["fidelity"] = fidelity
                rows = [
                    journal.get_or_make({**key, "config": mix.to_json()}, partial(score, evaluator, mix))
                    for mix in mixes
                ]
                results[name][fidelity] = [(row["accuracy"], row["loss"]) for row in rows]
                clocks.setdefault(fidelity, []).extend(row["seconds"] for row in rows)
                print(f"  {name}: {fidelity} done", flush=True)

    table = Table("ResNet-20, CIFAR-10", {"tau, accuracy": ".2f", "tau, loss": ".2f", "mean gap, points": "+.2f"})
    for name, scores in results.items():
        compare(table, name, scores, arguments.seeds)
    print(f"\n{table}\n")
    for fidelity, values in clocks.items():
        print(f"{fidelity}: {statistics.fmean(values):.1f} s a candidate, what is made once for all included")


if __name__ == "__main__":
    main()
