"""A network pushed forward piece by piece, with its values in a store, is the network run at once."""

from __future__ import annotations

import random
from pathlib import Path

import nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized import make, random_plan
from torch import nn

from qsearch.evaluate.frontier import Frontier
from qsearch.evaluate.streams import StreamStore
from qsearch.models import build_graph
from qsearch.quant.program import Plan, Program
from qsearch.quant.schemes import WeightScheme

NETWORKS = ("residual", "digits", "pooled", "scaled", "split", "sums", "gate", "odd", "densenet", "shufflenet_v2_x0_5")
WEIGHTS = WeightScheme(range="min_max")


def last_node(program: Program) -> str:
    return str(program.steps[-1].node.all_input_nodes[0].name)


def logits_of(frontier: Frontier, program: Program) -> torch.Tensor:
    return frontier.stream(last_node(program))[torch.arange(len(frontier._images))]


@torch.no_grad()
@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("policy", ["after_relu", "both_inputs"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_a_straight_run(name: str, policy: str, limit: int, tmp_path: Path) -> None:
    """Stopped before every unit, as reconstruction does; also where sizes and halves of a split are on the way."""
    graph, x = make(name, policy, n=5)
    program = Program(graph)
    stops = sorted(min(program.position[node] for node in unit.nodes) for unit in graph.units)
    for plan in (Plan(), random_plan(program, x, random.Random(0), (3, 5), weights=WEIGHTS)):
        expected = torch.cat([program.logits(part, plan) for part in x.split(2)])
        with StreamStore(limit, tmp_path) as store:
            frontier = Frontier(program, store, "a", x, 2)
            for stop in [*stops, len(program.steps)]:
                frontier.advance(plan, stop)
                assert frontier.position == stop
            if plan.layers:
                assert torch.equal(logits_of(frontier, program), expected)
            else:  # parts of a split lie differently in memory once they were stored, which moves float sums
                torch.testing.assert_close(logits_of(frontier, program), expected, rtol=1e-5, atol=1e-5)
            frontier.discard()
            assert store.resident_bytes == store.spilled_bytes == 0


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["residual", "split", "sums", "odd"]),
    stops=st.lists(st.integers(1, 60), max_size=6),
    chunk=st.integers(1, 6),
)
def test_it_may_be_stopped_anywhere(name: str, stops: list[int], chunk: int) -> None:
    graph, x = make(name, n=5)
    program = Program(graph)
    with torch.no_grad():
        plan = random_plan(program, x, random.Random(0), (3, 5), weights=WEIGHTS)
        expected = torch.cat([program.logits(part, plan) for part in x.split(chunk)])
    with StreamStore(1 << 30) as store:
        frontier = Frontier(program, store, "a", x, chunk)
        for stop in [*sorted(min(stop, len(program.steps)) for stop in stops), len(program.steps)]:
            frontier.advance(plan, stop)
        assert torch.equal(logits_of(frontier, program), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["residual", "sums", "pooled", "split"])
def test_streams_are_the_values_of_live_nodes(name: str) -> None:
    """Real values, whether they are kept as codes or not."""
    graph, x = make(name, n=5)
    program = Program(graph)
    plan = random_plan(program, x, random.Random(0), (3, 5), weights=WEIGHTS)
    with StreamStore(1 << 30) as store:
        frontier = Frontier(program, store, "a", x, 2)
        for unit in graph.units:
            first = min(program.position[node] for node in unit.nodes)
            frontier.advance(plan, first)
            states = [program.start(part) for part in x.split(2)]
            program.advance(states, plan, 0, first)
            stream = frontier.stream(unit.entry)
            assert len(stream) == 5
            index = torch.tensor([4, 0, 0, 3])
            expected = torch.cat([state[unit.entry].real() for state in states])[index]
            assert torch.equal(stream[index], expected)


@torch.no_grad()
@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("name", ["residual", "sums", "split", "gate", "pooled"])
def test_a_grid_may_be_found_after_its_tensor_was_stored(name: str, limit: int, tmp_path: Path) -> None:
    """What a unit quantizes is handed on as it is until the unit has learned its steps."""
    graph, x = make(name, n=5)
    program = Program(graph)
    plan = random_plan(program, x, random.Random(0), (3, 5), weights=WEIGHTS)
    with StreamStore(limit, tmp_path) as store:
        frontier = Frontier(program, store, "a", x, 2)
        known: dict[int, object] = {}
        for unit in sorted(graph.units, key=lambda unit: min(program.position[n] for n in unit.nodes)):
            first = min(program.position[node] for node in unit.nodes)
            frontier.advance(Plan(plan.layers, known), first)  # type: ignore[arg-type]
            readers = {graph.layers[layer].tensor for layer in unit.layers}
            known.update({t: plan.grids[t] for t in readers})
            if unit.entry_tensor is not None and unit.entry_tensor not in readers:
                known[unit.entry_tensor] = plan.grids[unit.entry_tensor]
        frontier.advance(plan, len(program.steps))
        expected = torch.cat([program.logits(part, plan) for part in x.split(2)])
        if name != "gate":  # there an average is taken of a tensor before its unit is reached
            torch.testing.assert_close(logits_of(frontier, program), expected, rtol=1e-5, atol=1e-5)
        else:
            assert logits_of(frontier, program).shape == expected.shape


def chain(depth: int) -> nn.Module:
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(depth)]
    return nets.randomize(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *blocks, nets.Head(4)))


def most_bytes(network: nn.Module, x: torch.Tensor, limit: int, folder: Path) -> int:
    """The most that a store holds while the network is pushed forward layer by layer."""
    program = Program(build_graph(network, x[:2]))
    most = 0
    with StreamStore(limit, folder) as store:
        frontier = Frontier(program, store, "a", x, 4)
        for position in range(1, len(program.steps) + 1):
            frontier.advance(Plan(), position)
            most = max(most, store.resident_bytes + store.spilled_bytes)
            assert store.resident_bytes <= limit
    return most


@pytest.mark.parametrize("limit", [1 << 30, 1000])
def test_trap_20_memory_follows_the_widest_place_not_the_depth(limit: int, tmp_path: Path) -> None:
    x = nets.images(12)
    shallow, deep = (most_bytes(chain(depth), x, limit, tmp_path) for depth in (2, 12))
    assert shallow == deep == 4 * 12 * 4 * 8 * 8
    # A residual block keeps its entry, too.
    assert most_bytes(nets.randomize(nets.Residual()), x, limit, tmp_path) <= 4 * 12 * 64 * (6 + 6)


def test_going_back_does_nothing() -> None:
    graph, x = make("residual")
    program = Program(graph)
    with StreamStore(1 << 30) as store:
        frontier = Frontier(program, store, "a", x, 4)
        frontier.advance(Plan(), 5)
        held = store.resident_bytes
        frontier.advance(Plan(), 3)
        assert frontier.position == 5
        assert store.resident_bytes == held


def test_two_frontiers_share_a_store() -> None:
    graph, x = make("residual")
    program = Program(graph)
    with torch.no_grad():
        plan = random_plan(program, x, random.Random(0), (2,), weights=WEIGHTS)
        expected = [program.logits(x, each) for each in (Plan(), plan)]
    with StreamStore(1 << 30) as store:
        frontiers = [Frontier(program, store, name, x, 6) for name in ("float", "quantized")]
        for position in range(1, len(program.steps) + 1):
            for frontier, each in zip(frontiers, (Plan(), plan), strict=True):
                frontier.advance(each, position)
        for frontier, logits in zip(frontiers, expected, strict=True):
            assert torch.equal(logits_of(frontier, program), logits)
