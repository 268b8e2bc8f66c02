"""What the training studies share: photo patches, runs that go on where they were killed, held-out evaluation.

A run is a folder:

    config.json          what is trained, and its seed: a run of something else is refused
    state.safetensors    weights, moving average, moments, step; replaced at every evaluation
    steps.csv            one row a step
    held_out.csv         one row an evaluation
    held_out.npz         NELBO of each held-out image at the last evaluation
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvae_codec.analysis.quality import mean_squared_error, psnr, ssim
from hvae_codec.config import Config, config_to_dict
from hvae_codec.data.sample import write_sample_data
from hvae_codec.data.sources import open_images
from hvae_codec.errors import UsageError
from hvae_codec.model.checkpoint import load_weights, save_weights
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.precision import full_float32
from hvae_codec.storage.files import write_atomically
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.update import Network, StepResult, make_network, update

LOG_EVERY = 10
"""Steps whose numbers are fetched from the device together."""


@dataclass(frozen=True)
class Patches:
    """Photo patches in memory, uint8 [N, C, H, W]."""

    training: NDArray[np.uint8]
    held_out: NDArray[np.uint8]


def photo_patches(out: Path, size: int, held_out: int) -> Patches:
    """The patches of `sample-data`, written below `out` once; at most `held_out` held-out ones, evenly spaced."""
    folder = out / f"patches{size}"
    out.mkdir(parents=True, exist_ok=True)
    write_sample_data(folder, size=size)
    images = open_images(folder, size=size, channels=3)
    training, validation = images.split("train"), images.split("val").evenly(held_out)
    return Patches(training.read(range(len(training))), validation.read(range(len(validation))))


def use_threads(count: int) -> None:
    """Limit torch to `count` threads; numbers below the smallest normal one are 0, as in training."""
    torch.set_num_threads(count)
    torch.set_flush_denormal(True)


# --- training --------------------------------------------------------------------------------------------------------


@dataclass
class History:
    """What a run has written so far."""

    steps: list[dict[str, float]] = field(default_factory=list)
    """Of each step: rate, distortion and nelbo (bits/dim), grad_norm (before clipping), skipped (0 or 1), seconds."""
    held_out: list[dict[str, float]] = field(default_factory=list)
    """Of each evaluation: means over images, and the training's seconds so far."""
    nelbo: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """[N] bits/dim of each held-out image at the last evaluation."""

    @property
    def seconds(self) -> float:
        """Spent training, evaluations not counted."""
        return self.steps[-1]["seconds"] if self.steps else 0.0


@dataclass(frozen=True)
class Plan:
    """One run of a study."""

    folder: Path
    config: Config
    evaluate_every: int
    """Steps between evaluations; the last step has one in any case."""
    seed: int = 0
    """Of initial weights, batches and noise; runs of one seed share them where the shapes agree."""
    device: str = "cpu"
    max_seconds: float = float("inf")
    """Training stops here even if steps are left."""


def run(plan: Plan, patches: Patches, progress: Callable[[str], None] | None = None) -> History:
    """Train what `plan` says, from where its folder stands; a finished run is only read.

    Raises `UsageError` where the folder holds a run of another configuration or seed.
    """
    _claim(plan)
    model = make_model(plan.config, plan.seed, plan.device)
    optimizer = FlatOptimizer(model, plan.config.optimizer, plan.config.train.ema_decay)
    step, history = load_run(plan.folder, optimizer)
    network = make_network(model, plan.config.train)
    averaged = make_model(plan.config, plan.seed, plan.device)
    last = plan.config.train.steps
    while step < last and history.seconds < plan.max_seconds:
        stop = min(step + plan.evaluate_every - step % plan.evaluate_every, last)
        _train_until(stop, step, plan, patches, network, optimizer, history)
        step = int(history.steps[-1]["step"])
        averaged.load_state_dict(optimizer.named(optimizer.ema))
        _evaluate_into(history, step, averaged, patches.held_out)
        _save(plan.folder, step, optimizer, history)
        if progress is not None:
            nelbo = history.held_out[-1]["nelbo"]
            progress(f"{plan.folder.name}: step {step:,} of {last:,}, held-out NELBO {nelbo:.3f} bits/dim")
    return history


