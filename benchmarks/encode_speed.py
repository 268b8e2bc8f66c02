"""How fast encoding and decoding are, against bare passes of the model; what the pipeline costs; what workers gain.

    python benchmarks/encode_speed.py model --preset tiny32 cifar10_C1 [--run runs/photos] [--batches 8]
    python benchmarks/encode_speed.py pipeline --run runs/photos --data data [--images 2048]
    python benchmarks/encode_speed.py workers --run runs/photos --data data [--images 2048]

`model` times the model's part alone, batch by batch in turn: a bare forward pass (bottom-up, and top-down to the output
with every posterior's mean, without sampling or a likelihood), the closed-loop encoder, a bare top-down pass with the
prior's mean, the same to expected pixels, and decoding. Presets have random weights and masks of the lowest resolutions
("lowest") and of random variates of all groups ("anywhere"); the run has its own. `pipeline` times `encode` from image
files to a finished store against the encoder alone on the same pixels in memory. `workers` starts processes of one
thread each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from results import print_table

from hvae_codec.config import ModelConfig
from hvae_codec.cpu import keep_freed_memory
from hvae_codec.encode.coder import LatentCoder, Stored, quantiser_steps
from hvae_codec.encode.latents import IntCodec
from hvae_codec.encode.pipeline import encode
from hvae_codec.images import ImageSource, open_images
from hvae_codec.model.checkpoint import load_model
from hvae_codec.model.hvae import HVAE, posterior_mean
from hvae_codec.model.top_down import LatentGroup
from hvae_codec.presets import load_preset
from hvae_codec.prune.kl_stats import KLStats, load_kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.report.analysis import ranking_path


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    {"model": time_models, "pipeline": time_pipeline, "workers": time_workers}[options.what](options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["model", "pipeline", "workers"])
    parser.add_argument("--preset", nargs="*", default=["tiny32"], help="models with random weights")
    parser.add_argument("--run", type=Path, help="a trained model, with its ranking")
    parser.add_argument("--data", type=Path, help="images to encode")
    parser.add_argument("--keep", type=float, default=0.03, help="share of the latent dimensions")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8, help="timed, of each kind")
    parser.add_argument("--images", type=int, default=2048, help="in a store")
    parser.add_argument("--rounds", type=int, default=3, help="of pipeline and workers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


# --- the model alone -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model and what is kept of it."""

    name: str
    coder: LatentCoder


def time_models(options: argparse.Namespace) -> None:
    cases = [case for preset in options.preset for case in untrained(preset, options.keep)]
    cases += [trained(options.run, options.keep)] if options.run else []
    rows = [model_row(case, options.batch_size, options.batches) for case in cases]
    columns = ["model, kept", "groups run", "forward", "encode", "ratio", "top-down", "to pixels", "decode", "ratios"]
    title = f"Images/s, batch {options.batch_size}, {options.threads} threads, best of {options.batches}"
    print_table(title, columns, rows)


def untrained(preset: str, keep: float) -> list[Case]:
    torch.manual_seed(0)
    model = HVAE(load_preset(preset).model).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    shapes = [(group.variates, group.resolution) for group in model.config.groups]
    random = np.random.default_rng(0)
    ranks = {
        "lowest": [np.full(variates, 1.0 / resolution) + np.arange(variates) * 1e-6 for variates, resolution in shapes],
        "anywhere": [random.random(variates) for variates, _ in shapes],
    }
    return [Case(f"{preset}, {name}", coder_of(model, stats_of(model, rank), keep)) for name, rank in ranks.items()]


def stats_of(model: HVAE, rank: Sequence[NDArray[np.float64]]) -> KLStats:
    """Made-up statistics, whose KL is `rank` at all positions."""
    sizes = [group.resolution for group in model.config.groups]
    kl = tuple(np.broadcast_to(r[:, None, None], (len(r), s, s)).copy() for r, s in zip(rank, sizes, strict=True))
    return KLStats(kl, tuple(np.full(len(r), 0.5) for r in rank), 1, "")


def trained(run: Path, keep: float) -> Case:
    model = load_model(run)
    return Case(f"{run.name}, its ranking", coder_of(model, load_kl_stats(ranking_path(model.run or run)), keep))


def coder_of(model: HVAE, stats: KLStats, keep: float) -> LatentCoder:
    mask = LatentMask.from_keep(stats, keep)
    codec = IntCodec()
    return LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats))


