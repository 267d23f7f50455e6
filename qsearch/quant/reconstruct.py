"""Block reconstruction: the rounding of all weights of a unit is learned so that the unit's output stays.

BRECQ (Li et al. 2021) with the additions of QDrop (Wei et al. 2022): activation steps learned together with the
rounding, and a part of the activations left float meanwhile. What is learned is kept only where it holds on images that
were not learned from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import fx, nn

from qsearch.errors import EvaluationError, nearest
from qsearch.models import QuantGraph, Unit
from qsearch.quant.adam import Adam
from qsearch.quant.adaround import RoundingVariables, beta_at
from qsearch.quant.grids import ActivationGrid, WeightGrid
from qsearch.quant.losses import output_error, output_gradient
from qsearch.quant.lsq import LearnedStep
from qsearch.quant.network import quantizer_name
from qsearch.quant.qdrop import ElementDrop, TrainingQuantizer

#: Images of one forward pass over the held-out part.
HELD_OUT_BATCH = 128

#: Arithmetic of a unit's forward and backward passes.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Stream(Protocol):
    """Values of one node for all calibration images; a tensor is one, and so may be a file of them."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: torch.Tensor, /) -> torch.Tensor:
        """Values ``[k, ...]`` of the images at the positions ``index``, int64 ``[k]``."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Hyper-parameters of a reconstruction.

    The defaults of a paper's lr belong to its number of steps: h(V) saturates at ``|V| = ln 11``, and Adam moves V by
    about lr a step, so ``iterations * lr`` must exceed about 5, or choices are left open.

    Attributes:
        iterations: Steps of Adam.
        lr: Learning rate of V.
        batch_size: Calibration images a step.
        round_weight: lambda, weight of the rounding penalty.
        warm_up: Share of the steps without penalty.
        activation_lr: Learning rate of activation steps (LSQ, cosine to 0); 0 leaves them as they are.
        drop_prob: Probability that an activation element is quantized (QDrop takes 0.5); 1 drops none.
        patience: Checks without improvement after which to stop; 0 never stops early. Checks before the penalty
            sets in do not count: until then nothing asks for choices to be made.
        check_every: Steps between two checks of the held-out loss with hard rounding; 0 checks at the end only.
        precision: ``float32``, or ``bfloat16`` for the unit's forward and backward passes; the variables, their
            optimizer and every loss that decides are float32 all the same. Worth it where the processor has bfloat16
            arithmetic, slow elsewhere, and never chosen by itself, for results must not depend on the processor.

    Raises:
        EvaluationError: A value is out of its range.
    """

    iterations: int
    lr: float
    batch_size: int = 32
    round_weight: float = 0.01
    warm_up: float = 0.2
    activation_lr: float = 0.0
    drop_prob: float = 1.0
    patience: int = 0
    check_every: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        least = {
            "iterations": 0,
            "batch_size": 1,
            "round_weight": 0,
            "activation_lr": 0,
            "patience": 0,
            "check_every": 0,
        }
        for name, limit in least.items():
            if not getattr(self, name) >= limit:
                raise EvaluationError(f"{name} is {getattr(self, name)}", f"give {limit} or more")
        if not self.lr > 0:
            raise EvaluationError(f"lr is {self.lr}", "give a positive learning rate")
        if not (0 <= self.warm_up < 1 and 0 <= self.drop_prob <= 1):
            raise EvaluationError(
                f"warm_up is {self.warm_up} and drop_prob {self.drop_prob}", "they are shares: [0, 1) and [0, 1]"
            )
        if self.precision not in PRECISIONS:
            raise EvaluationError(f"precision is {self.precision!r}", nearest(self.precision, PRECISIONS))
        if self.patience and not self.check_every:
            raise EvaluationError("patience counts checks, but check_every is 0", "give check_every, or no patience")


@dataclass(frozen=True)
class UnitResult:
    """What was learned of one unit.

    Attributes:
        codes: Whole codes (as float tensors, shape of the weight) by layer index.
        activation_grids: Grid by activation-tensor index, with learned steps where they were learned.
        losses: Held-out loss with hard rounding of every candidate: ``nearest``, ``learned``, and ``start`` where a
            start was given. ``codes`` belong to the least.
        iterations: Steps made.
        open_share: Share of the choices that were still open when the last step was made.
    """

    codes: dict[int, torch.Tensor]
    activation_grids: dict[int, ActivationGrid]
    losses: dict[str, float]
    iterations: int
    open_share: float


