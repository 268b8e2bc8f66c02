"""Time of a training step against the time of its convolutions alone, in one process.

    python benchmarks/training_step.py --preset tiny32 --batch-size 64
    python benchmarks/training_step.py --preset cifar10_C1 --batch-size 16 --checkpoint-activations

The convolutions alone are the model's own as its configuration has them, forward and backward, one after the other,
each on an input of its own of the same shape and memory layout, with gradients of input (where the model needs it),
weights and bias. Everything else is what training adds: activations, latent groups, likelihood, noise, optimiser,
moving average. (The step itself joins pairs of convolutions that have no activation between them, and runs fewer than
the configuration has.) Rounds of both alternate, so that a machine whose speed drifts slows both; the ratio is of
medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from conditions import conditions
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hvae_codec.config import Config
from hvae_codec.model.hvae import HVAE
from hvae_codec.presets import load_preset
from hvae_codec.train.cpu import tuned_for_training
from hvae_codec.train.network import make_network
from hvae_codec.train.noise import image_noise
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.update import update


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


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    with tuned_for_training():
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    config = load_preset(arguments.preset)
    torch.manual_seed(0)
    model = HVAE(config.model).to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (arguments.batch_size, *image_shape(config)), dtype=torch.uint8)
    step = make_step(model, with_options(config, arguments), images)
    before = peak_megabytes()
    step()
    step()
    memory = peak_megabytes()
    calls = configured_convolutions(model, len(images))
    timed = {"step": step, "convolutions": lambda: [call.run() for call in calls]}
    times = alternate(timed, arguments.rounds)
    report(arguments, len(calls), times, before, memory)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    return parser.parse_args()


def with_options(config: Config, arguments: argparse.Namespace) -> Config:
    train = dataclasses.replace(
        config.train, precision=arguments.precision, checkpoint_activations=arguments.checkpoint_activations
    )
    return dataclasses.replace(config, train=train)


def image_shape(config: Config) -> tuple[int, int, int]:
    model = config.model
    return model.channels, model.image_size, model.image_size


def make_step(model: HVAE, config: Config, images: Tensor) -> Callable[[], object]:
    """A training step as `train` takes it, noise included."""
    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay)
    network = make_network(model, config.train)
    count = iter(range(1, sys.maxsize))

    def step() -> object:
        number = next(count)
        keys = [(0, number, i) for i in range(len(images))]
        return update(network, optimizer, config, images, image_noise(config.model, keys, model.device), number)

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


def peak_megabytes() -> float:
    """Peak resident memory of this process so far."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1024 if sys.platform != "darwin" else 1024**2)


def report(
    arguments: argparse.Namespace, calls: int, times: dict[str, list[float]], before: float, peak: float
) -> None:
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = sorted(a / b for a, b in zip(times["step"], times["convolutions"], strict=True))
    facts = {
        "preset": arguments.preset,
        "batch size": arguments.batch_size,
        "convolutions": calls,
        "step, s": round(medians["step"], 4),
        "convolutions alone, s": round(medians["convolutions"], 4),
        "ratio": round(medians["step"] / medians["convolutions"], 3),
        "ratio of rounds, least to most": f"{ratios[0]:.3f} to {ratios[-1]:.3f}",
        "peak memory, MB": round(peak),
        "of it before the first step, MB": round(before),
    }
    if arguments.json:
        print(json.dumps(facts))
        return
    print(conditions())
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
