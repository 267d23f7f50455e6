"""Block reconstruction: the rounding of all weights of a unit is learned so that the unit's output stays (BRECQ)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx
from torch.func import functional_call

from qsearch.models import QuantGraph, Unit
from qsearch.quant.adaround import SoftRounding, beta_at
from qsearch.quant.grids import ActivationGrid, WeightGrid
from qsearch.quant.network import ActivationQuantizer, quantizer_name


@dataclass(frozen=True, slots=True)
class Schedule:
    """Hyper-parameters of a reconstruction.

    The paper's lr of 0.001 and lambda of 0.01 belong to 20,000 steps. At 200 steps they leave one choice in six open
    on ResNet-20 at 2 bits; the defaults here leave one in fifty.

    Attributes:
        iterations: Steps of Adam. ``iterations * lr`` must exceed about 5, or choices are left open.
        lr: Learning rate of V.
        batch_size: Calibration images a step.
        round_weight: lambda, weight of the rounding penalty.
        warm_up: Share of the steps without penalty.
    """

    iterations: int = 200
    lr: float = 0.1
    batch_size: int = 32
    round_weight: float = 0.1
    warm_up: float = 0.2


def output_error(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted squared error, summed over channels and averaged over the rest (BRECQ, eq. 10).

    Args:
        outputs: ``[n, channels, ...]``.
        targets: Same shape.
        weights: Fisher weights, same shape.
    """
    return (weights * (outputs - targets).square()).sum(1).mean()


def reconstruct_unit(
    graph: QuantGraph,
    unit: Unit,
    module: fx.GraphModule,
    weight_grids: Mapping[int, WeightGrid],
    activation_grids: Mapping[int, ActivationGrid],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    fisher: torch.Tensor,
    schedule: Schedule,
    generator: torch.Generator,
) -> dict[int, torch.Tensor]:
    """Learns the rounding of every layer of a unit; never returns one with a larger error than nearest rounding.

    Args:
        graph: The network.
        unit: The unit.
        module: The unit cut out of the network (:func:`qsearch.quant.network.extract_unit`), on the device of
            ``inputs``.
        weight_grids: Grid by layer index, for the layers of the unit.
        activation_grids: Grid by activation-tensor index, for the quantizers inside ``module``.
        inputs: Values entering the unit in the float network, ``[n, ...]``.
        targets: Values leaving it, ``[n, channels, ...]``.
        fisher: Weights, shape of ``targets``.
        schedule: Hyper-parameters.
        generator: CPU generator that draws the batches.

    Returns:
        Integer codes (as float tensors) by layer index.
    """
    for name, child in module.named_modules():
        if isinstance(child, ActivationQuantizer):
            child.grid = next((g for t, g in activation_grids.items() if quantizer_name(t) == name), None)
    names = {i: graph.layers[i].name for i in unit.layers}
    floats = {i: module.get_parameter(f"{name}.weight").detach() for i, name in names.items()}
    rounding = {i: SoftRounding(floats[i], weight_grids[i]) for i in unit.layers}

    def run(weights: Mapping[int, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = functional_call(module, {f"{names[i]}.weight": w for i, w in weights.items()}, (images,))
        return result

    optimizer = torch.optim.Adam([r.v for r in rounding.values()], lr=schedule.lr)
    with torch.enable_grad():
        for step in range(schedule.iterations):
            batch = torch.randint(0, len(inputs), (min(schedule.batch_size, len(inputs)),), generator=generator)
            batch = batch.to(inputs.device)
            loss = output_error(
                run({i: r.soft() for i, r in rounding.items()}, inputs[batch]), targets[batch], fisher[batch]
            )
            beta = beta_at(step, schedule.iterations, schedule.warm_up)
            if beta is not None:
                penalties = torch.stack([r.penalty(beta) for r in rounding.values()])
                loss = loss + schedule.round_weight * penalties.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    learned = {i: r.hard_codes() for i, r in rounding.items()}
    nearest = {i: weight_grids[i].encode(floats[i]) for i in unit.layers}

    @torch.no_grad()
    def error(codes: Mapping[int, torch.Tensor]) -> float:
        weights = {i: weight_grids[i].decode(c) for i, c in codes.items()}
        chunks = zip(*(torch.split(t, 256) for t in (inputs, targets, fisher)), strict=True)
        return sum(float(output_error(run(weights, x), z, f)) * len(x) for x, z, f in chunks)

    return learned if error(learned) <= error(nearest) else nearest
