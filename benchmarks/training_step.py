"""Time and memory of a training step, in several ways, against the time of its convolutions alone.

    python benchmarks/training_step.py --preset tiny32 --batch-size 64
    python benchmarks/training_step.py --preset cifar10_C1 --batch-size 16

The convolutions alone are the model's own as its configuration has them, in float32, forward and backward, one after
the other, each on an input of its own of the same shape and memory layout, with gradients of input (where the model
needs it), weights and bias. Everything else is what training adds: activations, latent groups, likelihood, noise,
optimiser, moving average. (The step itself joins pairs of convolutions that have no activation between them, and runs
fewer than the configuration has.) Groups are no longer balanced, unless --balanced is given. Rounds of all ways
alternate in one process, so that a machine whose speed drifts slows all; ratios are of medians. Peak memory is that of
a process of its own, everything that it loads included.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from conditions import conditions
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hvae_codec.cpu import tuned_for_training
from hvae_codec.distributed import DistributedContext
from hvae_codec.model.hvae import HVAE
from hvae_codec.presets import load_preset
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.recorded_step import EagerStep
from hvae_codec.train.update import make_network

CONVOLUTIONS = "convolutions alone"


@dataclass(frozen=True)
class ConvCall:
    """One convolution of the model: the layer, and what it is called with."""

    layer: nn.Conv2d
    input: Tensor
    gradient: Tensor
    needs_input_gradient: bool

    def run(self) -> None:
        """Forward, then all gradients."""
        dtype = self.input.dtype
        weight, bias = self.layer.weight.detach().to(dtype), self.layer.bias.detach().to(dtype)
        stride, padding = self.layer.stride, self.layer.padding
        torch.conv2d(self.input, weight, bias, stride, padding)
        wanted = [self.needs_input_gradient, True, True]
        torch.ops.aten.convolution_backward(
            self.gradient, self.input, weight, [len(bias)], stride, padding, (1, 1), False, (0, 0), 1, wanted
        )


WAYS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "fp32"},
    "float32, checkpointed": {"precision": "fp32", "checkpoint_activations": True},
    "float32, 2 parts": {"precision": "fp32", "accumulate": 2},
    "float32, 4 parts": {"precision": "fp32", "accumulate": 4},
    "bfloat16": {"precision": "bf16"},
}
"""How a step is taken: fields of the configuration's `train`."""


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    with tuned_for_training():
        if arguments.memory_of is not None:
            step = make_step(arguments, WAYS[arguments.memory_of])
            step()
            step()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024**2 if sys.platform == "darwin" else 1024))
            return
        memory = {name: peak_megabytes(name) for name in arguments.ways}
        timed = {name: make_step(arguments, WAYS[name]) for name in arguments.ways}
        calls = configured_convolutions(make_model(arguments), arguments.batch_size)
        times = alternate({**timed, CONVOLUTIONS: lambda: [call.run() for call in calls]}, arguments.rounds)
    report(arguments, times, memory)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument(
        "--balanced", action="store_true", help="steps whose groups are balanced, as the first ones are"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=list(WAYS), help="take two steps this way and print the peak memory, MB")
    return parser.parse_args()


def peak_megabytes(way: str) -> int:
    """Peak resident memory of a process that takes two steps that way."""
    command = [sys.executable, *sys.argv, "--memory-of", way]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def make_model(arguments: argparse.Namespace) -> HVAE:
    torch.manual_seed(0)
    return HVAE(load_preset(arguments.preset).model).to(memory_format=torch.channels_last)


def make_step(arguments: argparse.Namespace, way: dict[str, Any]) -> Callable[[], object]:
    """A training step as `train` takes it, noise included."""
    config = load_preset(arguments.preset)
    train, shape = dataclasses.replace(config.train, **way), config.model
    images = torch.randint(
        0, 256, (arguments.batch_size, shape.channels, shape.image_size, shape.image_size), dtype=torch.uint8
    )
    model = make_model(arguments)
    optimizer = FlatOptimizer(model, config.optimizer, train.ema_decay)
    whole = dataclasses.replace(config, train=train)
    take_step = EagerStep(make_network(model, train), optimizer, whole, DistributedContext())
    first = 1 + (0 if arguments.balanced else config.loss.balance_steps)
    count = iter(range(first, sys.maxsize))

    def step() -> object:
        number = next(count)
        return take_step(images, [(0, number, i) for i in range(len(images))], number)

    return step


def configured_convolutions(model: HVAE, batch: int) -> list[ConvCall]:
    """Every convolution of the configuration, on inputs of `batch` images."""
    calls = []
    for layer, resolution in resolutions(model):
        x = channels_last(batch, layer.in_channels, resolution)
        y = channels_last(batch, layer.out_channels, resolution // layer.stride[0])
        calls.append(ConvCall(layer, x, y, layer is not model.bottom_up.input_conv))
    return calls


def resolutions(model: HVAE) -> Iterator[tuple[nn.Conv2d, int]]:
    """Each convolution, with the height and width of its input."""
    config = model.config
    yield model.bottom_up.input_conv, config.resolution
    yield model.top_down.output_conv, config.resolution
    up = [s.resolution for s in config.stages for _ in range(s.extra_bottom_up + s.linked_blocks)]
    down = [group.resolution for group in config.groups]
    for blocks, sizes in ((model.bottom_up.blocks, up), (model.top_down.blocks, down)):
        for block, size in zip(blocks, sizes, strict=True):
            for name, layer in block.named_modules():
                if isinstance(layer, nn.Conv2d):
                    yield layer, size // block.unpool.stride if name.startswith("unpool") else size


def channels_last(batch: int, channels: int, size: int) -> Tensor:
    return torch.randn(batch, channels, size, size).to(memory_format=torch.channels_last)


def alternate(timed: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, function in timed.items():
            started = time.perf_counter()
            function()
            if number:
                times[name].append(time.perf_counter() - started)
    return times


def report(arguments: argparse.Namespace, times: dict[str, list[float]], memory: dict[str, int]) -> None:
    medians = {name: statistics.median(values) for name, values in times.items()}
    table = Table(caption=f"{arguments.preset}, batch size {arguments.batch_size}, {arguments.threads} threads")
    for heading in ("", "seconds", "least to most", "times the convolutions", "times float32", "peak memory, MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in times.items():
        ratios = [
            medians[name] / medians[other] if other in medians else math.nan for other in (CONVOLUTIONS, "float32")
        ]
        cells = [f"{medians[name]:.3f}", f"{min(values):.3f} to {max(values):.3f}", *(f"{r:.2f}" for r in ratios)]
        table.add_row(name, *cells, f"{memory[name]:,}" if name in memory else "")
    print(conditions())
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
