"""AdaRound variables: a soft choice between two neighbouring codes for every weight (Nagel et al. 2020).

With position p = W / s + z on the grid and lower neighbour f, the soft code is ``clip(f + h(V), low, high)`` with
``h(V) = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1)``, zeta = 1.1, gamma = -0.1. Hard rounding goes up where V is
not negative.

As f is whole, the clipped soft code equals ``base + room * h(V)`` with base = clip(f), room = clip(f + 1) - clip(f),
so the soft weight is ``a + b * h(V)``: two constants a weight, and a derivative in closed form. All variables of a
unit stand in one flat tensor, so that a step costs the same few operations however many layers the unit has.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from qsearch.errors import EvaluationError
from qsearch.quant.grids import WeightGrid

ZETA = 1.1
GAMMA = -0.1

#: A warm start begins this share of the way from its code to the float weight ...
START_TOWARDS_FLOAT = 0.25
#: ... but stays this far on its own side of the middle at most, so that hard rounding gives the code back.
START_REACH = 0.45

#: Weights that lie on a grid point up to float noise must not flip their floor between machines.
FLOOR_GUARD = 1e-7

#: Where h(V) is not clipped, sigmoid' is at least this (its value at h = 0 and at h = 1, less float noise).
_LEAST_SLOPE = -GAMMA * ZETA / (ZETA - GAMMA) ** 2 - 1e-6


class RoundingVariables:
    """The rounding of all weights of a unit.

    Attributes:
        v: V of all weights, flat, float32; what an optimizer moves.
        weights: Soft weight by layer index: leaves that share the memory of one flat tensor, refreshed by
            :meth:`refresh`, and whose gradients :meth:`backward` takes on to ``v``.

    Args:
        weights: Float weights ``[rows, ...]`` by layer index, all on one device.
        grids: Uniform grid by layer index; scales and zeros stay fixed.
        start: Codes to begin with, by layer index; a layer that is missing begins at its float weights. A code may
            be further than one step from the float weight; then the choice is between it and its neighbour in the
            direction of the float weight (none, if the grid ends there).
        dtype: Of :attr:`weights` and their gradients; ``v`` and all arithmetic on it are float32.

    Raises:
        EvaluationError: A grid is not uniform.
    """

    def __init__(
        self,
        weights: Mapping[int, torch.Tensor],
        grids: Mapping[int, WeightGrid],
        start: Mapping[int, torch.Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        parts: dict[str, list[torch.Tensor]] = {"v": [], "base": [], "room": [], "a": [], "b": []}
        self._shapes: dict[int, torch.Size] = {}
        for index, weight in weights.items():
            codes = None if start is None or index not in start else start[index].to(weight.device)
            for name, value in _variables(weight.detach(), grids[index], codes).items():
                parts[name].append(_flatten(value))
            self._shapes[index] = weight.shape
        flat = {name: torch.cat(values) for name, values in parts.items()}
        self.v = flat["v"].requires_grad_(True)
        self._base, self._room, self._a, self._b = (flat[name] for name in ("base", "room", "a", "b"))
        self._sigmoid = torch.empty_like(self._a)
        self._h = torch.empty_like(self._a)
        self._exact = torch.empty_like(self._a)
        self._soft = torch.empty_like(self._a, dtype=dtype)
        self._gradient = torch.zeros_like(self._soft)
        self.v.grad = torch.zeros_like(self._a)
        self.weights = {i: nn.Parameter(view) for i, view in self._split(self._soft).items()}
        for index, view in self._split(self._gradient).items():
            self.weights[index].grad = view
        self.refresh()

    def _split(self, flat: torch.Tensor) -> dict[int, torch.Tensor]:
        """Views of a flat tensor in the shape of each layer's weight (4-D ones in channels-last order)."""
        pieces = torch.split_with_sizes(flat, [shape.numel() for shape in self._shapes.values()])
        return {
            index: _unflatten(piece, shape) for piece, (index, shape) in zip(pieces, self._shapes.items(), strict=True)
        }

    @torch.no_grad()
    def refresh(self) -> None:
        """Recomputes :attr:`weights` from ``v`` and forgets their gradients."""
        torch.sigmoid(self.v, out=self._sigmoid)
        torch.mul(self._sigmoid, ZETA - GAMMA, out=self._h).add_(GAMMA).clamp_(0.0, 1.0)
        self._soft.copy_(torch.addcmul(self._a, self._b, self._h, out=self._exact))
        self._gradient.zero_()

    @torch.no_grad()
    def backward(self, penalty_weight: float = 0.0, beta: float | None = None) -> None:
        """Turns the gradients of :attr:`weights` into ``v.grad``, and adds the penalty's.

        The penalty is ``penalty_weight * sum(1 - |2 h - 1| ** beta)``, zero when every choice is made, over the
        weights that have a choice (f_reg of AdaRound).

        Args:
            penalty_weight: lambda.
            beta: Exponent, 2 or more; None leaves the penalty out.
        """
        gradient = torch.mul(self._gradient, self._b, out=self._exact)
        if beta is not None and penalty_weight:
            u = self._h.mul_(2.0).sub_(1.0)  # h itself is not needed again before the next refresh
            slope = u.abs().pow_(beta - 2.0).mul_(u).mul_(self._room)
            gradient.sub_(slope, alpha=2.0 * beta * penalty_weight)
        sigmoid = self._sigmoid
        torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1.0, out=sigmoid)
        torch.threshold_(sigmoid, _LEAST_SLOPE, 0.0)
        self.v.grad = torch.mul(gradient, sigmoid, out=self.v.grad).mul_(ZETA - GAMMA)

    def penalty(self, beta: float) -> float:
        """``sum(1 - |2 h - 1| ** beta)`` over the weights that have a choice."""
        return float((self._room * (1 - (2 * self.h() - 1).abs().pow(beta))).sum())

    @torch.no_grad()
    def h(self) -> torch.Tensor:
        """Rectified sigmoid of V, in [0, 1], flat."""
        return torch.clamp(torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)

    @torch.no_grad()
    def hard_codes(self) -> dict[int, torch.Tensor]:
        """Codes with every choice made, by layer index, as whole float tensors in the shape of the weights."""
        codes = torch.addcmul(self._base, self._room, (self.v >= 0).to(self._room.dtype))
        return {index: view.contiguous() for index, view in self._split(codes).items()}

    @torch.no_grad()
    def open_share(self) -> float:
        """Share of the choices not made yet: ``|h - 1/2| < 0.4``, among the weights that have a choice."""
        choices = float(self._room.sum())
        return float(((self.h() - 0.5).abs() < 0.4).mul(self._room).sum()) / choices if choices else 0.0


