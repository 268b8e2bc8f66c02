"""Parts of gpu_check about codes: whether a CPU decodes what a GPU encoded, and how many images a second are done."""

from __future__ import annotations

import argparse
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gpu_cases import Cases, forget_memory, on_gpu, pictures, times, trained
from numpy.typing import NDArray

from hvae_codec.analysis.evaluation import evaluate
from hvae_codec.config import Config
from hvae_codec.encode.batch_coder import BatchCoder
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.encode.decode_to_files import decode_to_folder
from hvae_codec.encode.pipeline import EncodeOptions, encode_images
from hvae_codec.model.gaussian import DiagonalGaussian
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.image_noise import ImageNoise
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.recorded import Recording
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.sweep import sweep
from hvae_codec.store.quantiser import IntCodec

Options = argparse.Namespace
Codes = dict[int, NDArray]


def coder_of(model: HVAE, stats: KLStats, keep: float, granularity: str = "variate") -> LatentCoder:
    mask, codec = LatentMask.from_keep(stats, keep, granularity=granularity), IntCodec()
    return LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats))


# --- codes: encoded here, decoded there ------------------------------------------------------------------------------


def codes(options: Options, cases: Cases) -> None:
    for name in options.presets:
        model, config = trained(options, name, 2 if options.small else 150, 4 if options.small else 32)
        images = torch.from_numpy(pictures(8 if options.small else 128, config))
        stats = kl_stats(model, images.numpy(), batch_size=min(64, len(images)))
        for granularity, keep in (("variate", 0.03), ("variate", 1.0), ("position", 0.03)):
            case = f"{name} {granularity} {keep:.0%}"
            told = (model, images, stats, granularity, keep)
            cases.run(case, lambda told=told: compared(*told))


