"""Genetic against random search on the digits study, at equal evaluations.

    python tests/benchmarks/digits_searchers.py --seeds 5 --evaluations 300

Both searchers see the same space, evaluations (fidelity ptq, validation split) and budget; generational scheduling, so
that each number repeats. Hypervolume is the share of the box between the cheapest and the dearest configuration and
between no error and guessing (four objectives), fixed before any evaluation.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from qsearch.run.study import RunOptions, launch

STUDY = Path(__file__).resolve().parents[2] / "studies" / "digits.yaml"


def hypervolume(searcher: str, seed: int, evaluations: int) -> float:
    """Runs one study and returns the hypervolume of its candidates."""
    content: dict[str, Any] = YAML(typ="safe").load(STUDY.read_text(encoding="utf-8"))
    content["study"] = {"name": f"{searcher}-{seed}", "seed": seed}
    content["budget"] = {"evaluations": evaluations}
    content["finalists"] = {"max": 1}
    content["execution"] = {"scheduling": "generational"}
    if searcher != "genetic":
        content["searcher"] = searcher
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "study.yaml")
        with path.open("w", encoding="utf-8") as file:
            YAML().dump(content, file)
        front = launch(path, Path(directory, "run"), RunOptions(executor="serial"))
    if front.hypervolume is None:
        raise SystemExit("nothing was evaluated")
    return front.hypervolume


def main() -> None:
    """Parses arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=300)
    arguments = parser.parse_args()
    print(f"{'seed':>4}  {'genetic':>8}  {'random':>8}  {'difference':>10}")
    rows = []
    for seed in range(arguments.seeds):
        row = [hypervolume(searcher, seed, arguments.evaluations) for searcher in ("genetic", "random")]
        rows.append(row)
        print(f"{seed:>4}  {row[0]:8.4f}  {row[1]:8.4f}  {row[0] - row[1]:+10.4f}", flush=True)
    for name, values in zip(("genetic", "random"), zip(*rows, strict=True), strict=True):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: mean {statistics.mean(values):.4f}, standard deviation {spread:.4f}")
    wins = sum(genetic > random for genetic, random in rows)
    print(f"genetic is ahead in {wins} of {len(rows)} seeds")


if __name__ == "__main__":
    main()
