"""The program against a plain fake-quantized module, and against integer arithmetic."""

from __future__ import annotations

import random
from collections.abc import Iterator

import nets
import pytest
import torch
import torch.nn.functional as F
from quantized import NETWORKS, SMALL, make, random_plan, tensor_samples
from reference_network import FakeQuantNetwork
from torch import nn

from qsearch.models import QuantGraph, build_graph
from qsearch.quant import program as program_module
from qsearch.quant.bank import nearest
from qsearch.quant.correction import Correction, float_moments
from qsearch.quant.grids import ActivationGrid, search_activation_grid
from qsearch.quant.program import LayerPlan, Plan, Program, Value, encode, linear
from qsearch.quant.schemes import ActivationScheme, WeightScheme

#: Found fast; which grid is best does not matter here.
WEIGHTS = (WeightScheme(range="min_max"), WeightScheme(grid="affine", range="min_max"))
ACTIVATIONS = (ActivationScheme(), ActivationScheme(grid="symmetric", range="percentile", percentile=99.0))

#: Nothing but convolutions, linear layers, ReLU, poolings, sums and copies: no value depends on its neighbours in
#: memory. Of sigmoid and SiLU, torch computes whole vectors and what is left over in different ways.
INTEGER_NETWORKS = ("digits", "residual", "split", "sums")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def distances(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    """Largest difference of every image, as a share of the range of all logits."""
    reach = float(second.max() - second.min())
    return ((first - second).abs().amax(1) / reach).tolist()


#: Concatenations and products are alike in both.
CASES = [(name, policy) for name in NETWORKS for policy in ("after_relu", "both_inputs")]
CASES = [case for case in CASES if case[1] == "after_relu" or case[0] in (*SMALL, "resnet18", "mobilenet_v2")]


@torch.no_grad()
@pytest.mark.parametrize(("name", "policy"), CASES)
def test_the_float_plan_is_the_module(name: str, policy: str) -> None:
    graph, x = make(name, policy)
    assert max(distances(Program(graph).logits(x, Plan()), graph.module(x))) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("name", "policy"), CASES)
def test_a_candidate_is_the_fake_quantized_network(name: str, policy: str) -> None:
    """Both round the same real numbers, computed in another order.

    Images agree up to float noise, unless a value of theirs lies so near the middle of two codes that the noise decides
    (`fake_quantize` also multiplies by the reciprocal of the step, where the program divides). Such a flip is a whole
    step; in a deep network it may change the prediction. Hence half of the images must agree to 1e-5, not all.
    """
    graph, x = make(name, policy)
    program = Program(graph)
    for seed in range(2 if name in SMALL else 1):
        rng = random.Random(seed)
        # Plans in which some layers and tensors stay float come second; the big networks get them all at once.
        share = 0.0 if name in SMALL and seed == 0 else 0.15
        # At 1 bit of most activations, or in a deep random network, all images have the same logits.
        least = 2 if name in SMALL else 3
        widths = tuple(range(1 if name in SMALL else least, 9))
        plan = random_plan(program, x, rng, widths, share, WEIGHTS[seed], ACTIVATIONS[seed], tuple(range(least, 9)))
        expected = FakeQuantNetwork(graph, plan)(x)
        assert float(expected.std(0).max()) > 0, "the case shows something"
        assert max(distances(expected, graph.module(x))) > 1e-2
        found = distances(program.logits(x, plan), expected)
        assert sorted(found)[len(found) // 2 - 1] < 1e-5, found


@torch.no_grad()
def test_one_bit_activations_are_the_fake_quantized_ones() -> None:
    graph, x = make("residual", n=20)
    program = Program(graph)
    for tensor in (1, 3):
        plan = random_plan(program, x, random.Random(0), (4,))
        found = search_activation_grid(tensor_samples(program, x)[tensor], 1, unsigned=True)
        plan = Plan(plan.layers, {**plan.grids, tensor: found})
        expected = FakeQuantNetwork(graph, plan)(x)
        assert float(expected.std(0).min()) > 0
        assert sorted(distances(program.logits(x, plan), expected))[14] < 1e-5


@torch.no_grad()
def test_a_configured_network_by_hand() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).eval()
    program = Program(build_graph(network, torch.zeros(2, 1, 1, 2)))
    layer = LayerPlan(torch.tensor([[2.0, 1.0], [-1.0, 2.0]]), torch.tensor([0.5, 0.25]), torch.tensor([0.0, 1.0]))
    plan = Plan({0: layer}, {0: ActivationGrid(2, 1.0, 1)})
    x = torch.tensor([[0.6, -3.0], [1.4, 5.0]]).reshape(2, 1, 1, 2)  # becomes (1, -1) and (1, 2)
    assert program.logits(x, plan).tolist() == [[0.5, 0.25], [2.0, 1.75]]
    assert program.logits(x, Plan({0: layer})).tolist()[0] == pytest.approx([0.5 * (1.2 - 3.0), 1.0 + 0.25 * -6.6])
    plan = plan.with_layers({0: layer.adjusted(torch.tensor([2.0, 1.0]), torch.tensor([1.0, -1.0]), "why")})
    assert program.logits(x, plan).tolist() == [[2.0, -0.75], [5.0, 0.75]]


