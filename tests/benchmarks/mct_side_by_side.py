"""qsearch and MCT 2.6.1 (Sony's Model Compression Toolkit) on one network, side by side.

    python tests/benchmarks/mct_side_by_side.py --mct-python mct-env/bin/python --seeds 0 1 2 --out mct.jsonl

MCT lives in an environment of its own, because it needs older versions of packages that qsearch uses:

    python -m venv mct-env
    mct-env/bin/pip install model-compression-toolkit==2.6.1 torch torchvision

ResNet-20 on CIFAR-10, weights of at most 2.5 bits in the mean, activations of 8 bits.

Equal: float weights, calibration images, test images, threads; first and last layer at 8 bits; the bound on the bytes
of all weights (first and last counted, biases and scales not); one scale per output channel; biases float.

Not equal: MCT chooses from 2, 4, 8 bits, the widths of its target platform; qsearch is shown with these and with 2, 3,
4, 6, 8. MCT's activation scales are powers of two, and it also quantizes the convolution's output before a residual
add, the average pool's output and the logits; qsearch has free scales and leaves these three alone. MCT's gradient PTQ
also trains biases. Everything else is each tool's default, but the epochs of gradient PTQ (``--epochs``), for which MCT
has none; its batches have 32 images.

``quantize s`` is from the float network and images in memory to the quantized network: tracing, statistics, choice of
widths, rounding, training, correction. ``score s`` is one pass over the test images.
The row "MCT's widths" is qsearch with the widths that MCT chose: what is left is the difference in quantization.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from allocation import allocate
from bench_tools import (
    FREE,
    Journal,
    Table,
    accuracy,
    add_common,
    build,
    fresh_cache,
    listed,
    load_halves,
    start,
    uniform,
)

from qsearch.data import Split
from qsearch.evaluate.brecq import BRECQEvaluator
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.evaluate.sensitivity import measure_sensitivity
from qsearch.types import BitConfig, LayerShape

MCT_WIDTHS = (2, 4, 8)
WIDTHS = (2, 3, 4, 6, 8)
METHODS = {"ptq": "MCT PTQ", "gptq": "MCT gradient PTQ"}

MISSING = """MCT is not here: give --mct-python the Python of an environment that has it, or --skip-mct. Made once by

    python -m venv mct-env
    mct-env/bin/pip install model-compression-toolkit==2.6.1 torch torchvision
    python tests/benchmarks/mct_side_by_side.py --mct-python mct-env/bin/python
