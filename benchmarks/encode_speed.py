"""How fast encoding and decoding are, against bare passes of the model; what the pipeline costs; what workers gain.

    python benchmarks/encode_speed.py model --preset tiny32 cifar10_C1 [--run runs/photos] [--batches 8]
    python benchmarks/encode_speed.py pipeline --run runs/photos --data data [--images 6144]
    python benchmarks/encode_speed.py pipeline --preset cifar10_C1 --data data --images 512
    python benchmarks/encode_speed.py workers --run runs/photos --data data [--images 6144] [--bind]

`model` times the model's part alone, several batches in turn: a bare forward pass (bottom-up, and top-down to the
output with every posterior's mean, without sampling or a likelihood), the closed-loop encoder, a bare top-down pass
with the prior's mean, the same to expected pixels, and decoding. Presets have random weights and masks of the lowest
resolutions ("lowest") and of random variates of all groups ("anywhere"); the run has its own. `pipeline` times
`encode`, from image files and from an array in memory to a finished store, against the encoder alone on the same pixels
in memory. `workers` starts processes of one thread each, with `--bind` on a core of its own each, and times them from
the first image to the finished store.
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

from hvae_codec.analysis.ranking_file import ranking_path
from hvae_codec.config import ModelConfig
from hvae_codec.cpu import reuse_freed_memory
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.encode.pipeline import EncodeOptions, encode_images
from hvae_codec.model.checkpoint import load_model, model_hash
from hvae_codec.model.choices import posterior_mean
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.top_down import LatentGroup
from hvae_codec.presets import load_preset
from hvae_codec.prune.kl_stats import KLStats, load_kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.store.quantiser import IntCodec


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    reuse_freed_memory()
    {"model": time_models, "pipeline": time_pipeline, "workers": time_workers}[options.what](options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["model", "pipeline", "workers"])
    parser.add_argument("--preset", nargs="*", default=[], help="models with random weights")
    parser.add_argument("--run", type=Path, help="a trained model, with its ranking")
    parser.add_argument("--data", type=Path, help="images to encode")
    parser.add_argument("--keep", type=float, default=0.03, help="share of the latent dimensions")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8, help="timed, of each kind, together")
    parser.add_argument("--images", type=int, default=6144, help="in a store")
    parser.add_argument("--rounds", type=int, default=3, help="of pipeline and workers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bind", action="store_true", help="each worker to a core of its own")
    return parser.parse_args()


# --- the model alone -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model and what is kept of it."""

    name: str
    coder: LatentCoder
    stats: KLStats


def time_models(options: argparse.Namespace) -> None:
    rows = [model_row(case, options) for case in cases(options)]
    columns = ["model, kept", "groups run", "forward", "encode", "ratio"]
    columns += ["top-down", "to pixels", "decode", "ratios"]
    title = f"Images/s, {options.batches} batches of {options.batch_size}, {options.threads} threads"
    print_table(f"{title}, best of {options.rounds}", columns, rows)


def cases(options: argparse.Namespace) -> list[Case]:
    """The models that were asked for."""
    found = [case for preset in options.preset for case in untrained(preset, options.keep)]
    return [*found, trained(options.run, options.keep)] if options.run else found


def untrained(preset: str, keep: float) -> list[Case]:
    torch.manual_seed(0)
    model = HVAE(load_preset(preset).model).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    shapes = [(group.variates, group.resolution) for group in model.config.groups]
    random = np.random.default_rng(0)
    ranks = {
        "lowest": [np.full(variates, 1.0 / resolution) + np.arange(variates) * 1e-6 for variates, resolution in shapes],
        "anywhere": [random.random(variates) for variates, _ in shapes],
    }
    stats = {name: stats_of(model, rank) for name, rank in ranks.items()}
    return [Case(f"{preset}, {name}", coder_of(model, own, keep), own) for name, own in stats.items()]


def stats_of(model: HVAE, rank: Sequence[NDArray[np.float64]]) -> KLStats:
    """Made-up statistics, whose KL is `rank` at all positions."""
    sizes = [group.resolution for group in model.config.groups]
    kl = tuple(np.broadcast_to(r[:, None, None], (len(r), s, s)).copy() for r, s in zip(rank, sizes, strict=True))
    return KLStats(kl, tuple(np.full(len(r), 0.5) for r in rank), 1, model_hash(model))


def trained(run: Path, keep: float) -> Case:
    model = load_model(run)
    stats = load_kl_stats(ranking_path(model.run or run))
    return Case(f"{run.name}, its ranking", coder_of(model, stats, keep), stats)


def coder_of(model: HVAE, stats: KLStats, keep: float) -> LatentCoder:
    mask = LatentMask.from_keep(stats, keep)
    codec = IntCodec()
    return LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats))