def reconstruct_unit(
    graph: QuantGraph,
    unit: Unit,
    module: fx.GraphModule,
    weight_grids: Mapping[int, WeightGrid],
    activation_grids: Mapping[int, ActivationGrid],
    inputs: Stream,
    targets: Stream,
    *,
    schedule: Schedule,
    generator: torch.Generator,
    float_inputs: Stream | None = None,
    importance: Stream | None = None,
    start: Mapping[int, torch.Tensor] | None = None,
    holdout: float = 0.125,
) -> UnitResult:
    """Learns the rounding of every layer of a unit; what it returns is never worse than nearest rounding or the start.

    "Worse" is meant on the held-out images, the last ones, which are not learned from, and with every choice made:
    soft rounding often fits what no hard rounding does.

    Args:
        graph: The network.
        unit: The unit.
        module: The unit cut out of the network (:func:`qsearch.quant.network.extract_unit`); not changed. Its device
            is where everything is computed.
        weight_grids: Uniform grid by layer index; a layer of the unit that has none stays float.
        activation_grids: Grid by activation-tensor index, for the quantizers inside ``module``; tensors that have
            none stay float.
        inputs: Values entering the unit in the quantized network, ahead of the unit's own entry quantizer,
            ``[n, ...]``.
        targets: Values leaving it in the float network, ``[n, channels, ...]``.
        schedule: Hyper-parameters.
        generator: CPU generator that draws batches and dropped elements.
        float_inputs: Values entering it in the float network; needed where ``schedule.drop_prob`` is below 1.
        importance: Fisher weights in the shape of ``targets`` (:mod:`qsearch.quant.fisher`); None is plain squared
            error, the default of the published code.
        start: Codes to begin with, by layer index (:class:`RoundingVariables` says how); a layer that is missing
            begins at its float weights.
        holdout: Share of the images held out; 0 judges on the images learned from.

    Raises:
        EvaluationError: A weight grid is not uniform, or there is none; a stream is missing or of another length; or
            ``holdout`` is not a share.
    """
    streams = _Streams(inputs, targets, importance, float_inputs if schedule.drop_prob < 1 else None)
    train, held_out = _split(streams, schedule, holdout)
    layers = [i for i in unit.layers if i in weight_grids]
    if not layers:
        raise EvaluationError(f"unit {unit.name!r} has no layer with a weight grid", "leave units out that stay float")
    floats = {i: module.get_parameter(f"{graph.layers[i].name}.weight").detach() for i in layers}
    variables = RoundingVariables(floats, weight_grids, start, PRECISIONS[schedule.precision])
    bench = _Bench(graph, unit, module, variables, activation_grids, schedule, generator)

    candidates = {"nearest": _Candidate({i: weight_grids[i].encode(w) for i, w in floats.items()}, activation_grids)}
    if start is not None:
        begin = {i: start[i].to(w) if i in start else candidates["nearest"].codes[i] for i, w in floats.items()}
        candidates["start"] = _Candidate(begin, activation_grids)
    for candidate in candidates.values():
        candidate.loss = bench.error(candidate.codes, weight_grids, streams, held_out)
    best, steps = _learn(bench, streams, weight_grids, schedule, train, held_out, generator)
    candidates["learned"] = best

    # Where two are equally good, the one that was learned is the likelier to be so on other images.
    chosen = min(
        (candidates[name] for name in ("learned", "start", "nearest") if name in candidates), key=_Candidate.rank
    )
    return UnitResult(
        codes=chosen.codes,
        activation_grids=dict(chosen.activation_grids),
        losses={name: candidate.loss for name, candidate in candidates.items()},
        iterations=steps,
        open_share=variables.open_share(),
    )


@dataclass
class _Candidate:
    codes: dict[int, torch.Tensor]
    activation_grids: Mapping[int, ActivationGrid]
    loss: float = math.inf

    def rank(self) -> float:
        return self.loss if math.isfinite(self.loss) else math.inf


