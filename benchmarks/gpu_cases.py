"""What the parts of gpu_check share: cases and their results, models, pictures, time."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import re
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hvae_codec.config import Config
from hvae_codec.distributed import DistributedContext
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.precision import copied_as
from hvae_codec.presets import load_preset
from hvae_codec.train.formulas import compile_formulas
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.recorded_step import EagerStep, RecordedStep, Step
from hvae_codec.train.update import Network, make_network

Work = Callable[[], Any]
RANGE = re.compile(r"[\w.]+#")
"""Names of what a profile has besides kernels, `Optimizer.step#Adamax.step`; kernels of lambdas have a #, too."""


class Cases:
    """Results of a part by case, each written when it is there; an error takes its place."""

    def __init__(self, path: Path, write: Callable[[Path, Any], None]) -> None:
        self.path, self.write = path, write
        self.found: dict[str, Any] = {}

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a case; one that fails does not end the others."""
        started = time.monotonic()
        try:
            result = work()
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"}
        result["took"] = round(time.monotonic() - started, 2)
        self.found[name] = result
        self.write(self.path, self.found)
        shown = {key: value for key, value in result.items() if key not in ("took", "losses")}
        print(f"> {name}: {json.dumps(shown, default=str)}", flush=True)
        return result


def prepare(options: argparse.Namespace) -> None:
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1 if options.small else min(16, os.cpu_count() or 1))


def on_gpu(device: str) -> bool:
    return device.startswith("cuda")


def machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    if not on_gpu(device):
        return found
    gpu = torch.cuda.get_device_properties(0)
    found |= {"gpu": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)}
    found |= {"cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    return found


# --- models and images -----------------------------------------------------------------------------------------------


def preset(options: argparse.Namespace, name: str, **train: Any) -> Config:
    """A preset with changes to `train`; with --small its smallest form."""
    config = load_preset(name)
    if options.small:
        one = {"linked_blocks": 1, "extra_top_down": 0, "extra_top_down_after": 0}
        stages = tuple(replace(s, width=8, variates=4, bottleneck=0.5, **one) for s in config.model.stages)
        config = replace(config, model=replace(config.model, stages=stages, mixtures=2))
    return replace(config, train=replace(config.train, **train))


def pictures(count: int, config: Config) -> NDArray[np.uint8]:
    """Patches of photographs, uint8 [count, C, H, W], of the size of the model's images."""
    import skimage.data

    photographs = [skimage.data.astronaut(), skimage.data.coffee()]
    size, patches = config.model.image_size, []
    for i in range(count):
        pixels = photographs[i % len(photographs)]
        top, left = 37 * i % (pixels.shape[0] - size), 101 * i % (pixels.shape[1] - size)
        patches.append(pixels[top : top + size, left : left + size].transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(patches)[:, : config.model.channels])


def made(config: Config, device: str) -> tuple[HVAE, FlatOptimizer]:
    """Model and optimiser, with the same weights on every device."""
    torch.manual_seed(0)
    model = HVAE(config.model).to(device, memory_format=torch.channels_last)
    dtype = copied_as(config.train.precision, model.device.type)
    return model, FlatOptimizer(model, config.optimizer, config.train.ema_decay, dtype)


def network_of(config: Config, model: HVAE, optimizer: FlatOptimizer) -> Network:
    """The product's network, of compiled formulas on a GPU."""
    compile_formulas(model, optimizer, config, config.train.batch_size // config.train.accumulate, fail)
    return make_network(model, config.train)


def fail(warning: str) -> None:
    """Make an error of what training warns of."""
    raise RuntimeError(warning)


def step_of(config: Config, model: HVAE, optimizer: FlatOptimizer, *, recorded: bool, compiled: bool = True) -> Step:
    """The product's step, or one of formulas as they are written; what fails, and training warns of, is an error."""
    network = network_of(config, model, optimizer) if compiled else make_network(model, config.train)
    eager = EagerStep(network, optimizer, config, DistributedContext(device=model.device.type))
    return RecordedStep(eager, fail) if recorded else eager


def trained(options: argparse.Namespace, name: str, steps: int, batch: int) -> tuple[HVAE, Config]:
    """A model after a moment of training on the device, in evaluation state."""
    config = preset(options, name, precision="fp32", batch_size=batch)
    model, optimizer = made(config, options.device)
    step = step_of(config, model, optimizer, recorded=True)
    pool = torch.from_numpy(pictures(max(256, batch), config)).to(options.device)
    for number in range(1, steps + 1):
        chosen = torch.arange(number * batch, (number + 1) * batch, device=options.device) % len(pool)
        step(pool[chosen], [(0, number, i) for i in range(batch)], number)
    model.requires_grad_(False)
    return model.eval(), config


# --- time ------------------------------------------------------------------------------------------------------------


def wait(device: str) -> None:
    if on_gpu(device):
        torch.cuda.synchronize()


def times(work: Work, device: str, rounds: int, seconds: float = 4.0) -> list[float]:
    """Seconds of up to `rounds` rounds after one that warms up; fewer if they take long, but three."""
    work()
    wait(device)
    found: list[float] = []
    while len(found) < min(rounds, 3) or (len(found) < rounds and sum(found) < seconds):
        started = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - started)
    return found


def profiled(step: Work) -> dict[str, Any]:
    """Kernels of a step, and the milliseconds in which the GPU computes."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        step()
        torch.cuda.synchronize()
    on_device = [e for e in seen.events() if str(e.device_type).endswith("CUDA") and not RANGE.match(e.name)]
    kernels = [e for e in on_device if not e.name.startswith(("Memcpy", "Memset"))]
    launches = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cudaGraphLaunch")
    return {
        "kernels": len(kernels),
        "under_5_us": sum(e.time_range.elapsed_us() < 5 for e in kernels),
        "fills_and_copies": len(on_device) - len(kernels),
        "launches": sum(e.name in launches for e in seen.events()),
        "busy_ms": round(sum(e.time_range.elapsed_us() for e in on_device) / 1000, 2),
    }


def step_times(step: Work, device: str, rounds: int) -> list[float]:
    """Milliseconds of steps one after the other, as in training: the host does not wait for them."""
    for _ in range(2):
        step()
    wait(device)
    marks: list[Any] = []
    for _ in range(rounds + 1):
        mark = torch.cuda.Event(enable_timing=True) if on_gpu(device) else time.perf_counter()
        if on_gpu(device):
            mark.record()
        marks.append(mark)
        step()
    wait(device)
    pairs = itertools.pairwise(marks)
    return sorted(a.elapsed_time(b) if on_gpu(device) else 1000 * (b - a) for a, b in pairs)


def step_summary(step: Work, device: str, rounds: int, batch: int) -> dict[str, Any]:
    """Time, launches and memory of a step."""
    found = step_times(step, device, rounds)
    middle = found[len(found) // 2]
    result = {"ms": round(middle, 2), "ms_range": [round(found[0], 2), round(found[-1], 2)]}
    result["images_per_second"] = round(1000 * batch / middle, 1)
    if on_gpu(device):
        result["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        result["reserved_mib"] = round(torch.cuda.memory_reserved() / 2**20)
        result |= profiled(step)
    return result


def forget_memory(device: str) -> None:
    if on_gpu(device):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
