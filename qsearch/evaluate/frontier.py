"""The live values of one network for all calibration images, pushed forward unit by unit.

Nothing that is behind is kept, so memory follows the widest place of the network and not its depth; what exceeds the
limit goes to disk.
"""

from __future__ import annotations

from typing import Any

import torch

from qsearch.evaluate.streams import StreamStore, StreamWriter
from qsearch.quant.program import Plan, Program, State, Value, encode


class NodeStream:
    """Real values of one node for all images; what :class:`qsearch.quant.reconstruct.Stream` asks for.

    Args:
        store: Where they are.
        name: Their name there.
        images: How many.
        step: What a code is worth; None for real numbers.
        is_map: Whether they are stored with channels last.
    """

    def __init__(self, store: StreamStore, name: str, images: int, step: float | None, is_map: bool) -> None:
        self._store = store
        self._name = name
        self._images = images
        self._step = step
        self._is_map = is_map

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: torch.Tensor, /) -> torch.Tensor:
        rows = self._store.batch(self._name, index)
        values = rows.permute(0, 3, 1, 2) if self._is_map else rows
        return values if self._step is None else values * self._step


class Frontier:
    """Values of one network at one step.

    Args:
        program: The network.
        store: Where values are kept.
        name: Prefix of their names there.
        images: ``[n, channels, height, width]``.
        chunk: Images that are run at a time.
    """

    def __init__(self, program: Program, store: StreamStore, name: str, images: torch.Tensor, chunk: int) -> None:
        self._program = program
        self._store = store
        self._name = name
        self._images = images
        self._chunk = chunk
        self._live: dict[str, tuple[float | None, bool]] = {}  # step, and whether it is a map
        self._others: list[dict[str, Any]] = []  # what is no tensor (sizes), chunk by chunk
        self.position = 0

    def _file(self, node: str) -> str:
        return f"{self._name}/{node}"

    def _load(self, number: int, rows: torch.Tensor, plan: Plan) -> State:
        if self.position == 0:
            return self._program.start(self._images[rows].to(self._program.device))
        state: State = dict(self._others[number])
        for node, (step, is_map) in self._live.items():
            values = self._store.batch(self._file(node), rows)
            value = Value(values.permute(0, 3, 1, 2) if is_map else values, step)
            tensor = self._program.holds.get(node)
            if step is None and tensor is not None and (grid := plan.grids.get(tensor)) is not None:
                value = encode(value.data, grid)  # its grid was found after it was stored
            state[node] = value
        return state

    @torch.no_grad()
    def advance(self, plan: Plan, last: int) -> None:
        """Runs all steps before ``last``.

        Args:
            plan: What is known of the candidate so far.
            last: Index of the step to stop before.
        """
        if last <= self.position:
            return
        writers: dict[str, StreamWriter] = {}
        live: dict[str, tuple[float | None, bool]] = {}
        others: list[dict[str, Any]] = []
        images = len(self._images)
        for number, rows in enumerate(torch.split(torch.arange(images), self._chunk)):
            state = self._load(number, rows, plan)
            self._program.advance([state], plan, self.position, last)
            others.append({node: value for node, value in state.items() if not isinstance(value, Value)})
            for node, value in state.items():
                if not isinstance(value, Value):
                    continue
                if node in self._live and value.step == self._live[node][0]:
                    live[node] = self._live[node]
                    continue
                is_map = value.data.dim() == 4
                live[node] = value.step, is_map
                if node not in writers:
                    name = self._file(node) + ("/coded" if node in self._live else "")
                    writers[node] = self._store.writer(name, images)
                writers[node].add(value.data.permute(0, 2, 3, 1) if is_map else value.data)
        for node in set(self._live) - (set(live) - set(writers)):
            self._store.discard(self._file(node))
        for node in set(writers) & set(self._live):
            self._store.put(self._file(node), self._store.get(self._file(node) + "/coded"))
            self._store.discard(self._file(node) + "/coded")
        self._live, self._others, self.position = live, others, last

    def stream(self, node: str) -> NodeStream:
        """Values of a live node."""
        step, is_map = self._live[node]
        return NodeStream(self._store, self._file(node), len(self._images), step, is_map)

    def discard(self) -> None:
        """Frees everything."""
        for node in self._live:
            self._store.discard(self._file(node))
        self._live = {}
