"""Values at cuts: what decides them, how they are kept, and how many."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized import make, random_plan

from qsearch.quant.grids import ActivationGrid
from qsearch.quant.prefix import CUT_SHARES, PrefixCache, choose_cuts, code_type, expand, shrink, signature
from qsearch.quant.program import Plan, Program, Value
from qsearch.quant.schemes import WeightScheme


def value(size: int, step: float | None = None) -> Value:
    return Value(torch.zeros(size, dtype=torch.uint8), step)


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(100)
    cache.put("a", [value(40)])
    cache.put("b", [value(20), value(20)])
    assert cache.bytes == 80
    cache.get("a")
    cache.put("c", [value(30)])
    assert cache.find(["a", "b", "c"]) == 2
    assert cache.find(["a", "b"]) == 0
    assert cache.find(["b"]) is None
    assert cache.hits == 2
    assert cache.bytes == 70
    cache.put("a", [value(1)])  # is there already
    assert cache.get("a")[0].data.nbytes == 40
    cache.put("d", [value(101)])
    assert cache.find(["d"]) is None, "too large to be kept at all"
    assert cache.find(["a"]) == 0, "and nothing had to go for it"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=40), st.integers(0, 100))
def test_the_bound_holds_always(puts: list[tuple[int, int]], bound: int) -> None:
    cache = PrefixCache(bound)
    for key, size in puts:
        cache.put(key, [value(size)])
        held = sum(v.data.nbytes for k in range(10) if cache.find([k]) is not None for v in cache.get(k))
        assert held == cache.bytes <= bound


def test_the_last_cut_that_is_known_is_found() -> None:
    cache = PrefixCache(100)
    for key in "ac":
        cache.put(key, [value(1)])
    assert cache.find(["a", "b", "c", "d"]) == 2
    assert cache.find(["x"]) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.integers(0, 255), st.booleans(), st.integers(0, 10**6))
def test_codes_are_kept_exactly(bits: int, zero: int, symmetric: bool, seed: int) -> None:
    high = 2**bits - 1
    zero = 0 if symmetric else min(zero, high)
    low = -(2 ** (bits - 1)) if symmetric else 0
    grid = ActivationGrid(bits, 0.1, zero, low, high)
    ends = grid.low - grid.zero_point, grid.high - grid.zero_point
    codes = torch.randint(ends[0], ends[1] + 1, (50,), generator=torch.Generator().manual_seed(seed)).float()
    codes[:2] = torch.tensor([float(end) for end in ends])
    small = shrink(Value(codes, grid.scale), *ends)
    one_byte = any(first <= ends[0] and ends[1] <= first + 255 for first in (0, -128))
    assert small.data.itemsize == (1 if one_byte else 2)
    assert small.data.dtype == code_type(*ends)
    again = expand(small)
    assert again.data.dtype == torch.float32
    assert again.step == grid.scale
    assert torch.equal(again.data, codes)


def test_real_numbers_are_kept_as_they_are() -> None:
    values = Value(torch.tensor([0.3, -1e9]))
    assert shrink(values, None, None) is values
    assert shrink(values, 0, 255) is values, "a value that was not encoded"
    assert expand(values) is values
    assert code_type(None, None) == code_type(-40_000, 0) == torch.float32


@pytest.mark.parametrize(
    "name", ["residual", "digits", "split", "resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "sums"]
)
def test_cuts_lie_before_their_share_of_the_work(name: str) -> None:
    graph, _ = make(name)
    program = Program(graph)
    cuts = choose_cuts(program)
    assert len(cuts) == len(set(cuts)) <= len(CUT_SHARES)
    assert set(cuts) <= set(program.cuts())
    macs = {node: layer.macs for node, layer in zip(graph.layer_nodes, graph.layers, strict=True)}
    total = sum(macs.values())
    done = [sum(m for n, m in macs.items() if program.position[n] <= program.position[cut]) / total for cut in cuts]
    assert done == sorted(done)
    assert all(0 < share <= CUT_SHARES[-1] for share in done)
    if name in ("resnet18", "mobilenet_v2"):  # deep enough
        assert len(cuts) == len(CUT_SHARES)
        assert {t.node for t in graph.tensors} & set(cuts), "codes take a quarter of the memory of real numbers"


@torch.no_grad()
def test_signatures_name_all_that_decides_a_value_and_nothing_else() -> None:
    graph, x = make("residual")
    program = Program(graph)

    def plan(seed: int) -> Plan:
        found = random_plan(program, x, random.Random(seed), (2, 3, 4), weights=WeightScheme(range="min_max"))
        named = {i: type(p)(p.weight, p.multiplier, p.bias, f"seed {seed}") for i, p in found.layers.items()}
        return Plan(named, found.grids)

    first, second = plan(0), plan(1)
    cut = choose_cuts(program)[-1]
    last = program.position[cut]
    before = signature(program, first, cut)
    assert before == signature(program, plan(0), cut)
    assert before != signature(program, second, cut)
    assert before != signature(program, first, choose_cuts(program)[0])
    for index, node in enumerate(graph.layer_nodes):
        changed = signature(program, first.with_layers({index: second.layers[index]}), cut)
        assert (changed != before) == (program.position[node] <= last)
        floated = Plan({i: p for i, p in first.layers.items() if i != index}, first.grids)
        assert (signature(program, floated, cut) != before) == (program.position[node] <= last)
    for tensor in graph.tensors:
        grid = ActivationGrid(8, 0.123, 0)
        changed = signature(program, Plan(first.layers, {**first.grids, tensor.index: grid}), cut)
        assert (changed != before) == (program.position[tensor.node] <= last)
    hash(before)


@torch.no_grad()
def test_a_plan_that_does_not_say_what_it_is_has_no_signature() -> None:
    graph, x = make("residual")
    program = Program(graph)
    plan = random_plan(program, x, random.Random(0), (4,), weights=WeightScheme(range="min_max"))
    assert signature(program, plan, choose_cuts(program)[-1]) is None
    assert signature(program, Plan({}, plan.grids), choose_cuts(program)[-1]) is not None
