"""Parts of gpu_check about training: numbers, going on, time, several processes, the published code.

The published code is a folder of three: src/ with efficient_vdvae_torch and egs of its repository, shim/ with packages
that it imports (hparams, prettytable, torch_optimizer), and for --device cpu its code without calls of cuda(), cpu/.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpu_cases import Cases, forget_memory, made, network_of, on_gpu, pictures, preset, step_of, step_summary
from kernel_count import count_step
from torch import Tensor, nn

from hvae_codec.config import Config, with_settings
from hvae_codec.data.sources import ImageSource, as_source
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.precision import full_float32, same_algorithms
from hvae_codec.train.loop import TrainOptions, start_run, train
from hvae_codec.train.update import StepResult, update

Options = argparse.Namespace
Numbers = list[float]

TOLERANCE = {"float32": 2e-3, "TF32": 2e-2, "bf16": 6e-2}
"""Relative difference of the NELBO from the CPU's, at most."""


# --- the same numbers ------------------------------------------------------------------------------------------------


def same(options: Options, cases: Cases) -> None:
    name, count = options.presets[0], 3 if options.small else 20
    expected = cases.run("CPU float32", lambda: {"losses": losses(options, name, "cpu", "float32", count)})
    for way in TOLERANCE:
        cases.run(f"{name} {way}", lambda way=way: against_cpu(options, name, way, expected["losses"]))
    for preset_, precision in ((name, "fp32"), (options.presets[-1], "fp32"), (options.presets[-1], "bf16")):
        count = 3 if options.small else 8
        case = f"{preset_} {precision} recorded"
        cases.run(case, lambda p=preset_, b=precision, c=count: against(options, p, b, c, {"recorded": False}))
        case = f"{preset_} {precision} formulas compiled"
        plain = {"recorded": True, "compiled": False}
        cases.run(case, lambda p=preset_, b=precision, c=count, w=plain: against(options, p, b, c, w))


def losses(options: Options, name: str, device: str, way: str, count: int) -> list[Numbers]:
    """NELBO and gradient norm of `count` steps, with the CPU's noise."""
    batch = 2 if options.small else 16
    config = preset(options, name, precision="bf16" if way == "bf16" else "fp32", batch_size=batch)
    model, optimizer = made(config, device)
    network = network_of(config, model, optimizer)
    rows = []
    with full_float32() if way == "float32" else contextlib.nullcontext():
        for step, images, keys in batches(config, batch, count):
            drawn = keyed_noise(config.model, keys, "cpu")
            noise = lambda group, drawn=drawn: drawn(group).to(device)  # noqa: E731
            result = update(network, optimizer, config, images.to(device), noise, step)
            rows.append([float(result.distortion + result.rate.sum()), float(result.grad_norm)])
    return rows


def batches(config: Config, batch: int, count: int) -> Iterator[tuple[int, Tensor, list[tuple[int, ...]]]]:
    """Step, images and keys of `count` steps."""
    pool = torch.from_numpy(pictures(count * batch, config))
    for step in range(1, count + 1):
        yield step, pool[(step - 1) * batch : step * batch], [(0, step, i) for i in range(batch)]


def against_cpu(options: Options, name: str, way: str, expected: list[Numbers]) -> dict[str, Any]:
    rows = losses(options, name, options.device, way, len(expected))
    relative = [abs(a[0] - b[0]) / abs(a[0]) for a, b in zip(expected, rows, strict=True)]
    finite = all(map(math.isfinite, itertools.chain(*rows)))
    norm = abs(rows[0][1] / expected[0][1] - 1)
    return {"ok": finite and max(relative) <= TOLERANCE[way], "most": max(relative), "first_grad_norm": norm}


def against(options: Options, name: str, precision: str, count: int, way: dict[str, bool]) -> dict[str, Any]:
    """Losses of steps as training takes them against those of another `way`, with the same algorithms."""
    batch = 2 if options.small else 16
    config = preset(options, name, precision=precision, batch_size=batch)
    found, weights = [], []
    for told in (way, {"recorded": True}):
        model, optimizer = made(config, options.device)
        step_ = step_of(config, model, optimizer, **told)
        with same_algorithms():
            results = [step_(images.to(options.device), k, s) for s, images, k in batches(config, batch, count)]
        found.append([float(result.loss) for result in results])  # read last: a replay must not change them
        weights.append(optimizer.weights.detach().clone())
    most = max(abs(a - b) / abs(a) for a, b in zip(*found, strict=True))
    equal = sum(a == b for a, b in zip(*found, strict=True))
    return {"ok": most < 1e-4, "most": most, "equal": f"{equal} of {count}", "weights": torch.equal(*weights)}


# --- going on --------------------------------------------------------------------------------------------------------