def model_row(case: Case, batch_size: int, batches: int) -> list[str]:
    model, stored = case.coder.model, {}
    pixels = torch.from_numpy(patches(model.config, batch_size))

    def encoded() -> None:
        stored.update(case.coder.encode(pixels))

    encoded()
    works = {
        "forward": lambda: bare_forward(model, pixels),
        "encode": encoded,
        "top-down": lambda: bare_top_down(model, batch_size),
        "to pixels": lambda: model.sample(batch_size, 0.0),
        "decode": lambda: decoded(case.coder, stored),
    }
    seconds = in_turn(works, batches)
    rate = {name: batch_size / s for name, s in seconds.items()}
    mask = case.coder.mask
    groups = f"{mask.groups_needed} of {len(mask.keep)}"
    kept = f"{case.name}, {100 * mask.kept_share:.2f}%"
    encoding, *decoding = (
        f"{rate[ours] / rate[bare]:.2f}"
        for ours, bare in (("encode", "forward"), ("decode", "top-down"), ("decode", "to pixels"))
    )
    cells = [f"{rate[name]:,.1f}" for name in works]
    return [kept, groups, *cells[:2], encoding, *cells[2:], ", ".join(decoding)]


@torch.no_grad()
def bare_forward(model: HVAE, pixels: torch.Tensor) -> None:
    model.top_down(model.activations(pixels), posterior_mean, len(pixels))


@torch.no_grad()
def bare_top_down(model: HVAE, count: int) -> None:
    model.top_down(None, prior_mean, count)


def prior_mean(group: LatentGroup) -> torch.Tensor:
    return group.prior_mean


def decoded(coder: LatentCoder, stored: Stored) -> None:
    coder.decode_pixels(stored).cpu().numpy()


def in_turn(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Fewest seconds of each, one after the other in every round, so that what else runs slows all alike."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begun)
    return {name: min(seconds) for name, seconds in taken.items()}


def patches(config: ModelConfig, count: int) -> NDArray[np.uint8]:
    """uint8 [count, C, size, size] of a photograph."""
    photograph, size = skimage.data.astronaut(), config.image_size
    places = np.random.default_rng(0).integers(0, 512 - size, (count, 2))
    cut = np.stack([photograph[y : y + size, x : x + size] for y, x in places]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(cut[:, : config.channels])


# --- from files to a store -------------------------------------------------------------------------------------------


def time_pipeline(options: argparse.Namespace) -> None:
    case, source = trained(options.run, options.keep), images(options)
    stats = load_kl_stats(ranking_path(case.coder.model.run or options.run))
    pixels = source.read(range(len(source)))

    def model_alone() -> None:
        for first in range(0, len(pixels), options.batch_size):
            case.coder.encode(torch.from_numpy(pixels[first : first + options.batch_size]))

    with tempfile.TemporaryDirectory() as folder:
        stores = iter(range(1000))

        def whole() -> None:
            path = Path(folder) / f"{next(stores)}.zarr"
            encode(case.coder.model, source, path, mask=case.coder.mask, stats=stats)

        seconds = in_turn({"model": model_alone, "encode": whole}, options.rounds)
    overhead = seconds["encode"] / seconds["model"] - 1
    cells = [f"{len(source) / seconds[name]:,.1f}" for name in ("model", "encode")]
    title = f"Images/s of {len(source):,} images from files to a store, {options.threads} threads"
    print_table(title, ["model", "encoder alone", "whole", "overhead"], [[case.name, *cells, f"{100 * overhead:.1f}%"]])


def images(options: argparse.Namespace) -> ImageSource:
    config = load_model(options.run).config
    return open_images(options.data, size=config.image_size, channels=config.channels).evenly(options.images)


# --- workers ---------------------------------------------------------------------------------------------------------

WORKER = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import encode_speed as speed
from hvae_codec.encode.pipeline import EncodeOptions, encode_share
from hvae_codec.encode.workers import Worker
speed.keep_freed_memory()
run, data, count, keep, path, worker, start = sys.argv[2:]
case = speed.trained(Path(run), float(keep))
stats = speed.load_kl_stats(speed.ranking_path(case.coder.model.run))
size, channels = case.coder.model.config.image_size, case.coder.model.config.channels
source = speed.open_images(data, size=size, channels=channels).evenly(int(count))
print("ready", flush=True)
sys.stdin.readline()
options = EncodeOptions(shard=64)
encode_share(case.coder.model, source, path, Worker.parse(worker), mask=case.coder.mask, stats=stats, options=options)
"""


def time_workers(options: argparse.Namespace) -> None:
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for count in rates:
                path = Path(folder) / f"{number}-{count}.zarr"
                rates[count].append(options.images / worker_seconds(options, path, count))
    one, two = (max(rates[count]) for count in (1, 2))
    title = f"Images/s of {options.images:,} images, workers of one thread each, best of {options.rounds}"
    row = [options.run.name, f"{one:,.1f}", f"{two:,.1f}", f"{two / one:.2f}"]
    print_table(title, ["", "1 worker", "2 workers", "ratio"], [row])


def worker_seconds(options: argparse.Namespace, path: Path, count: int) -> float:
    """From the moment that all workers have loaded model and images to the finished store."""
    arguments = [
        str(Path(__file__).parent),
        str(options.run),
        str(options.data),
        str(options.images),
        str(options.keep),
    ]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments, str(path), f"{number}/{count}", "go"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
        for number in range(count)
    ]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    begun = time.perf_counter()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        if worker.wait():
            raise SystemExit("a worker failed")
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
