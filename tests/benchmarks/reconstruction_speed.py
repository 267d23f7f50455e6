"""Block reconstruction of ResNet-20 on CIFAR-10: qsearch against a plain loop of the published algorithm.

    python tests/benchmarks/reconstruction_speed.py --iterations 100 300 --seeds 0 1 2

Both learn the rounding of all residual blocks one after the other, weights only, 1024 calibration images, 32 a step,
the same grids, stem and classifier at 8 bits. The plain loop is written as the published description reads (BRECQ, Li
et al. 2021): float and quantized inputs of every block are cached by running the network from the image again, modules
compute the soft weight anew at each step, one Adam tensor a layer. ``--stop-at-block`` ends a caching pass where it has
what it came for, as the published code does.

Prints seconds of caching and of learning apart, processor seconds, the ratio, and top-1 after both. Wall-clock seconds
say something only on a machine that does nothing else; processor seconds with ``--threads 1`` do anywhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import factories

from qsearch.models import QuantGraph, Unit, build_graph
from qsearch.quant.grids import WeightGrid, search_weight_grid
from qsearch.quant.network import extract_unit
from qsearch.quant.reconstruct import Schedule, reconstruct_unit

PINNED = ("conv1", "linear")


class Stopwatch:
    """Seconds and processor seconds, by phase."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.processor: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started, used = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - started
        self.processor[name] = self.processor.get(name, 0.0) + time.process_time() - used

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.wall.items())
        return f"{sum(self.wall.values()):7.1f} s ({phases}), processor {sum(self.processor.values()):7.1f} s"


class AdaRoundConv(nn.Module):
    """A convolution of the plain loop: float weight until it is reconstructed, soft while, hard afterwards."""

    def __init__(self, conv: nn.Conv2d, grid: WeightGrid) -> None:
        super().__init__()
        self.conv, self.grid = conv, grid
        self.mode = "float"
        scale, zero = grid.columns(conv.weight[0].numel())
        self.scale, self.zero = scale[:, :, None, None], zero[:, :, None, None]
        rest = conv.weight / self.scale - torch.floor(conv.weight / self.scale)
        self.v = nn.Parameter(-torch.log(1.2 / (rest + 0.1) - 1))

    def h(self) -> torch.Tensor:
        return torch.clamp(torch.sigmoid(self.v) * 1.2 - 0.1, 0, 1)

    def weight(self) -> torch.Tensor:
        if self.mode == "float":
            return self.conv.weight
        if self.mode == "nearest":
            return self.grid.quantize(self.conv.weight)
        up = self.h() if self.mode == "soft" else (self.v >= 0).float()
        codes = torch.clamp(torch.floor(self.conv.weight / self.scale) + up + self.zero, self.grid.low, self.grid.high)
        return (codes - self.zero) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight(), self.conv.bias, self.conv.stride, self.conv.padding)


class Stop(Exception):
    """A caching pass has what it came for."""


class PlainLoop:
    """The published algorithm, not optimized."""

    def __init__(self, graph: QuantGraph, grids: dict[int, WeightGrid], images: torch.Tensor, whole: bool) -> None:
        self.network = factories.cifar_resnet20()
        for index, layer in enumerate(graph.layers):
            module = graph.layer_module(index)
            if isinstance(module, nn.Conv2d) and layer.name != "conv1":
                owner = self.network.get_submodule(layer.name.rpartition(".")[0])
                number = layer.name[-1]
                conv = nn.Conv2d(layer.in_channels, layer.out_channels, 3, module.stride, 1).requires_grad_(False)
                conv.load_state_dict(module.state_dict())
                setattr(owner, f"conv{number}", AdaRoundConv(conv, grids[index]))
                setattr(owner, f"bn{number}", nn.Identity())  # folded
        with torch.no_grad():
            stem, linear = graph.layer_module(0), graph.layer_module(len(graph.layers) - 1)
            self.network.conv1 = nn.Conv2d(3, 16, 3, 1, 1)
            self.network.conv1.weight.copy_(grids[0].quantize(stem.weight))
            self.network.conv1.bias.copy_(stem.bias)
            self.network.bn1 = nn.Identity()
            self.network.linear.weight.copy_(grids[len(graph.layers) - 1].quantize(linear.weight))
        self.float_network = factories.cifar_resnet20()
        self.images = images
        self.whole = whole
        self.clock = Stopwatch()

    def cache(self, network: nn.Module, name: str, what: str) -> torch.Tensor:
        """Input or output of one block on all images, from the images."""
        found: list[torch.Tensor] = []

        def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            found.append(inputs[0].detach() if what == "input" else output.detach())
            if not self.whole:
                raise Stop

        handle = network.get_submodule(name).register_forward_hook(keep)
        with torch.no_grad():
            for batch in torch.split(self.images, 32):
                with suppress(Stop):
                    network(batch)
        handle.remove()
        return torch.cat(found)

    def run(self, units: list[Unit], schedule: Schedule) -> None:
        for unit in units:
            block = self.network.get_submodule(unit.name)
            layers = [module for module in block.modules() if isinstance(module, AdaRoundConv)]
            with self.clock.phase("caching"):
                targets = self.cache(self.float_network, unit.name, "output")
                inputs = self.cache(self.network, unit.name, "input")
            with self.clock.phase("learning"):
                self.learn(block, layers, inputs, targets, schedule)

    @staticmethod
    def learn(
        block: nn.Module, layers: list[AdaRoundConv], inputs: torch.Tensor, targets: torch.Tensor, schedule: Schedule
    ) -> None:
        for layer in layers:
            layer.mode = "soft"
        optimizer = torch.optim.Adam([layer.v for layer in layers], lr=schedule.lr)
        first = int(schedule.warm_up * schedule.iterations)
        for step in range(schedule.iterations):
            batch = torch.randperm(len(inputs))[: schedule.batch_size]
            loss = (block(inputs[batch]) - targets[batch]).square().sum(1).mean()
            if step >= first:
                beta = 20 - 18 * (step - first) / max(1, schedule.iterations - 1 - first)
                for layer in layers:
                    loss = loss + schedule.round_weight * (1 - (2 * layer.h() - 1).abs().pow(beta)).sum()
            optimizer.zero_grad()
            loss.backward(retain_graph=True)
            optimizer.step()
        for layer in layers:
            layer.mode = "hard"


