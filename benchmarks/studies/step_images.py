"""How many images does `--step auto` need, and what does the step that it finds cost?

    cd quickstart && python ../benchmarks/studies/step_images.py --model runs/latest --data data --out step_images

The distortions of all held-out images are measured at several steps, and of posterior samples. Where the two means are
equal, interpolated in the step squared, is the step. It is found again from `--draws` sets of as many images drawn at
random, with replacement: the standard deviation of these is the step's standard error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import folder_above  # noqa: F401
import numpy as np
from numpy.typing import NDArray
from results import print_table, write_markdown, write_results

from hvae_codec.analysis.step_search import ClosedLoopWork
from hvae_codec.cpu import reuse_freed_memory
from hvae_codec.data.sources import open_images
from hvae_codec.engine.engine import Here
from hvae_codec.model.checkpoint import load_model
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.parts import Cut, measured_parts
from hvae_codec_cli.cutoffs import parse_keep

COLUMNS = ("images", "step", "standard error", "share")
STEPS = (0.5, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
IMAGES = (64, 128, 256, 512, 800)


def main() -> None:
    arguments = parse()
    reuse_freed_memory()
    model = load_model(arguments.model, "cpu")
    source = open_images(arguments.data, size=model.config.image_size, channels=model.config.channels)
    stats = kl_stats(model, source.split("train").evenly(1000))
    mask = LatentMask.from_keep(stats, parse_keep(arguments.keep))
    work = ClosedLoopWork(model, stats, [mask], [STEPS], seed=0, sampled=True)
    parts = list(measured_parts(Here(), work, source.split("val"), Cut.of(64)))
    sampled, *closed = np.concatenate(parts, axis=1)
    excess = np.array(closed) - sampled
    for step, change in zip(STEPS, excess.mean(axis=1), strict=True):
        print(f"step {step}: {change:+.4f} bits/dim from posterior samples")
    table = [as_row(excess, images, arguments.draws) for images in IMAGES]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_results(arguments.out, "step_images", table, vars(arguments))
    cells = [[f"{row['images']}", f"{row['step']:.3f}", f"{row['error']:.3f}", f"{row['share']:.1%}"] for row in table]
    print_table("Images to look for a step on", COLUMNS, cells)
    write_markdown(arguments.out / "step_images.md", COLUMNS, cells)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/latest"))
    parser.add_argument("--data", default="data")
    parser.add_argument("--keep", default="3%")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("step_images"))
    return parser.parse_args()


def as_row(excess: NDArray[np.float64], images: int, draws: int) -> dict[str, float]:
    random, everything = np.random.default_rng(0), excess.shape[1]
    found = [crossing(excess[:, random.choice(everything, images)].mean(axis=1)) for _ in range(draws)]
    step, error = float(np.mean(found)), float(np.std(found))
    return {"images": images, "step": step, "error": error, "share": error / step}


def crossing(excess: NDArray[np.float64]) -> float:
    """Interpolate the step at which the mean excess, one for each of `STEPS`, is 0."""
    above = int(np.argmax(excess > 0.0)) or len(STEPS) - 1
    squares, (low, high) = np.square(STEPS), excess[above - 1 : above + 1]
    return float(np.sqrt(squares[above - 1] + (squares[above] - squares[above - 1]) * -low / (high - low)))


if __name__ == "__main__":
    main()