def model_row(case: Case, options: argparse.Namespace) -> list[str]:
    coder, size, batches = case.coder, options.batch_size, range(options.batches)
    model, pixels = coder.model, torch.from_numpy(patches(coder.model.config, size))
    stored = coder.encode(pixels)
    seconds = in_turn(
        {
            "forward": lambda: [bare_forward(model, pixels) for _ in batches],
            "encode": lambda: [coder.encode(pixels) for _ in batches],
            "top-down": lambda: [bare_top_down(model, size) for _ in batches],
            "to pixels": lambda: [to_pixels(model, bare_top_down(model, size)) for _ in batches],
            "decode": lambda: [coder.decode_pixels(stored).cpu() for _ in batches],
        },
        options.rounds,
    )
    rate = {name: size * len(batches) / s for name, s in seconds.items()}
    groups = f"{coder.mask.groups_needed} of {len(coder.mask.keep)}"
    kept = f"{case.name}, {100 * coder.mask.kept_share:.2f}%"
    encoding, *decoding = (
        f"{rate[ours] / rate[bare]:.2f}"
        for ours, bare in (("encode", "forward"), ("decode", "top-down"), ("decode", "to pixels"))
    )
    cells = [f"{rate:,.1f}" for rate in rate.values()]
    return [kept, groups, *cells[:2], encoding, *cells[2:], ", ".join(decoding)]


@torch.no_grad()
def bare_forward(model: HVAE, pixels: torch.Tensor) -> None:
    model.top_down(model.activations(pixels), posterior_mean(), len(pixels))


@torch.no_grad()
def bare_top_down(model: HVAE, count: int) -> torch.Tensor:
    return model.top_down(None, prior_mean, count)


def to_pixels(model: HVAE, output: torch.Tensor) -> torch.Tensor:
    return model.likelihood.to_pixels(model.likelihood.mean(output))


def prior_mean(group: LatentGroup) -> torch.Tensor:
    return group.prior_mean


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
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
    rows = [pipeline_row(case, options) for case in cases(options)]
    columns = ["model", "encoder alone", "whole, files", "overhead", "whole, array", "overhead"]
    title = f"Images/s of {options.images:,} images to a store, {options.threads} threads, best of {options.rounds}"
    print_table(f"{title}; overhead over the encoder alone", columns, rows)


def pipeline_row(case: Case, options: argparse.Namespace) -> list[str]:
    coder, source, size = case.coder, images(case.coder.model.config, options), options.batch_size
    pixels = source.read(range(len(source)))
    batches = [torch.from_numpy(pixels[first : first + size]) for first in range(0, len(pixels), size)]
    with tempfile.TemporaryDirectory() as folder:
        stores = iter(range(1000))

        def whole(of: ImageSource | NDArray[np.uint8]) -> None:
            path = Path(folder) / f"{next(stores)}.zarr"
            encode_images(
                coder.model, of, path, mask=coder.mask, stats=case.stats, options=EncodeOptions(batch_size=size)
            )

        seconds = in_turn(
            {
                "plain": lambda: [coder.encode(batch) for batch in batches],
                "files": lambda: whole(source),
                "array": lambda: whole(pixels),
            },
            options.rounds,
        )
    rate = {name: f"{len(pixels) / s:,.1f}" for name, s in seconds.items()}
    files, array = (f"{100 * (seconds[name] / seconds['plain'] - 1):+.1f}%" for name in ("files", "array"))
    return [case.name, rate["plain"], rate["files"], files, rate["array"], array]


def images(config: ModelConfig, options: argparse.Namespace) -> ImageSource:
    return open_images(options.data, size=config.image_size, channels=config.channels).evenly(options.images)


# --- workers ---------------------------------------------------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import encode_speed as speed
from hvae_codec.encode.pipeline import encode_worker
from hvae_codec.store.workers import Worker
speed.reuse_freed_memory()
run, data, count, keep, path, worker = sys.argv[2:]
case = speed.trained(Path(run), float(keep))
size, channels = case.coder.model.config.image_size, case.coder.model.config.channels
source = speed.open_images(data, size=size, channels=channels).evenly(int(count))
print("ready", flush=True)
sys.stdin.readline()
encode_worker(case.coder.model, source, path, Worker.parse(worker), mask=case.coder.mask, stats=case.stats)
print("done", flush=True)
"""


def time_workers(options: argparse.Namespace) -> None:
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for count in rates:
                path = Path(folder) / f"{number}-{count}.zarr"
                rates[count].append(options.images / worker_seconds(options, path, count))
    one, two = (max(rates[count]) for count in (1, 2))
    bound = ", each on a core of its own" if options.bind else ""
    title = f"Images/s of {options.images:,} images, workers of one thread each{bound}, best of {options.rounds}"
    row = [options.run.name, f"{one:,.1f}", f"{two:,.1f}", f"{two / one:.2f}"]
    print_table(title, ["", "1 worker", "2 workers", "ratio"], [row])


def worker_seconds(options: argparse.Namespace, path: Path, count: int) -> float:
    """From the moment that all workers have loaded model and images to the finished store."""
    what = [str(Path(__file__).parent), *map(str, (options.run, options.data, options.images, options.keep)), str(path)]
    workers = [
        subprocess.Popen(
            [*bound_to(number, options.bind), sys.executable, "-c", WORKER, *what, f"{number}/{count}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
        for number in range(count)
    ]
    for worker in workers:
        expect(worker, "ready")
    begun = time.perf_counter()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        expect(worker, "done")
    seconds = time.perf_counter() - begun
    for worker in workers:
        worker.communicate()  # closes its pipes
    return seconds


def bound_to(core: int, bind: bool) -> list[str]:
    return ["taskset", "--cpu-list", str(core)] if bind else []


def expect(worker: subprocess.Popen[str], word: str) -> None:
    assert worker.stdout is not None
    if worker.stdout.readline().strip() != word:
        raise SystemExit("a worker failed")


if __name__ == "__main__":
    main()