def make_model(config: Config, seed: int, device: str) -> HVAE:
    """A model with the initial weights of `seed`, on `device`, in training's memory format."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HVAE(config.model)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def batch_of(pixels: NDArray[np.uint8], batch_size: int, seed: int, step: int, *, flip: bool) -> Tensor:
    """uint8 [B, C, H, W] of `step` (from 1): a function of seed and step, every image once an epoch."""
    positions = np.arange((step - 1) * batch_size, step * batch_size)
    epochs = positions // len(pixels)
    orders = {e: np.random.default_rng((seed, 0, e)).permutation(len(pixels)) for e in np.unique(epochs).tolist()}
    chosen = [orders[e][p % len(pixels)] for e, p in zip(epochs.tolist(), positions.tolist(), strict=True)]
    images = pixels[chosen]
    if flip:
        mirrored = np.random.default_rng((seed, 1, step)).random(batch_size) < 0.5
        images[mirrored] = images[mirrored, :, :, ::-1]
    return torch.from_numpy(images)


def _train_until(
    stop: int,
    step: int,
    plan: Plan,
    patches: Patches,
    network: Network,
    optimizer: FlatOptimizer,
    history: History,
) -> None:
    config, seed, pending = plan.config, plan.seed, []
    before, started = history.seconds, time.perf_counter()
    size, flip = config.train.batch_size, config.train.horizontal_flip
    while step < stop and before + time.perf_counter() - started < plan.max_seconds:
        step += 1
        images = batch_of(patches.training, size, seed, step, flip=flip).to(plan.device)
        noise = keyed_noise(config.model, [(seed, step, i) for i in range(size)], plan.device)
        pending.append((step, update(network, optimizer, config, images, noise, step)))
        if len(pending) == LOG_EVERY or step == stop:
            _fetch(pending, history, before, started)
    _fetch(pending, history, before, started)


def _fetch(pending: list[tuple[int, StepResult]], history: History, before: float, started: float) -> None:
    """Move the numbers of `pending` steps to the history."""
    rows = []
    for step, result in pending:
        rate, distortion = result.rate.sum().item(), result.distortion.item()
        row = {"step": step, "nelbo": rate + distortion, "rate": rate, "distortion": distortion}
        rows.append(row | {"grad_norm": result.grad_norm.item(), "skipped": int(result.skipped)})
    seconds = before + time.perf_counter() - started
    history.steps += [row | {"seconds": round(seconds, 3)} for row in rows]
    pending.clear()


# --- evaluation ------------------------------------------------------------------------------------------------------


def _evaluate_into(history: History, step: int, model: HVAE, pixels: NDArray[np.uint8]) -> None:
    rate, distortion = bound(model, pixels)
    original, decoded = reconstructions(model, pixels)
    history.nelbo = rate + distortion
    row = {"step": step, "nelbo": history.nelbo.mean(), "rate": rate.mean(), "distortion": distortion.mean()}
    row |= {"nelbo_se": standard_error(history.nelbo), "ssim": ssim(original, decoded).mean()}
    row |= {"psnr": psnr(mean_squared_error(original, decoded)), "images": len(pixels), "seconds": history.seconds}
    history.held_out.append({name: float(value) for name, value in row.items()})


@torch.no_grad()
@full_float32()
def bound(model: HVAE, pixels: NDArray[np.uint8], batch_size: int = 50) -> tuple[NDArray, NDArray]:
    """Rate and distortion (bits/dim) of each image, [N] each; an image's noise is always the same."""
    rates, distortions = [], []
    for first in range(0, len(pixels), batch_size):
        batch = pixels[first : first + batch_size]
        # Training has step numbers from 1 in the second place.
        noise = keyed_noise(model.config, [(0, 0, first + i) for i in range(len(batch))], model.device)
        terms = model(torch.from_numpy(batch), noise)
        rates.append(terms.kl.sum(dim=0).double().cpu().numpy() / model.nats_per_bit_dim)
        distortions.append(terms.nll.double().cpu().numpy() / model.nats_per_bit_dim)
    return np.concatenate(rates), np.concatenate(distortions)


@full_float32()
def reconstructions(model: HVAE, pixels: NDArray[np.uint8], batch_size: int = 50) -> tuple[NDArray, NDArray]:
    """What the model knows of the images (low bits cut off) and its reconstructions, uint8 [N, C, H, W] each."""
    parts = [torch.from_numpy(pixels[first : first + batch_size]) for first in range(0, len(pixels), batch_size)]
    known = [model.likelihood.quantised(part).numpy() for part in parts]
    return np.concatenate(known), np.concatenate([model.reconstruct(part).cpu().numpy() for part in parts])


def standard_error(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Of the mean of `values`; NaN for a single one."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


# --- the folder ------------------------------------------------------------------------------------------------------


def _claim(plan: Plan) -> None:
    """Make the folder say what is trained in it, or check that it does."""
    own = json.dumps({"seed": plan.seed, **config_to_dict(plan.config)}, indent=2) + "\n"
    path = plan.folder / "config.json"
    plan.folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() != own:
        raise UsageError(f"{plan.folder} holds a run of other settings; give another --out, or remove it")
    write_atomically(path, own.encode())


def _save(folder: Path, step: int, optimizer: FlatOptimizer, history: History) -> None:
    """Write everything, the state last: rows beyond it are dropped on reading."""
    for name, rows in (("steps", history.steps), ("held_out", history.held_out)):
        write_atomically(folder / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False).encode())
    partial = folder / "held_out.partial.npz"
    np.savez(partial, nelbo=history.nelbo)
    partial.replace(folder / "held_out.npz")
    state = {f"optimizer/{name}": tensor for name, tensor in optimizer.tensors().items()}
    save_weights(folder / "state.safetensors", {**state, "step": torch.tensor(step)})


def load_run(folder: Path, optimizer: FlatOptimizer) -> tuple[int, History]:
    """Fill the optimiser from the folder's state; its step (0 where there is none) and history."""
    path = folder / "state.safetensors"
    if not path.exists():
        return 0, History()
    state = load_weights(path)
    step = int(state.pop("step"))
    optimizer.load({name.removeprefix("optimizer/"): tensor for name, tensor in state.items()})
    tables = [pd.read_csv(folder / f"{name}.csv") for name in ("steps", "held_out")]
    steps, held_out = (table[table["step"] <= step].to_dict("records") for table in tables)
    with np.load(folder / "held_out.npz") as arrays:
        return step, History(steps, held_out, arrays["nelbo"])