def _variables(weight: torch.Tensor, grid: WeightGrid, codes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The constants and the first V of one layer, each in the shape of ``weight``."""
    if not hasattr(grid, "columns"):
        raise EvaluationError(
            f"the rounding on a {type(grid).__name__} cannot be learned: its values are not evenly spaced",
            "choose a symmetric, narrow or affine weight grid for brecq, or evaluate with ptq",
        )
    rows = weight.reshape(weight.shape[0], -1)
    scale, zero = (part.to(weight.device).double().expand_as(rows) for part in grid.columns(rows.shape[1]))
    position = rows.double() / scale + zero
    if codes is None:
        floor = torch.floor(position + FLOOR_GUARD)
        h = (position - floor).clamp(0.0, 1.0 - 1e-6)
    else:
        code = codes.reshape(rows.shape).double()
        distance = position - code
        up = distance >= 0
        floor = torch.where(up, code, code - 1)
        way = (START_TOWARDS_FLOAT * distance).clamp(-START_REACH, START_REACH)
        h = torch.where(up, way, 1 + way)
    base = floor.clamp(grid.low, grid.high)
    room = (floor + 1).clamp(grid.low, grid.high) - base
    values = {
        "v": -torch.log((ZETA - GAMMA) / (h - GAMMA) - 1),
        "base": base,
        "room": room,
        "a": (base - zero) * scale,
        "b": room * scale,
    }
    return {name: value.to(torch.float32).reshape(weight.shape) for name, value in values.items()}


def _flatten(weight: torch.Tensor) -> torch.Tensor:
    """One dimension, channels last: the order in which convolutions read fastest."""
    return (weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight).reshape(-1)


def _unflatten(flat: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Inverse of :func:`_flatten`, a view."""
    if len(shape) != 4:
        return flat.view(shape)
    rows, channels, height, width = shape
    return flat.view(rows, height, width, channels).permute(0, 3, 1, 2)


def beta_at(step: int, steps: int, warm_up: float, start: float = 20.0, end: float = 2.0) -> float | None:
    """Exponent of the penalty at a step: None during the warm-up, then linear from ``start`` to ``end``."""
    first = int(warm_up * steps)
    if step < first:
        return None
    progress = (step - first) / max(1, steps - 1 - first)
    return start + (end - start) * progress