"""


def run_mct(python: Path, splits: Mapping[str, Split], job: Mapping[str, Any], log: Path) -> dict[str, Any]:
    """Runs one method of MCT in its environment.

    Raises:
        SystemExit: It failed; the end of what it printed is shown.
    """
    scored = [splits[name] for name in ("validation", "test")]
    with tempfile.TemporaryDirectory(prefix="qsearch-mct-") as directory:
        files = Path(directory, "job.npz"), Path(directory, "result.json")
        np.savez(
            files[0],
            job=json.dumps(job),
            calibration=splits["calibration"].images.numpy(),
            images=torch.cat([split.images for split in scored]).numpy(),
            labels=torch.cat([split.labels for split in scored]).numpy(),
        )
        command = [str(python), str(Path(__file__).with_name("mct_driver.py")), *map(str, files)]
        with log.open("a", encoding="utf-8") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0 or not files[1].exists():
            end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            raise SystemExit("\n".join([f"MCT's {job['method']} failed with exit code {code}:", *end]))
        result: dict[str, Any] = json.loads(files[1].read_text(encoding="utf-8"))
        return result


def mct_rows(
    table: Table, splits: Mapping[str, Split], seed: int, journal: Journal, arguments: argparse.Namespace
) -> BitConfig:
    """Both methods of MCT; returns the widths that it chose."""
    layers = build(splits).graph.layers
    weight_bytes = arguments.mean_bits / 8 * sum(layer.weight_count for layer in layers)
    chosen = uniform(8, 8)
    for method, name in METHODS.items():
        job: dict[str, Any] = {
            "method": method,
            "seed": seed,
            "threads": torch.get_num_threads(),
            "weight_bytes": weight_bytes,
        }
        if method == "gptq":
            job.update(epochs=arguments.epochs, hessian=arguments.hessian)
        key = {**job, "images": arguments.images, "calibration": splits["calibration"].digest}
        found = journal.get_or_make(key, partial(run_mct, arguments.mct_python, splits, job, arguments.log))
        chosen = BitConfig(tuple(found["weights"][layer.name] for layer in layers), uniform(8, 8).activations)
        row = name if method == "ptq" else f"{name}, {arguments.epochs} epochs"
        report(table, row, chosen, layers, found["accuracy"], found["seconds"], found["score seconds"])
        print(f"seed {seed}: {name} {found['version']} (torch {found['torch']}), weights {listed(chosen.weights)}")
    return chosen


def qsearch_rows(table: Table, splits: Mapping[str, Split], seed: int, widths: Sequence[int], mean_bits: float) -> None:
    """Allocation from nothing, then both fidelities."""
    name = f"qsearch {listed(widths)}"
    with fresh_cache():
        started = time.perf_counter()
        target = build(splits)
        ptq = PTQEvaluator(target, {}, torch.device("cpu"), seed)
        table_of_losses = measure_sensitivity(ptq, widths)
        config = allocate(table_of_losses, FREE, widths, mean_bits, uniform(8, 8))
        spent = time.perf_counter() - started
        print(f"seed {seed}: {name}, weights {listed(config.weights)}")
        score_both(table, name, config, ptq, spent)


def given_rows(table: Table, splits: Mapping[str, Split], seed: int, config: BitConfig) -> None:
    """Both fidelities at widths that somebody else chose."""
    with fresh_cache():
        started = time.perf_counter()
        ptq = PTQEvaluator(build(splits), {}, torch.device("cpu"), seed)
        ptq.bank.grid(0, 8)  # makes all of the bank
        score_both(table, "qsearch, MCT's widths", config, ptq, time.perf_counter() - started)


def score_both(table: Table, name: str, config: BitConfig, ptq: PTQEvaluator, spent: float) -> None:
    """Scores a configuration by ``ptq`` and by ``brecq`` with its default preset.

    Args:
        table: Takes up the rows.
        name: Of the configuration.
        config: The configuration.
        ptq: An evaluator whose bank is made.
        spent: Seconds up to here, which both fidelities need.
    """
    brecq = BRECQEvaluator(ptq.target, {"preset": "fast"}, ptq.device, ptq.seed)
    for fidelity, evaluator in (("ptq", ptq), ("brecq fast", brecq)):
        started = time.perf_counter()
        evaluator.prepare(config)
        prepared = time.perf_counter()
        found = accuracy(evaluator, config)
        scored = time.perf_counter() - prepared
        layers = evaluator.target.graph.layers
        report(table, f"{name}: {fidelity}", config, layers, found, spent + prepared - started, scored)


def report(
    table: Table,
    row: str,
    config: BitConfig,
    layers: Sequence[LayerShape],
    found: float,
    quantizing: float,
    scoring: float,
) -> None:
    """Adds one result to the table."""
    values = {"top-1": found, "mean bits": config.mean_weight_bits(layers)}
    table.add(row, **values, **{"quantize s": quantizing, "score s": scoring})


def main() -> None:
    """Parses arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, images=10_000, seeds=(0,))
    parser.add_argument("--mct-python", type=Path, help="Python of the environment that has MCT")
    parser.add_argument("--skip-mct", action="store_true", help="qsearch's rows only")
    parser.add_argument("--epochs", type=int, default=50, help="of MCT's gradient PTQ, over the calibration images")
    parser.add_argument(
        "--hessian",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="loss weights of MCT's gradient PTQ by sample and layer: its default, and most of its time",
    )
    parser.add_argument("--mean-bits", type=float, default=2.5, help="largest mean of the weight bits")
    parser.add_argument("--out", type=Path, help="JSON lines of MCT's results; continued where it exists")
    parser.add_argument("--log", type=Path, help="what MCT prints; a temporary file when left out")
    arguments = parser.parse_args()
    if not arguments.skip_mct and (arguments.mct_python is None or not arguments.mct_python.is_file()):
        print(MISSING, file=sys.stderr)
        raise SystemExit(2)
    start(arguments)
    print(f"widths       at most {arguments.mean_bits} bits in the mean; activations 8", flush=True)

    table = Table("ResNet-20, CIFAR-10", {"top-1": ".2f", "mean bits": ".3f", "quantize s": ".1f", "score s": ".1f"})
    journal = Journal(arguments.out)
    with tempfile.TemporaryDirectory(prefix="qsearch-mct-log-") as directory:
        arguments.log = arguments.log or Path(directory, "mct.log")
        for seed in arguments.seeds:
            splits = load_halves(seed, arguments.calibration, arguments.images)
            if not arguments.skip_mct:
                given_rows(table, splits, seed, mct_rows(table, splits, seed, journal, arguments))
            for widths in (MCT_WIDTHS, WIDTHS):
                qsearch_rows(table, splits, seed, widths, arguments.mean_bits)
    print(f"\n{table}")


if __name__ == "__main__":
    main()
