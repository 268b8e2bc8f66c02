"""What a driver costs, and what two processes gain: the same images encoded here and on local:2, in pairs.

    python benchmarks/driver_cost.py [--preset tiny32] [--images 4096] [--rounds 3]

Images/s by the clock depend on what else the machine does; processor time hardly does. A model of random weights that
keeps its lowest resolutions; images are PNG files; processes have loaded the model before the clock starts.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from conditions import conditions
from PIL import Image
from skimage import data

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, open_images
from hvae_codec.config import Config
from hvae_codec.cpu import prepare_worker
from hvae_codec.encode.driver import job_of
from hvae_codec.encode.missing import MissingRowGroups
from hvae_codec.encode.pipeline import EncodeOptions, plan_store
from hvae_codec.engine.engine import Engine
from hvae_codec.engine.where import engine_on
from hvae_codec.model.checkpoint import save_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.reference import ModelReference
from hvae_codec.presets import load_preset
from hvae_codec.store.folder_writer import FolderStoreWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny32")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prepare_worker()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = load_preset(options.preset)
        run_of(config, root)
        pictures(root / "photos", options.images, config.model.image_size)
        measure(root, config, options)


def run_of(config: Config, root: Path) -> None:
    torch.manual_seed(0)
    save_model(root / "run", config, HVAE(config.model).state_dict())


def pictures(folder: Path, count: int, size: int) -> None:
    folder.mkdir()
    photo, places = data.astronaut(), np.random.default_rng(0).integers(0, 512 - size, (count, 2))
    for number, (y, x) in enumerate(places):
        Image.fromarray(photo[y : y + size, x : x + size]).save(folder / f"{number:06d}.png")


def measure(root: Path, config: Config, options: argparse.Namespace) -> None:
    model = load_model(root / "run")
    size, channels = config.model.image_size, config.model.channels
    stats = kl_stats(model, open_images(root / "photos", size=size, channels=channels).evenly(64))
    common = {"mask": LatentMask.from_keep(stats, 0.03), "stats": stats, "options": EncodeOptions(overwrite=True)}

    def encode(engine: Engine | None, count: int = options.images) -> None:
        images = open_images(root / "photos", size=size, channels=channels).subset(range(count))
        encode_images(model, images, root / "out.zarr", engine=engine, **common)

    def with_threads(threads: int) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            encode(None)

        return run

    with engine_on("local:2", initializer=prepare_worker) as engine:
        encode(engine, 1024)
        ways = {"1 process, 1 thread": with_threads(1), "1 process, 2 threads": with_threads(2)}
        ways["local:2"] = lambda: encode(engine)
        rows = [{name: timed(work, options.images) for name, work in ways.items()} for _ in range(options.rounds)]
    print(f"{conditions()}\n\n| {options.preset} | images/s | CPU s per 1,000 images | of which the driver's |")
    print("|---|--:|--:|--:|")
    for name in ways:
        figures = np.median([row[name] for row in rows], axis=0)
        print(f"| {name} | {figures[0]:,.1f} | {figures[1]:.3f} | {figures[2]:.3f} |")
    for name in list(ways)[:2]:
        print(f"local:2 by the clock of {name}: {np.median([r['local:2'][0] / r[name][0] for r in rows]):.2f}")
    sizes(root, model, common, size, channels)


def timed(work: Callable[[], None], images: int) -> tuple[float, float, float]:
    """Images/s, and CPU seconds per 1,000 images, of all processes and of this one."""
    with used() as seconds:
        begun = time.perf_counter()
        work()
        rate = images / (time.perf_counter() - begun)
    return rate, 1000 * sum(seconds) / images, 1000 * seconds[0] / images


@contextmanager
def used() -> Iterator[list[float]]:
    """Give the CPU seconds that this process and its children take within."""
    processes = [psutil.Process(), *psutil.Process().children()]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    seconds: list[float] = []
    yield seconds
    seconds += [sum(p.cpu_times()[:2]) - b for p, b in zip(processes, before, strict=True)]


def sizes(root: Path, model: HVAE, common: dict, size: int, channels: int) -> None:
    """What travels with a task."""
    encoder, spec = plan_store(model, open_images(root / "photos", size=size, channels=channels), **common)
    missing = MissingRowGroups(FolderStoreWriter.create_or_resume(root / "sizes.zarr", spec), encoder)
    job = job_of(missing, ModelReference.of(model), "cpu")
    begun = time.process_time()
    portion = pickle.dumps(encoder.source.portion(np.array(missing.images(0))))
    print(f"job {len(pickle.dumps(job)):,} bytes, images of a row group {len(portion):,} bytes", end=", ")
    print(f"made in {1000 * (time.process_time() - begun):.1f} ms")


if __name__ == "__main__":
    main()