class Engine:
    """qsearch: two streams pushed through the finished blocks, each block learned by :func:`reconstruct_unit`."""

    def __init__(self, graph: QuantGraph, grids: dict[int, WeightGrid], images: torch.Tensor) -> None:
        self.graph, self.grids = graph, grids
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.weights = {i: grid.quantize(graph.layer_module(i).weight.detach()) for i, grid in grids.items()}
        self.clock = Stopwatch()

    def run(self, units: list[Unit], schedule: Schedule, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with self.clock.phase("streams"):
            stem = self.graph.units[0]
            targets, inputs = self.forward(stem, self.images, False), self.forward(stem, self.images, True)
        for unit in units:
            with self.clock.phase("streams"):
                targets = self.forward(unit, targets, False)
            with self.clock.phase("learning"):
                module, _ = extract_unit(self.graph, unit)
                grids = {i: self.grids[i] for i in unit.layers}
                result = reconstruct_unit(
                    self.graph, unit, module, grids, {}, inputs, targets, schedule=schedule, generator=generator
                )
                for layer, codes in result.codes.items():
                    self.weights[layer] = self.grids[layer].decode(codes)
            with self.clock.phase("streams"):
                inputs = self.forward(unit, inputs, True)

    @torch.inference_mode()
    def forward(self, unit: Unit, values: torch.Tensor, quantized: bool) -> torch.Tensor:
        """Pushes a stream through one unit."""
        module, _ = extract_unit(self.graph, unit)
        module.to(memory_format=torch.channels_last)
        for layer in unit.layers if quantized else ():
            module.get_parameter(f"{self.graph.layers[layer].name}.weight").copy_(self.weights[layer])
        return torch.cat([module(batch) for batch in torch.split(values, 128)])

    def network(self) -> nn.Module:
        """The whole network with hard weights."""
        module = build_graph(factories.cifar_resnet20(), self.images[:2]).module
        with torch.no_grad():
            for layer, weight in self.weights.items():
                module.get_parameter(f"{self.graph.layers[layer].name}.weight").copy_(weight)
        return module


@torch.inference_mode()
def top1(network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> float:
    """Accuracy in percent."""
    logits = torch.cat([network(batch) for batch in torch.split(images, 250)])
    return 100 * float((logits.argmax(1) == labels).float().mean())


def main() -> None:
    """Parses arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--round-weight", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=9, help="learn the first blocks only")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--precision", default="float32", help="of qsearch's passes: float32 or bfloat16")
    parser.add_argument("--stop-at-block", action="store_true", help="of the plain loop's caching passes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    data = factories.cifar10(1024, 0, arguments.test_images)
    images, (test, labels) = data["calibration"].tensors[0], data["test"].tensors
    graph = build_graph(factories.cifar_resnet20(), images[:2])
    units = [unit for unit in graph.units if unit.name not in PINNED][: arguments.blocks]
    learned = {layer for unit in units for layer in unit.layers}
    grids = {
        i: search_weight_grid(graph.layer_module(i).weight.detach(), arguments.bits if i in learned else 8)
        for i in range(len(graph.layers))
    }
    print(f"float {top1(graph.module, test, labels):.2f} %")
    for iterations in arguments.iterations:
        for seed in arguments.seeds:
            schedule = Schedule(
                iterations, arguments.lr, round_weight=arguments.round_weight, precision=arguments.precision
            )
            torch.manual_seed(seed)
            plain = PlainLoop(graph, grids, images, not arguments.stop_at_block)
            plain.run(units, schedule)
            engine = Engine(graph, grids, images)
            engine.run(units, schedule, seed)
            print(f"{iterations} iterations, W{arguments.bits}, seed {seed}")
            print(f"  plain   {plain.clock}, top-1 {top1(plain.network, test, labels):.2f} %")
            print(f"  qsearch {engine.clock}, top-1 {top1(engine.network(), test, labels):.2f} %")
            wall, processor = (
                sum(getattr(plain.clock, kind).values()) / sum(getattr(engine.clock, kind).values())
                for kind in ("wall", "processor")
            )
            print(f"  ratio   {wall:.2f} of seconds, {processor:.2f} of processor seconds", flush=True)


if __name__ == "__main__":
    main()