def resume(options: Options, cases: Cases) -> None:
    first, last = options.presets[0], options.presets[-1]
    ways = [(first, "fp32", True, "auto"), (last, "fp32", True, "auto"), (first, "bf16", True, "auto")]
    ways += [(first, "fp32", True, "off"), (first, "fp32", False, "auto")]
    for name, precision, deterministic, graph in ways[:1] if options.small else ways:
        words = [name, precision] + ["--deterministic"] * deterministic + ["--graph off"] * (graph == "off")
        told = {"deterministic": deterministic, "graph": graph}
        cases.run(" ".join(words), lambda n=name, p=precision, t=told: cut_in_two(options, n, p, t))


def cut_in_two(options: Options, name: str, precision: str, told: dict[str, Any]) -> dict[str, Any]:
    """A run that was cut in two against an unbroken one."""
    steps, batch = (4, 2) if options.small else (12, 32)
    config = preset(options, name, precision=precision, batch_size=batch, steps=steps)
    source = as_source(pictures(64, config))
    folder = options.work / f"{name}-{precision}-{'-'.join(map(str, told.values()))}"
    warnings: list[str] = []
    given = TrainOptions(
        save_every=10**6, eval_every=10**6, log_every=1, validation_images=4, device=options.device, **told
    )
    whole = trained_in(folder / "whole", config, source, given, [steps], warnings)
    broken = trained_in(folder / "broken", config, source, given, [steps // 3, steps], warnings)
    equal = sum(a == b for a, b in zip(whole[0], broken[0], strict=True))
    exact = equal == steps and whole[1] == broken[1]
    return {"ok": exact, "rows": f"{equal} of {steps}", "weights": whole[1] == broken[1], "warnings": warnings}


def trained_in(
    run: Path, config: Config, source: ImageSource, told: TrainOptions, lengths: list[int], warnings: list[str]
) -> tuple[list[str], bytes]:
    """Rows of metrics.csv without time, and the model's bytes, of a run trained to each of `lengths` in turn."""
    for steps in lengths:
        wanted = with_settings(config, [f"train.steps={steps}"])
        ready = start_run(run, wanted, resume=steps != lengths[0], device=told.device)
        train(run, ready, source.split("train"), source.split("val"), told, on_warning=warnings.append)
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    return [row.rpartition(",")[0] for row in rows], (run / "model.safetensors").read_bytes()


# --- time ------------------------------------------------------------------------------------------------------------


def steps(options: Options, cases: Cases) -> None:
    first, last = options.presets[0], options.presets[-1]
    sizes = [2] if options.small else options.batch_sizes
    for way, precision in (("recorded", "fp32"), ("recorded", "bf16"), ("launched", "fp32"), ("launched", "bf16")):
        for batch in sizes:
            case = f"{last} b{batch} {precision} {way}"
            cases.run(case, lambda b=batch, p=precision, w=way: step_cost(options, last, b, p, w))
    for precision in ("fp32", "bf16"):
        case = f"{last} b{sizes[0]} {precision} recorded, formulas as written"
        told = (options, last, sizes[0], precision, "recorded")
        cases.run(case, lambda t=told: step_cost(*t, compiled=False))
    batch = sizes[-1]
    told = (options, last, batch, "fp32", "recorded")
    cases.run(f"{last} b{batch} fp32 recorded --deterministic", lambda: step_cost(*told, deterministic=True))
    cases.run(f"{last} b{batch} fp32 recorded, 2 parts", lambda: step_cost(*told, accumulate=2))
    batch = 2 if options.small else 64
    for way in ("recorded", "launched"):
        cases.run(f"{first} b{batch} fp32 {way}", lambda b=batch, w=way: step_cost(options, first, b, "fp32", w))


def step_cost(
    options: Options,
    name: str,
    batch: int,
    precision: str,
    way: str,
    *,
    deterministic: bool = False,
    compiled: bool = True,
    **train: Any,
) -> dict[str, Any]:
    """A step from images on the host to updated weights; and its kernels as they are counted without a GPU."""
    forget_memory(options.device)
    compiled = compiled and not deterministic  # as training does
    config = preset(options, name, precision=precision, batch_size=batch, **train)
    model, optimizer = made(config, options.device)
    step_ = step_of(config, model, optimizer, recorded=way == "recorded", compiled=compiled)
    images = torch.from_numpy(pictures(batch, config))
    images = images.pin_memory() if on_gpu(options.device) else images
    numbers, last = itertools.count(1), []

    def step() -> None:
        number = next(numbers)
        given = images.to(options.device, non_blocking=True)
        last[:] = [step_(given, [(0, number, i) for i in range(batch)], number)]

    rounds = 1 if options.small else 12 if way == "recorded" else 6
    with same_algorithms(deterministic):
        found = step_summary(step, options.device, rounds, batch)
    counted = {} if train else {"counted": count_step(config, batch, compiled=compiled).total}
    return found | counted | {"loss": float(last[0].loss)}


def compile(options: Options, cases: Cases) -> None:
    if options.small:
        cases.run("compiled", lambda: {"skipped": "nothing is compiled with --small"})
        return
    for name, batch, precision in (("tiny32", 64, "fp32"), ("cifar10_C1", 32, "bf16"), ("cifar10_C1", 32, "fp32")):
        for way in ("recorded", "launched"):
            case = f"{name} b{batch} {precision} {way} --compile"
            told = (options, name, batch, precision, way)
            cases.run(case, lambda told=told: step_cost(*told, compile=True))


# --- several processes -----------------------------------------------------------------------------------------------


def ddp(options: Options, cases: Cases) -> None:
    rendezvous = options.work / "rendezvous"
    backend = "cpu:gloo,cuda:nccl" if on_gpu(options.device) else "gloo"
    dist.init_process_group(backend, init_method=f"file://{rendezvous.resolve()}", rank=0, world_size=1)
    name, batch = options.presets[-1], 2 if options.small else 32
    for averaged in (False, True):
        case = f"{name} b{batch} fp32 {'gradients averaged' if averaged else 'alone'}"
        cases.run(case, lambda a=averaged: averaged_cost(options, name, batch, a))
    cases.run("reductions", lambda: {"ok": reductions(options.device)})
    dist.destroy_process_group()


def averaged_cost(options: Options, name: str, batch: int, averaged: bool) -> dict[str, Any]:
    """Launched steps that average their gradients over the one process there is, or do not."""
    forget_memory(options.device)
    config = preset(options, name, precision="fp32", batch_size=batch)
    model, optimizer = made(config, options.device)
    network = network_of(config, model, optimizer)
    images, numbers = torch.from_numpy(pictures(batch, config)).to(options.device), itertools.count(1)
    seen: list[StepResult] = []

    def mean(tensor: Tensor) -> Tensor:
        if averaged:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def step() -> None:
        number = next(numbers)
        noise = keyed_noise(config.model, [(0, number, i) for i in range(batch)], options.device)
        seen.append(update(network, optimizer, config, images, noise, number, mean))

    found = step_summary(step, options.device, 1 if options.small else 4, batch)
    return found | {"losses": [float(result.loss) for result in seen[:3]]}


def reductions(device: str) -> bool:
    """Those that training and KL statistics use."""
    sums, least = torch.ones(3, dtype=torch.float64, device=device), torch.full((), 7, device=device)
    dist.all_reduce(sums, dist.ReduceOp.SUM)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    told = ["told"]
    dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
    return bool(sums.sum() == 3 and least == 7 and told == ["told"])


# --- the published code ----------------------------------------------------------------------------------------------


class _Wrapped(nn.Module):
    """In the place of DistributedDataParallel, which its step expects."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Any:
        return self.module(*arguments)


def _average(model: nn.Module, average: nn.Module, rate: float) -> None:
    """The moving average as its utils have it, which import more than is needed here."""
    with torch.no_grad():
        for p, q in zip(model.module.parameters(), average.parameters(), strict=True):
            q.data.mul_(rate).add_(p.data * (1 - rate))


def published(options: Options, cases: Cases) -> None:
    if options.published is None:
        cases.run("published", lambda: {"skipped": "give --published"})
        return
    gpu = on_gpu(options.device)
    code = options.published / ("src/efficient_vdvae_torch" if gpu else "cpu")
    sys.path[:0] = [str(options.published / "shim"), str(code)]
    os.environ["EV_CFG"] = str(options.published / "src/egs/cifar10_C1.cfg")
    from hparams import HParams

    hparams = HParams(".", name="efficient_vdvae")
    hparams.run.num_gpus = 1
    for batch in [1] if options.small else options.batch_sizes:
        cases.run(f"cifar10_C1 b{batch} fp32 published", lambda b=batch: published_cost(options, hparams, b))


def published_cost(options: Options, hparams: Any, batch: int) -> dict[str, Any]:
    """Its train_step on random images that are on the device."""
    from model import model as code
    from model.adamax import Adamax
    from model.def_model import UniversalAutoEncoder

    forget_memory(options.device)
    code.update_ema, hparams.train.batch_size = _average, batch
    shape = (batch, hparams.data.channels, hparams.data.target_res, hparams.data.target_res)
    model = UniversalAutoEncoder().to(options.device)
    with torch.no_grad():
        model(torch.ones(1, *shape[1:], device=options.device))
    model.to(options.device)
    average, wrapped, optimizer = copy.deepcopy(model), _Wrapped(model), Adamax(model.parameters(), lr=1e-3)
    images = ((torch.randint(0, 256, shape).float() - 127.5) / 127.5).to(options.device)
    numbers = itertools.count(1)

    def step() -> None:
        code.train_step(wrapped, average, optimizer, images, next(numbers))

    return step_summary(step, options.device, 1 if options.small else 6, batch)