@torch.no_grad()
def test_adjusting_a_layer_scales_and_shifts_its_output() -> None:
    conv = nets.randomize(nn.Conv2d(4, 6, 3, bias=False))
    x = nets.images(3, 4)
    factor, shift = torch.rand(6) + 0.5, torch.randn(6)
    for quantized in (nearest(conv.weight.detach(), 3, WeightScheme()).plan(None), LayerPlan(conv.weight, None, None)):
        changed = quantized.adjusted(factor, shift, "why")
        assert torch.equal(changed.weight, quantized.weight) == (quantized.multiplier is not None), "codes stay"
        outputs = [
            linear(conv, x, layer.weight, None)
            * (1.0 if layer.multiplier is None else layer.multiplier.reshape(-1, 1, 1))
            + (0.0 if layer.bias is None else layer.bias.reshape(-1, 1, 1))
            for layer in (quantized, changed)
        ]
        torch.testing.assert_close(outputs[1], outputs[0] * factor.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1))


def integer_output(module: nn.Module, codes: torch.Tensor, layer: LayerPlan, step: float) -> tuple[torch.Tensor, int]:
    """A layer as integer hardware computes it, and the largest sum of magnitudes that its accumulator may meet.

    Args:
        module: The layer.
        codes: Centred codes of its input, whole numbers.
        layer: Centred codes of its weight, whole numbers or (1 bit) halves.
        step: What one code of the input is worth.
    """
    assert layer.multiplier is not None
    assert torch.equal(codes, codes.round())
    doubled = layer.weight * 2
    assert torch.equal(doubled, doubled.round())
    rows = doubled.contiguous().flatten(1).long()
    if isinstance(module, nn.Conv2d):
        padding = module.padding
        if padding == "same":
            spare = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
            codes = F.pad(codes, (spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2))
        padding = 0 if isinstance(padding, str) else padding
        columns = F.unfold(codes.double(), module.kernel_size, module.dilation, padding, module.stride).long()
        n, _, positions = columns.shape
        parts = columns.reshape(n, module.groups, -1, positions)
        weights = rows.reshape(module.groups, -1, rows.shape[1])
        total = torch.einsum("gok,ngkp->ngop", weights, parts).reshape(n, -1, positions)
        most = torch.einsum("gok,ngkp->ngop", weights.abs(), parts.abs()).max()
        spans = [
            s + 2 * p for s, p in zip(codes.shape[2:], (padding, padding) if padding == 0 else padding, strict=True)
        ]
        size = [
            (span - d * (k - 1) - 1) // s + 1
            for span, d, k, s in zip(spans, module.dilation, module.kernel_size, module.stride, strict=True)
        ]
        total = total.reshape(n, -1, *size)
        shape: tuple[int, ...] = (-1, 1, 1)
    else:
        total = codes.long() @ rows.T
        most = (codes.long().abs() @ rows.T.abs()).max()
        shape = (-1,)
    accumulator = total.to(torch.float32) / 2  # exact: below 2**24, and a power of two
    output = accumulator * (layer.multiplier * step).reshape(shape)
    return output if layer.bias is None else output + layer.bias.reshape(shape), int(most)


