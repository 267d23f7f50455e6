"""Fidelity ``ptq``: weights stitched from a closed-form bank, statistics corrected; one forward pass a candidate."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from qsearch.errors import EvaluationError
from qsearch.evaluate.artifacts import ArtifactCache, default_cache
from qsearch.evaluate.bank import Bank
from qsearch.evaluate.base import make_exact, read_options
from qsearch.evaluate.engine import Engine, Guarded
from qsearch.evaluate.target import Target
from qsearch.quant.program import Plan
from qsearch.quant.schemes import activation_scheme, weight_scheme
from qsearch.types import BitConfig, Score

#: Widths that stand for "not quantized".
FLOAT_BITS = (16, 32)

ROUNDINGS = ("gptq", "nearest")
CORRECTIONS = ("mean_std", "mean", "none")

#: Candidates whose plans are kept, so that scoring another split does not correct them again.
_RECENT = 4


@dataclass(frozen=True, slots=True)
class PTQOptions:
    """Options of ``fidelities.ptq``.

    Attributes:
        rounding: ``gptq``: closed form with Hessians of the calibration images; ``nearest``: without.
        correction: What is corrected after stitching: ``mean_std`` and ``mean`` of every channel of every layer, or
            ``none``. Power-of-two scales take the mean only.
        correction_images: Calibration images that a candidate is corrected on.
        max_cache_gb: Memory for values that candidates share, GB.
    """

    rounding: str = "gptq"
    correction: str = "mean_std"
    correction_images: int = 256
    max_cache_gb: float = 2.0

    def __post_init__(self) -> None:
        check_common(self)


def check_common(options: Any) -> None:
    """Checks the options that ``ptq`` and ``brecq`` have in common.

    Raises:
        ValueError: One is out of range.
    """
    for name, known in (("rounding", ROUNDINGS), ("correction", CORRECTIONS)):
        if getattr(options, name) not in known:
            raise ValueError(f"{name} is {getattr(options, name)!r}, not one of {', '.join(known)}")
    if options.correction_images <= 0 or options.max_cache_gb < 0:
        raise ValueError("correction_images must be positive, max_cache_gb not negative")


class PTQEvaluator:
    """Post-training quantization without iterations.

    Every layer is rounded once at every width, in closed form on float inputs (GPTQ, Frantar et al. 2022); a candidate
    takes its layers from that bank. Then, layer by layer, mean and deviation of every channel are brought back to those
    of the float network; held-out calibration images decide whether the corrected candidate is kept.

    Args:
        target: Network and data.
        options: ``fidelities.ptq`` of the study file.
        device: Where to compute.
        seed: Not used: nothing is random.
        cache: Where artifacts are kept; by default the user's.
    """

    name = "ptq"
    version = 2

    def __init__(
        self,
        target: Target,
        options: Mapping[str, Any],
        device: torch.device,
        seed: int,
        cache: ArtifactCache | None = None,
    ) -> None:
        self.options = read_options(self.options_type(), options, f"fidelities.{self.name}")
        make_exact(device)
        self.target = target.to(device)
        self.device = device
        self.seed = seed
        self.cache = cache or default_cache()
        self.engine = Engine(self.target, device, self.options.correction_images, int(self.options.max_cache_gb * 1e9))
        self._recent: OrderedDict[BitConfig, Guarded] = OrderedDict()

    @classmethod
    def options_type(cls) -> type[Any]:
        """Dataclass of the options."""
        return PTQOptions

    @cached_property
    def bank(self) -> Bank:
        """Quantized weights and activation grids."""
        quantizer = self.target.quantizer
        return Bank(
            self.engine,
            weight_scheme(quantizer),
            activation_scheme(quantizer),
            self.options.rounding,
            self.cache,
        )

    def settings(self) -> dict[str, Any]:
        """Conventions in force."""
        graph, options = self.target.graph, asdict(self.options)
        options.pop("max_cache_gb")  # never changes a result
        return {
            **options,
            **self.bank.settings,
            "bias": "float32",
            "batch_norm": "folded",
            "equalized": self.target.quantizer.equalize,
            "input_image": "quantized like any tensor",
            "logits": "not quantized",
            "16_and_32_bits": "not quantized",
            "accumulator": "exact integers",
            "chunk": self.engine.chunk,
            # The digest of the network does not know where quantizers stand.
            "tensors": [[t.node, "unsigned" if t.unsigned else "signed", t.group] for t in graph.tensors],
            "layers": [[layer.name, layer.tensor] for layer in graph.layers],
        }

    def warm_up(self) -> None:
        """Makes everything that does not depend on the candidate: the bank, and statistics of the float network."""
        self.bank.plan(0, 8)
        if self.target.graph.tensors:
            self.bank.grid(0, 8)
        self.engine.warm_up()

    def evaluate(self, config: BitConfig, split: str) -> Score:
        """Scores one configuration; see :class:`qsearch.evaluate.base.Evaluator`."""
        self.engine.split(split)  # before anything is quantized for nothing
        return self.engine.score(self.prepare(config).plan, split)

    def evaluate_float(self, split: str) -> Score:
        """Scores the float network on a split.

        Raises:
            EvaluationError: There is no such split, or the logits are not finite.
        """
        return self.engine.score(Plan(), split)

    def prepare(self, config: BitConfig) -> Guarded:
        """Quantizes and corrects a configuration.

        Raises:
            EvaluationError: It does not fit the network.
        """
        if config in self._recent:
            self._recent.move_to_end(config)
            return self._recent[config]
        found = self._judge(config)
        self._recent[config] = found
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return found

    def _judge(self, config: BitConfig) -> Guarded:
        """Quantizes, corrects, and keeps what is best on held-out calibration images."""
        return self.judge(self.plan(config))

    def judge(self, plan: Plan) -> Guarded:
        """Corrects a plan as the options say, where that helps."""
        if self.options.correction == "none":
            return self.engine.uncorrected(plan)
        return self.engine.corrected(plan, deviation=self.corrects_deviation)

    @property
    def corrects_deviation(self) -> bool:
        """Whether a correction changes scales, too: powers of two must stay what they are."""
        return self.options.correction == "mean_std" and not self.target.quantizer.weights.power_of_two

    def plan(self, config: BitConfig) -> Plan:
        """Stitches a configuration from the bank."""
        check_fits(self.target, config)
        layers = {i: self.bank.plan(i, bits) for i, bits in enumerate(config.weights) if bits not in FLOAT_BITS}
        grids = {t: self.bank.grid(t, b) for t, b in tensor_bits(self.target, config).items() if b not in FLOAT_BITS}
        return Plan(layers, grids)


def check_fits(target: Target, config: BitConfig) -> None:
    """Checks the number of layers.

    Raises:
        EvaluationError: It is another one.
    """
    if len(config.weights) != len(target.graph.layers):
        raise EvaluationError(
            f"the configuration has {len(config.weights)} layers, the network {len(target.graph.layers)}",
            "was it made for this network?",
        )


def tensor_bits(target: Target, config: BitConfig) -> dict[int, int]:
    """Width of every activation tensor: tensors that no layer reads take the width of their tie group.

    Raises:
        EvaluationError: Layers of one tie group disagree.
    """
    graph = target.graph
    of_group: dict[int, tuple[int, str]] = {}
    for layer, bits in zip(graph.layers, config.activations, strict=True):
        group = graph.tensors[layer.tensor].group
        first_bits, first_name = of_group.setdefault(group, (bits, layer.name))
        if first_bits != bits:
            raise EvaluationError(
                f"layers {first_name!r} and {layer.name!r} share an activation width, but have {first_bits} and {bits}",
                "they read one tensor, or tensors tied through a residual add",
            )
    return {t.index: of_group[t.group][0] for t in graph.tensors if t.group in of_group}
