"""Parts of gpu_check about codes: whether a CPU decodes what a GPU encoded, and how many images a second are done."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gpu_cases import Cases, forget_memory, on_gpu, pictures, times, trained
from numpy.typing import NDArray

from hvae_codec.config import Config
from hvae_codec.encode import coder as coder_module
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.encode.decode_to_files import decode_to_folder
from hvae_codec.encode.pipeline import EncodeOptions, encode_images
from hvae_codec.model.gaussian import DiagonalGaussian
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.image_noise import ImageNoise
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.precision import full_float32
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
    a, b = (decoded(coder, own, whole) for coder in (here, there))
    levels = (model.likelihood.to_pixels(a).int() - model.likelihood.to_pixels(b).int()).abs()
    return {
        "ok": int(levels.max()) <= 1 and equal_share(own, cpu) > 0.99,
        "kept_dims": here.mask.kept_dims,
        "equal_to_cpu": equal_share(own, cpu),
        "equal_again": equal_share(own, encoded(here, images, whole)),
        "equal_by_batch_size": {n: equal_share(own, encoded(here, images, n)) for n in (3, len(images) // 2 + 1)},
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


def decoded(coder: LatentCoder, stored: Codes, batch: int) -> torch.Tensor:
    count = len(next(iter(stored.values())))
    starts = range(0, count, batch)
    return torch.cat([coder.decode({r: n[i : i + batch] for r, n in stored.items()}).cpu() for i in starts])


def equal_share(a: Codes, b: Codes) -> float:
    return float(np.mean(np.concatenate([(a[r] == b[r]).ravel() for r in a])))


# --- images a second -------------------------------------------------------------------------------------------------


def speed(options: Options, cases: Cases) -> None:
    models = {}
    for name in reversed(options.presets):
        model, config = trained(options, name, 2 if options.small else 40, 2 if options.small else 32)
        stats = kl_stats(model, pictures(4 if options.small else 256, config), batch_size=256)
        models[name] = (model, config, stats)
        for batch in (2,) if options.small else (64, 256):
            forget_memory(options.device)
            cases.run(f"{name} b{batch}", lambda b=batch, m=models[name]: rates(options, *m, b))
        cases.run(f"{name} store", lambda m=models[name]: store_rates(options, *m))
    for name, (model, config, stats) in models.items() if on_gpu(options.device) else ():
        images = torch.from_numpy(pictures(64, config)).to(options.device)
        coder = coder_of(model, stats, 0.03)
        cases.run(f"{name} b64 encode 3% recorded", lambda c=coder, i=images: recorded_rate(c, i))


def rates(options: Options, model: HVAE, config: Config, stats: KLStats, batch: int) -> dict[str, Any]:
    """Images a second of each operation, the best of a few rounds."""
    found: dict[str, Any] = {}
    for name, work in operations(options, model, config, stats, batch).items():
        found[name] = round(batch / min(times(work, options.device, 1 if options.small else 4, 1.0)), 1)
    if on_gpu(options.device):
        found["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found


def operations(
    options: Options, model: HVAE, config: Config, stats: KLStats, batch: int
) -> dict[str, Callable[[], Any]]:
    pixels = pictures(batch, config)
    images = torch.from_numpy(pixels)
    found: dict[str, Callable[[], Any]] = {
        "reconstruct": lambda: model.reconstruct(images),
        "elbo": lambda: model.elbo(images),
    }
    for keep in (0.03, 1.0):
        coder = coder_of(model, stats, keep)
        stored = coder.encode(images)
        found[f"encode {keep:.0%}"] = lambda coder=coder: coder.encode(images)
        found[f"decode {keep:.0%}"] = lambda coder=coder, stored=stored: coder.decode_pixels(stored).cpu()
    masks = [LatentMask.from_keep(stats, keep) for keep in (0.03, 1.0)]
    keys = [(0, 1, i) for i in range(batch)]
    return found | {
        "KL statistics": lambda: kl_stats(model, pixels, batch_size=batch),
        "sweep of 2 masks": lambda: sweep(model, pixels, masks, batch_size=batch),
        "noise on the device": lambda: keyed_noise(config.model, keys, options.device),
        "noise of evaluate": lambda: [*map(ImageNoise(0, range(batch)), noise_groups(model, batch))],
    }


def noise_groups(model: HVAE, batch: int) -> Iterator[SimpleNamespace]:
    """Stand-ins for a model's groups: noise asks for their shapes and device alone."""
    for index, shape in enumerate(model.config.groups):
        size = (batch, shape.variates, shape.resolution, shape.resolution)
        like = torch.empty(size, device=model.device, memory_format=torch.channels_last)
        yield SimpleNamespace(index=index, prior=DiagonalGaussian(like, like))


def recorded_rate(coder: LatentCoder, images: torch.Tensor) -> dict[str, Any]:
    """What encoding could do if it was recorded as a CUDA graph, which it is not: an estimate of the launches' cost."""

    @torch.no_grad()
    @full_float32()
    def record() -> Any:
        choose, last = coder_module._EncodeChooser(coder), coder.mask.groups_needed - 1
        activations = coder.model.activations(images)
        state = coder.model.top_down.run_groups(activations, choose, len(images), range(last))
        choose.store(coder.model.top_down.group(activations, last, state))
        return choose

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = record().stored()
        with torch.cuda.graph(graph, stream=stream):
            choose = record()
    torch.cuda.current_stream().wait_stream(stream)

    def replay() -> Codes:
        graph.replay()
        return choose.stored()

    seconds = min(times(replay, "cuda", 4, 1.0))
    return {"images_per_second": round(len(images) / seconds, 1), "equal": equal_share(expected, replay()) == 1.0}


def store_rates(options: Options, model: HVAE, config: Config, stats: KLStats) -> dict[str, Any]:
    """A whole store, written and decoded, files and all."""
    count = 8 if options.small else 2048
    pixels, mask, found = pictures(count, config), LatentMask.from_keep(stats, 0.03), {}
    for batch in (4,) if options.small else (64, 256):
        path, folder = options.work / "check.zarr", options.work / "decoded"
        started = time.perf_counter()
        store = encode_images(model, pixels, str(path), mask=mask, stats=stats, options=EncodeOptions(batch_size=batch))
        middle = time.perf_counter()
        decode_to_folder(store, model, folder, file_format="npy", batch_size=batch)
        ended = time.perf_counter()
        found[f"b{batch}"] = {
            "encode": round(count / (middle - started), 1),
            "decode": round(count / (ended - middle), 1),
        }
        for place in (path, folder):
            shutil.rmtree(place)
    return found