def compared(model: HVAE, images: torch.Tensor, stats: KLStats, granularity: str, keep: float) -> dict[str, Any]:
    """Codes against the CPU's, again, and in batches of other sizes; decoded images against the CPU's."""
    here, there = (coder_of(m, stats, keep, granularity) for m in (model, on_cpu(model)))
    whole = min(64, len(images))
    own, cpu = encoded(here, images, whole), encoded(there, images, whole)
    last = {r: numbers[:3] for r, numbers in own.items()}
    a, b = (decoded(coder, own, whole) for coder in (here, there))
    levels = (model.likelihood.to_pixels(a).int() - model.likelihood.to_pixels(b).int()).abs()
    return {
        "ok": int(levels.max()) <= 1 and equal_share(own, cpu) > 0.99,
        "kept_dims": here.mask.kept_dims,
        "equal_to_cpu": equal_share(own, cpu),
        "equal_again": equal_share(own, encoded(here, images, whole)),
        "equal_recorded": equal_share(own, recorded(here, images, whole)),
        "equal_by_batch_size": {n: equal_share(own, encoded(here, images, n)) for n in (3, len(images) // 2 + 1)},
        "equal_filled_up": equal_share(last, recorded(here, images[:3], whole)),
        "decoded_most": float((a - b).abs().max()),
        "levels_equal": float((levels == 0).float().mean()),
        "levels_most": int(levels.max()),
    }


def on_cpu(model: HVAE) -> HVAE:
    other = HVAE(model.config)
    other.load_state_dict({name: weight.cpu() for name, weight in model.state_dict().items()})
    return other.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def encoded(coder: LatentCoder, images: torch.Tensor, batch: int) -> Codes:
    parts = [coder.encode(part) for part in images.split(batch)]
    return {r: np.concatenate([part[r] for part in parts]) for r in parts[0]}


def recorded(coder: LatentCoder, images: torch.Tensor, batch: int) -> Codes:
    """As commands encode: the last batch is filled up, and from the second one on a recording is replayed."""
    batches = BatchCoder(coder, batch)
    parts = [batches.start_encoding(part.numpy()).stored() for part in images.split(batch)]
    return {r: np.concatenate([part[r] for part in parts]) for r in parts[0]}


def decoded(coder: LatentCoder, stored: Codes, batch: int) -> torch.Tensor:
    count = len(next(iter(stored.values())))
    starts = range(0, count, batch)
    return torch.cat([coder.decode({r: n[i : i + batch] for r, n in stored.items()}).cpu() for i in starts])


def equal_share(a: Codes, b: Codes) -> float:
    return float(np.mean(np.concatenate([(a[r] == b[r]).ravel() for r in a])))


# --- images a second -------------------------------------------------------------------------------------------------

BATCHES = 4  # that statistics are measured on: the first is launched, the second recorded, the others replayed


def speed(options: Options, cases: Cases) -> None:
    for name in reversed(options.presets):
        model, config = trained(options, name, 2 if options.small else 40, 2 if options.small else 32)
        stats = kl_stats(model, pictures(4 if options.small else 256, config), batch_size=256)
        batches, graphs = ((2,) if options.small else (256, 64)), ("recorded", "launched")
        # What matters most comes first, as time may run out.
        for batch, graph in itertools.product(batches, graphs if on_gpu(options.device) else graphs[1:]):
            forget_memory(options.device)
            model.recording = Recording("on" if graph == "recorded" else "off", fail)
            told = options, model, config, stats, batch
            if batch == batches[0]:
                cases.run(f"{name} b{batch} {graph} store", lambda t=told: store_rates(*t))
            cases.run(f"{name} b{batch} {graph}", lambda t=told, g=graph: rates(*t, bare=g == "launched"))


def fail(warning: str) -> None:
    """A recording that fails is an error here."""
    raise RuntimeError(warning)


def rates(options: Options, model: HVAE, config: Config, stats: KLStats, batch: int, *, bare: bool) -> dict[str, Any]:
    """Images a second of each operation, the best of a few rounds; with `bare` also of what is never recorded."""
    found: dict[str, Any] = {}
    works = coding(model, config, stats, batch) | statistics(options, model, config, stats, batch)
    works |= bare_passes(options, model, config, batch) if bare else {}
    for name, (images, work) in works.items():
        found[name] = round(images / min(times(work, options.device, 1 if options.small else 4, 1.0)), 1)
    if on_gpu(options.device):
        found["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found


Work = tuple[int, Callable[[], Any]]
"""Images, and what is done with them."""


def bare_passes(options: Options, model: HVAE, config: Config, batch: int) -> dict[str, Work]:
    images, keys = torch.from_numpy(pictures(batch, config)), [(0, 1, i) for i in range(batch)]
    return {
        "reconstruct": (batch, lambda: model.reconstruct(images)),
        "elbo": (batch, lambda: model.elbo(images)),
        "noise on the device": (batch, lambda: keyed_noise(config.model, keys, options.device)),
        "noise of evaluate": (batch, lambda: [*map(ImageNoise(0, range(batch)), noise_groups(model, batch))]),
        "evaluate": (batch, lambda: evaluate(model, images, batch_size=batch)),
    }


def coding(model: HVAE, config: Config, stats: KLStats, batch: int) -> dict[str, Work]:
    """Batches encoded and decoded, one after the other: nothing is fetched behind, nor read or written."""
    pixels, found = pictures(batch, config), {}
    for keep in (0.03, 1.0):
        batches = BatchCoder(coder_of(model, stats, keep), batch)

        def encode(batches: BatchCoder = batches) -> Codes:
            return batches.start_encoding(pixels).stored()

        stored = encode()
        found[f"encode {keep:.0%}"] = batch, encode
        found[f"decode {keep:.0%}"] = batch, lambda batches=batches, stored=stored: batches.start(stored)()
    return found


def statistics(options: Options, model: HVAE, config: Config, stats: KLStats, batch: int) -> dict[str, Work]:
    images = (2 if options.small else BATCHES) * batch
    pixels, masks = pictures(images, config), [LatentMask.from_keep(stats, keep) for keep in (0.03, 1.0)]
    return {
        "KL statistics": (images, lambda: kl_stats(model, pixels, batch_size=batch)),
        "sweep of 2 masks": (images, lambda: sweep(model, pixels, masks, batch_size=batch)),
    }


def noise_groups(model: HVAE, batch: int) -> Iterator[SimpleNamespace]:
    """Stand-ins for a model's groups: noise asks for their shapes and device alone."""
    for index, shape in enumerate(model.config.groups):
        size = (batch, shape.variates, shape.resolution, shape.resolution)
        like = torch.empty(size, device=model.device, memory_format=torch.channels_last)
        yield SimpleNamespace(index=index, prior=DiagonalGaussian(like, like))


def store_rates(options: Options, model: HVAE, config: Config, stats: KLStats, batch: int) -> dict[str, Any]:
    """A whole store, written and decoded to an array and to PNG files, reading and writing included."""
    count, mask = 8 if options.small else 2048, LatentMask.from_keep(stats, 0.03)
    path, folder, pixels = options.work / "check.zarr", options.work / "decoded", pictures(count, config)
    started = time.perf_counter()
    store = encode_images(model, pixels, str(path), mask=mask, stats=stats, options=EncodeOptions(batch_size=batch))
    found = {"encode": round(count / (time.perf_counter() - started), 1)}
    for kind in ("npy", "png"):
        started = time.perf_counter()
        decode_to_folder(store, model, folder, file_format=kind, batch_size=batch)
        found[f"decode to {kind}"] = round(count / (time.perf_counter() - started), 1)
        shutil.rmtree(folder)
    shutil.rmtree(path)
    return found