def check_layers(graph: QuantGraph, program: Program, x: torch.Tensor, plan: Plan) -> int:
    """Compares every layer that reads codes; returns how many do."""
    values: dict[int, Value] = {}
    compared: list[int] = []

    def compare(layer: int, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        value = values[layer]
        if value.step is not None:
            expected, most = integer_output(graph.layer_module(layer), value.data, plan.layers[layer], value.step)
            assert most < 2**24, "or float32 could not hold every partial sum"
            assert torch.equal(outputs[0], expected), graph.layers[layer].name
            compared.append(layer)
        return outputs

    state = program.start(x)
    for position, step in enumerate(program.steps):
        if step.layer is not None:
            values[step.layer] = state[step.inputs[0]]
        program.advance([state], plan, position, position + 1, compare)
    return len(compared)


@torch.no_grad()
@pytest.mark.parametrize("signed", ["auto", "symmetric"])
@pytest.mark.parametrize("name", [*SMALL, "mobilenet_v2"])
def test_a_layer_is_integer_arithmetic_bit_for_bit(name: str, signed: str) -> None:
    """Plain, strided, dilated, grouped and depthwise convolutions and linear layers, before and after correction."""
    graph, x = make(name, n=3)
    program = Program(graph)
    scheme = ActivationScheme(grid=signed, range="min_max")
    for widths in ((8,), (1, 2, 3, 4, 5, 6, 7, 8)):
        for weights in WEIGHTS:
            plan = random_plan(program, x, random.Random(1), widths, weights=weights, activations=scheme)
            assert check_layers(graph, program, x, plan) == len(graph.layers)
        if name in SMALL:
            hook = Correction(program, plan, float_moments(program, [program.start(x)]), True, 1)
            program.advance([program.start(x)], plan, 0, len(program.steps), hook)
            assert check_layers(graph, program, x, plan.with_layers(hook.layers)) == len(graph.layers)


@torch.no_grad()
@pytest.mark.parametrize("name", INTEGER_NETWORKS)
def test_logits_depend_on_no_memory_order_thread_or_chunk(name: str) -> None:
    graph, x = make(name, n=5)
    program = Program(graph)
    plan = random_plan(program, x, random.Random(2), weights=WEIGHTS[0], activations=ACTIVATIONS[0])
    expected = program.logits(x, plan)
    assert torch.equal(program.logits(x.contiguous(memory_format=torch.channels_last), plan), expected)
    for size in (1, 2, 3):
        assert torch.equal(torch.cat([program.logits(part, plan) for part in x.split(size)]), expected)
    torch.set_num_threads(2)
    assert torch.equal(program.logits(x, plan), expected)


@torch.no_grad()
def test_parts_of_a_split_keep_their_codes() -> None:
    graph, x = make("split")
    program = Program(graph)
    plan = random_plan(program, x, random.Random(0))
    states = [program.start(x)]
    readers = [step for step in program.steps if step.layer in (1, 2)]
    program.advance(states, plan, 0, program.position[readers[0].node.name])
    for reader in readers:
        value = states[0][reader.inputs[0]]
        assert value.step == plan.grids[graph.layers[1].tensor].scale
        assert torch.equal(value.data, value.data.round())


@torch.no_grad()
def test_cuts_are_where_one_tensor_decides_all_that_follows() -> None:
    for name in ("residual", "split", "sums", "shufflenet_v2_x0_5"):
        graph, x = make(name)
        program = Program(graph)
        plan = random_plan(program, x, random.Random(0), weights=WEIGHTS[0])
        expected = program.logits(x, plan)
        cuts = program.cuts()
        assert cuts == sorted(cuts, key=program.position.__getitem__)
        for cut in cuts:
            state, last = program.start(x), program.position[cut] + 1
            program.advance([state], plan, 0, last)
            alone = {cut: state[cut]}
            program.advance([alone], plan, last, len(program.steps))
            assert torch.equal(program.result(alone), expected), cut
    graph, _ = make("sums")
    # From the stem on, its output lives to the end: there is one cut before the first layer, and after the last sum.
    inside = {f"convs_{i}" for i in range(3)} & set(Program(graph).cuts())
    assert not inside


@torch.no_grad()
def test_values_nobody_reads_any_more_are_let_go() -> None:
    graph, x = make("resnet18")
    program = Program(graph)
    state = program.start(x)
    most = 0
    for position in range(len(program.steps)):
        program.advance([state], Plan(), position, position + 1)
        most = max(most, len(state))
    assert most <= 3


def test_halves_go_to_even_and_ends_are_clamped() -> None:
    values = torch.tensor([-9.0, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 99.0])
    assert encode(values, ActivationGrid(3, 1.0, 2)).data.tolist() == [-2, -2, 0, 0, 0, 2, 2, 5]
    unsigned = encode(values, ActivationGrid(2, 0.5, 0))
    assert unsigned.data.tolist() == [0, 0, 0, 0, 1, 3, 3, 3]
    assert unsigned.real().tolist() == [0, 0, 0, 0, 0.5, 1.5, 1.5, 1.5]


def test_chunks_fit_the_cache_and_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(make("residual")[0])  # the largest tensors are the last block's: 6 x 8 x 8 floats, 1536 bytes
    for limit, batch, expected in ((1536 * 64, 1000, 64), (1536 * 65, 1000, 64), (1, 1000, 8), (1 << 30, 100, 64)):
        monkeypatch.setattr(program_module, "CHUNK_BYTES", limit)
        assert program.chunk_size(batch) == expected
    assert program.chunk_size(5) == 5