@dataclass(frozen=True)
class _Streams:
    """The streams of one unit."""

    inputs: Stream
    targets: Stream
    importance: Stream | None
    float_inputs: Stream | None

    def take(self, index: torch.Tensor, device: torch.device) -> _Batch:
        """Values of some images."""
        return _Batch(
            _take(self.inputs, index, device),
            _take(self.targets, index, device),
            None if self.importance is None else _take(self.importance, index, device),
            None if self.float_inputs is None else _take(self.float_inputs, index, device),
        )


class _Batch(NamedTuple):
    """Values of some images."""

    inputs: torch.Tensor
    targets: torch.Tensor
    importance: torch.Tensor | None
    float_inputs: torch.Tensor | None


def _take(stream: Stream, index: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values of some images on a device, maps with channels last: several kernels run twice as fast on that."""
    if isinstance(stream, torch.Tensor):
        index = index.to(stream.device)
        if stream.dim() == 4 and stream.is_contiguous(memory_format=torch.channels_last):
            # Indexing would lay the result out anew with channels first.
            return stream.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2).to(device)
        values = stream.index_select(0, index)
    else:
        values = stream[index]
    values = values.to(device)
    return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values


def _split(streams: _Streams, schedule: Schedule, holdout: float) -> tuple[int, torch.Tensor]:
    """Number of images to learn from (the first ones), and the positions of those to judge on."""
    if not 0 <= holdout < 1:
        raise EvaluationError(f"holdout is {holdout}", "it is the share of images held out: [0, 1)")
    if schedule.drop_prob < 1 and streams.float_inputs is None:
        raise EvaluationError("drop_prob mixes float inputs in, but there are none", "pass float_inputs, or 1.0")
    n = len(streams.inputs)
    for name in ("targets", "importance", "float_inputs"):
        stream = getattr(streams, name)
        if stream is not None and len(stream) != n:
            raise EvaluationError(f"{n} images in inputs, but {len(stream)} in {name}", "use the same images for all")
    if n == 0:
        raise EvaluationError("there are no calibration images", "give some")
    held = min(n - 1, round(holdout * n)) if holdout else 0
    return n - held, torch.arange(n - held, n) if held else torch.arange(n)


def _learn(
    bench: _Bench,
    streams: _Streams,
    grids: Mapping[int, WeightGrid],
    schedule: Schedule,
    train: int,
    held_out: torch.Tensor,
    generator: torch.Generator,
) -> tuple[_Candidate, int]:
    """Runs the schedule; returns the best hard rounding that a check saw, and the number of steps."""
    best = _Candidate({}, {}, math.nan)
    failed = steps = 0
    for batch in _batches(train, schedule, generator):
        beta = beta_at(steps, schedule.iterations, schedule.warm_up)
        bench.step(streams.take(batch, bench.device), beta, steps)
        steps += 1
        last = steps == schedule.iterations
        if last or (schedule.check_every and steps % schedule.check_every == 0):
            now = bench.candidate()
            now.loss = bench.error(now.codes, grids, streams, held_out)
            better = not best.rank() <= now.rank()
            failed = 0 if better or beta is None else failed + 1
            best = now if better or not best.codes else best
            if schedule.patience and failed >= schedule.patience:
                break
    if not best.codes:  # no step at all
        best = bench.candidate()
        best.loss = bench.error(best.codes, grids, streams, held_out)
    return best, steps


def _batches(train: int, schedule: Schedule, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Positions of each batch: all images come once before any comes again."""
    size = min(schedule.batch_size, train)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(schedule.iterations):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(train, generator=generator)])
        batch, waiting = waiting[:size], waiting[size:]
        yield batch


