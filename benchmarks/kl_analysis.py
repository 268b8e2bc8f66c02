"""Speed of the KL analysis against the passes of the model that it cannot do without.

    cd quickstart && python ../benchmarks/kl_analysis.py --model runs/latest --data data

- KL statistics against a bare forward pass: bottom-up, top-down with a posterior sample in each group, output
  convolution; no KL, no likelihood.
- The sweep (NELBO of every cutoff) against one bottom-up pass and as many bare top-down passes as there are cutoffs.
- The whole table (the same with pictures encoded, decoded and compared, and bytes) against those passes too.

Rounds of all alternate in one process, so that a machine whose speed drifts slows all; ratios are of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from results import print_table
from torch import Tensor

from hvae_codec.analysis.cutoff_table import analyze
from hvae_codec.cpu import reuse_freed_memory
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.model.checkpoint import load_model
from hvae_codec.model.choices import gaussian_noise
from hvae_codec.model.hvae import HVAE
from hvae_codec.prune.cutoffs import CutoffSpec
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.sweep import sweep
from hvae_codec.store.quantiser import IntCodec

KEEPS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 1.0)


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    reuse_freed_memory()
    model = load_model(arguments.model, "cpu")
    config = model.config
    source = open_images(arguments.data, size=config.image_size, channels=config.channels)
    images = source.split("val").evenly(arguments.images)
    times = alternate(timed(model, images, arguments), arguments.rounds)
    report(times, len(images), arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/latest"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--granularity", choices=["variate", "position"], default="variate")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def timed(model: HVAE, images: ImageSource, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    batch_size = arguments.batch_size
    stats = kl_stats(model, images, batch_size=batch_size)
    wishes = [CutoffSpec(keep=keep, granularity=arguments.granularity) for keep in KEEPS]
    cutoffs = [wish.cutoff(model, stats) for wish in wishes]
    masks = [cutoff.mask for cutoff in cutoffs]
    batches = [torch.from_numpy(batch) for batch in images.batches(batch_size)]
    activations = [model.activations(batch) for batch in batches]
    return {
        "bottom-up pass": lambda: [model.activations(batch) for batch in batches],
        "top-down pass": lambda: [top_down(model, each) for each in activations],
        "KL statistics": partial(kl_stats, model, images, batch_size=batch_size),
        "sweep": partial(sweep, model, images, masks, batch_size=batch_size),
        "table": partial(
            analyze,
            model,
            stats,
            images,
            cutoffs,
            IntCodec(),
            batch_size=batch_size,
            seed=0,
            pictures=arguments.pictures,
        ),
    }


@torch.no_grad()
def top_down(model: HVAE, activations: list[Tensor]) -> Tensor:
    """A bare pass: a posterior sample in each group, then the parameters of the output distribution."""
    noise = gaussian_noise()
    return model.top_down(activations, lambda group: group.posterior().sample(noise(group)), len(activations[0]))


def alternate(timed: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(1 + rounds):
        for name, run in timed.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def report(times: dict[str, float], images: int, arguments: argparse.Namespace) -> None:
    forward = times["bottom-up pass"] + times["top-down pass"]
    passes = times["bottom-up pass"] + len(KEEPS) * times["top-down pass"]
    rows = [
        ("bare forward pass", forward, ""),
        (
            "KL statistics",
            times["KL statistics"],
            f"{forward / times['KL statistics']:.2f} of a forward pass's images/s",
        ),
        (f"1 bottom-up and {len(KEEPS)} top-down passes", passes, ""),
        (f"sweep over {len(KEEPS)} cutoffs", times["sweep"], f"{times['sweep'] / passes:.2f} of these passes' time"),
        (
            f"table: {arguments.pictures} of them decoded as well",
            times["table"],
            f"{times['table'] / passes:.2f} of these passes' time",
        ),
    ]
    cells = [(name, f"{seconds:.3f}", f"{images / seconds:,.1f}", ratio) for name, seconds, ratio in rows]
    title = (
        f"{images} images, batch {arguments.batch_size}, {arguments.threads} threads, masks by {arguments.granularity}"
    )
    print_table(title, ("", "seconds", "images/s", "ratio"), cells)


if __name__ == "__main__":
    main()
