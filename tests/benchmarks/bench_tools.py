"""What the quantization benchmarks share: ResNet-20 on CIFAR-10 as a target, clocks, tables, a log to continue from.

A seed draws other calibration images: seed ``s`` takes the ``s``-th run of them in the training images, which is
class-balanced. It also seeds everything random in a method. All calls read the real data (``tests/factories.py``).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import factories

from qsearch.data import Split
from qsearch.data.splits import read_splits
from qsearch.evaluate import Target
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.models import build_graph
from qsearch.models.unit_rules import read_unit_rule
from qsearch.quant.bank import WIDTHS
from qsearch.spec import QuantizerSpec
from qsearch.types import BitConfig, LayerShape, canonical_json

#: The layers of ResNet-20; the first and the last always have 8 bits.
LAYERS = 20
FREE = range(1, LAYERS - 1)
PINNED_BITS = 8

#: Stands for "not quantized".
FLOAT = 32

#: Batch sizes that the plain module is tried at; the best one counts.
BATCH_SIZES = (32, 64, 128, 250, 500)


def add_common(parser: argparse.ArgumentParser, images: int, seeds: Sequence[int]) -> None:
    """Adds the options that all benchmarks have.

    Args:
        parser: Takes them up.
        images: Default number of test images.
        seeds: Default seeds.
    """
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="each draws other calibration images")
    parser.add_argument("--images", type=int, default=images, help="test images that are scored")
    parser.add_argument("--calibration", type=int, default=1024, help="calibration images")
    parser.add_argument("--threads", type=int, default=2)


def start(arguments: argparse.Namespace) -> None:
    """Sets the threads, and prints where, when and on what this runs."""
    torch.set_num_threads(arguments.threads)
    print(f"machine      {processor_name()}, {os.cpu_count()} cores; {platform.system()} {platform.machine()}")
    print(f"threads      {torch.get_num_threads()}")
    print(f"torch        {torch.__version__}, Python {platform.python_version()}")
    print(f"date         {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(f"seeds        {' '.join(map(str, arguments.seeds))}")
    print(f"images       {arguments.images} scored, {arguments.calibration} for calibration", flush=True)


def processor_name() -> str:
    """The processor's model, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def load_splits(seed: int, calibration: int, validation: int, test: int) -> dict[str, Split]:
    """Reads the images; ``validation`` and ``test`` are disjoint parts of the 10,000 test images."""
    datasets = factories.cifar10(calibration, validation, test, offset=seed * calibration)
    return read_splits(datasets, {}, "factories:cifar10")