class _Bench:
    """Two private copies of the unit: one that learns, on the soft weights, and one that judges hard rounding."""

    def __init__(
        self,
        graph: QuantGraph,
        unit: Unit,
        module: fx.GraphModule,
        variables: RoundingVariables,
        activation_grids: Mapping[int, ActivationGrid],
        schedule: Schedule,
        generator: torch.Generator,
    ) -> None:
        self.variables = variables
        self.schedule = schedule
        self.dtype = PRECISIONS[schedule.precision]
        self.judge = copy.deepcopy(module).eval().requires_grad_(False)
        self.judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module = copy.deepcopy(self.judge).to(self.dtype)
        self.device = variables.v.device
        self._layers = {index: self.judge.get_submodule(graph.layers[index].name) for index in variables.weights}
        for index, weight in variables.weights.items():
            self.module.get_submodule(graph.layers[index].name).weight = weight
        self._drop = ElementDrop(schedule.drop_prob, generator) if schedule.drop_prob < 1 else None
        self.grids = dict(activation_grids)
        self.steps: dict[int, LearnedStep] = {}
        self.quantizers: list[TrainingQuantizer] = []
        self.entry: TrainingQuantizer | None = None
        for tensor in graph.tensors:
            if hasattr(self.module, quantizer_name(tensor.index)):
                self._put_quantizer(tensor.index, tensor.index == unit.entry_tensor)
        self.optimizer = Adam(variables.v)
        self.step_optimizers = [Adam(step.step) for step in self.steps.values()]

    def _put_quantizer(self, tensor: int, entry: bool) -> None:
        grid = self.grids.get(tensor)
        if grid is None:
            self._replace(tensor, nn.Identity())
            return
        if self.schedule.activation_lr:
            self.steps[tensor] = LearnedStep(grid, self.device)
        quantizer = TrainingQuantizer(self.steps.get(tensor) or grid.quantize, self._drop)
        self._replace(tensor, quantizer)
        self.quantizers.append(quantizer)
        if entry:
            self.entry = quantizer

    def _replace(self, tensor: int, quantizer: nn.Module) -> None:
        for module in (self.module, self.judge):
            setattr(module, quantizer_name(tensor), quantizer)

    @torch.enable_grad()
    def step(self, batch: _Batch, beta: float | None, step: int) -> None:
        """One step of every optimizer."""
        self.variables.refresh()
        mixed_in = None if batch.float_inputs is None else batch.float_inputs.to(self.dtype)
        outputs = self._training_output(batch.inputs.to(self.dtype), mixed_in)
        gradient = output_gradient(outputs.detach(), batch.targets, batch.importance)
        outputs.backward(gradient)  # type: ignore[no-untyped-call]
        self.variables.backward(self.schedule.round_weight, beta)
        self.optimizer.step(self.schedule.lr)
        cosine = (1 + math.cos(math.pi * step / self.schedule.iterations)) / 2
        for optimizer in self.step_optimizers:
            optimizer.step(self.schedule.activation_lr * cosine)
            optimizer.tensor.grad = None
        for learned in self.steps.values():
            learned.keep_positive()

    def _training_output(self, inputs: torch.Tensor, float_inputs: torch.Tensor | None) -> torch.Tensor:
        if self._drop is None or float_inputs is None:
            outputs: torch.Tensor = self.module(inputs)
            return outputs
        if self.entry is None:
            inputs = torch.where(self._drop.quantized(inputs), inputs, float_inputs)
        else:
            self.entry.float_values = float_inputs
        for quantizer in self.quantizers:
            quantizer.train()
        outputs = self.module(inputs)
        for quantizer in self.quantizers:
            quantizer.eval()
        return outputs

    def candidate(self) -> _Candidate:
        """Hard rounding and activation grids as they are now."""
        learned = {tensor: step.grid() for tensor, step in self.steps.items()}
        return _Candidate(self.variables.hard_codes(), {**self.grids, **learned})

    @torch.no_grad()
    def error(
        self,
        codes: Mapping[int, torch.Tensor],
        grids: Mapping[int, WeightGrid],
        streams: _Streams,
        images: torch.Tensor,
    ) -> float:
        """Loss of hard rounding on some images, everything quantized."""
        for index, layer in self._layers.items():
            layer.get_parameter("weight").copy_(grids[index].decode(codes[index]))
        total = 0.0
        for chunk in torch.split(images, HELD_OUT_BATCH):
            batch = streams.take(chunk, self.device)
            total += float(output_error(self.judge(batch.inputs), batch.targets, batch.importance)) * len(chunk)
        return total / len(images)