def load_halves(seed: int, calibration: int, images: int) -> dict[str, Split]:
    """Reads the images; half of the scored ones is ``validation``, the rest ``test``."""
    return load_splits(seed, calibration, images // 2, images - images // 2)


def build(splits: Mapping[str, Split], units: str = "auto") -> Target:
    """The pretrained network, traced and folded, with images that are in memory already."""
    quantizer = QuantizerSpec(units=units)
    example = splits["calibration"].images[:2]
    with torch.no_grad():
        graph = build_graph(factories.cifar_resnet20(), example, quantizer.add_policy, read_unit_rule(quantizer.units))
    return Target(graph, splits, 256, quantizer)


@contextmanager
def fresh_cache() -> Iterator[None]:
    """An empty cache for as long as the block lasts, so that everything is made from nothing."""
    before = os.environ.get("QSEARCH_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="qsearch-benchmark-") as directory:
        os.environ["QSEARCH_CACHE_DIR"] = directory
        try:
            yield
        finally:
            if before is None:
                del os.environ["QSEARCH_CACHE_DIR"]
            else:
                os.environ["QSEARCH_CACHE_DIR"] = before


def uniform(weights: int, activations: int = FLOAT) -> BitConfig:
    """Equal widths but for the first and the last layer, which have 8 bits (their inputs, too, unless float)."""
    ends = FLOAT if activations == FLOAT else PINNED_BITS
    middle = len(FREE)
    return BitConfig(
        (PINNED_BITS, *[weights] * middle, PINNED_BITS),
        (ends, *[activations] * middle, ends),
    )


def random_mix(
    rng: np.random.Generator,
    layers: Sequence[LayerShape],
    widths: Sequence[int],
    mean_bits: float,
    activations: Sequence[int] = (FLOAT,),
    tolerance: float = 0.02,
) -> BitConfig:
    """Random widths whose mean over all weights is about ``mean_bits``.

    Widths are drawn at random, then random layers take the next width up or down until the mean fits.

    Args:
        rng: Source of randomness.
        layers: The layer table.
        widths: Weight widths to choose from.
        mean_bits: Mean weight width wanted, bits; the first and the last layer count with theirs.
        activations: Activation widths to choose from.
        tolerance: Largest distance from ``mean_bits``.

    Raises:
        ValueError: It cannot be reached with these widths.
    """
    ordered = sorted(widths)
    ends = FLOAT if set(activations) == {FLOAT} else PINNED_BITS
    chosen = [ends, *(int(b) for b in rng.choice(activations, len(FREE))), ends]
    places = rng.integers(0, len(ordered), len(FREE))
    for _ in range(100_000):
        config = BitConfig((PINNED_BITS, *(ordered[p] for p in places), PINNED_BITS), tuple(chosen))
        distance = mean_bits - config.mean_weight_bits(layers)
        if abs(distance) <= tolerance:
            return config
        layer = int(rng.integers(len(FREE)))
        places[layer] = np.clip(places[layer] + (1 if distance > 0 else -1), 0, len(ordered) - 1)
    raise ValueError(f"no mix of {ordered} bits with a mean of {mean_bits:.2f} bits was found")


def accuracy(evaluator: PTQEvaluator, config: BitConfig | None) -> float:
    """Top-1 in percent over both halves of the scored images; of the float network without a configuration."""
    halves = ("validation", "test")
    scores = [evaluator.evaluate_float(h) if config is None else evaluator.evaluate(config, h) for h in halves]
    return 100 * sum(score.correct for score in scores) / sum(score.samples for score in scores)


def load_plans(evaluator: PTQEvaluator) -> None:
    """Reads all of the bank, as a worker has after its first candidates."""
    for layer in range(LAYERS):
        for bits in WIDTHS:
            evaluator.bank.plan(layer, bits)


class PlainModule:
    """The folded float network as a plain module: channels last, and at whatever batch size is fastest here.

    Args:
        target: Network and data.
    """

    def __init__(self, target: Target) -> None:
        self.module: fx.GraphModule = copy.deepcopy(target.graph.module)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.cat([target.splits[name].images for name in ("validation", "test")])
        self.images = images.contiguous(memory_format=torch.channels_last)
        probe = self.images[:1000]
        self.batch_size = min(BATCH_SIZES, key=lambda size: best_of(2, lambda: self.forward(probe, size)))

    @torch.inference_mode()
    def forward(self, images: torch.Tensor, batch_size: int) -> None:
        """Runs the network over images."""
        for batch in torch.split(images, batch_size):
            self.module(batch)

    def __call__(self) -> None:
        """Runs the network over all scored images."""
        self.forward(self.images, self.batch_size)


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def best_of(times: int, work: Callable[[], object]) -> float:
    """Least wall-clock seconds of several calls."""
    return min(seconds(work) for _ in range(times))


class Table:
    """Named rows of named columns; a cell collects values, one a seed, and shows their mean and standard deviation.

    Args:
        title: First column's head.
        columns: The other heads, and how to format a value.
    """

    def __init__(self, title: str, columns: Mapping[str, str]) -> None:
        self._title = title
        self._columns = columns
        self._rows: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, **values: float) -> None:
        """Adds a value to some cells of a row and says so at once."""
        unknown = set(values) - set(self._columns)
        if unknown:
            raise KeyError(f"the table has no column {', '.join(sorted(unknown))}")
        cells = self._rows.setdefault(row, {name: [] for name in self._columns})
        for name, value in values.items():
            cells[name].append(value)
        shown = ", ".join(f"{name} {value:{self._columns[name]}}" for name, value in values.items())
        print(f"  {row}: {shown}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        """The table in Markdown."""
        lines = [[self._title, *self._columns]]
        for row, cells in self._rows.items():
            lines.append([row, *(self._cell(cells[name], form) for name, form in self._columns.items())])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join(
            "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines
        )

    @staticmethod
    def _cell(values: Sequence[float], form: str) -> str:
        if not values:
            return ""
        mean = f"{statistics.fmean(values):{form}}"
        return f"{mean} ({statistics.stdev(values):{form}})" if len(values) > 1 else mean


class Journal:
    """Results by what they are results of, one JSON line each, so that a long run can be continued.

    Args:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # cut off when a run was killed
                    continue
                self._known[canonical_json(entry["key"])] = entry["value"]
            if text and not text.endswith("\n"):
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")

    def get_or_make(self, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the result of ``key``, from the file or made and appended to it."""
        name = canonical_json(key)
        if name not in self._known:
            self._known[name] = make()
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "value": self._known[name]}) + "\n")
        return self._known[name]


def listed(values: Iterable[int]) -> str:
    """Widths, for printing."""
    return " ".join(map(str, values))
