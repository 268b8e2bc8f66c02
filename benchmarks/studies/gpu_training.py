"""Training on a GPU: images/s and memory of published presets, then a model trained on the photo patches.

    python benchmarks/studies/gpu_training.py --out studies/gpu_training --minutes 8
    python benchmarks/studies/gpu_training.py --out studies/gpu_training --device cpu --small

First, each preset takes steps in float32 and bf16, with and without torch.compile, every case in a process of its own.
float32 is what torch trains with by default: convolutions on recent GPUs round their inputs to TF32. Then one preset
trains for --minutes, its schedules as long as that; the held-out NELBO stands against what PNG and lossless WebP need
for the same images, file headers included. Samples and reconstructions are written as PNG.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import folder_above  # noqa: F401
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from results import COLOURS, print_table, save_figure, write_markdown, write_results
from step_cost import StepCost, measure, timed_steps
from study import History, Plan, load_run, make_model, photo_patches, reconstructions, run, use_threads

from hvae_codec.config import Config, config_from_dict, config_to_dict, with_settings
from hvae_codec.model.checkpoint import save_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.sampling import sample_images
from hvae_codec.presets import load_preset
from hvae_codec.train.optimizer import FlatOptimizer

BASELINES: dict[str, dict[str, Any]] = {
    "PNG": {"format": "png", "optimize": True},
    "lossless WebP": {"format": "webp", "lossless": True, "quality": 100, "method": 6},
}
TEMPERATURES = (1.0, 0.85, 0.7)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    use_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    costs = step_costs(options)
    write_results(options.out, "steps", costs, vars(options))
    report_costs(options, costs)
    if options.minutes > 0:
        train_and_show(options)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/gpu_training"), help="folder of runs and results")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--presets", nargs="*", default=["cifar10_C1", "imagenet32_C1"], help="to be timed")
    parser.add_argument("--batch-size", type=int, default=64, help="of the timed steps")
    parser.add_argument("--steps", type=int, default=15, help="timed steps, after one that warms up")
    parser.add_argument("--no-compile", action="store_true", help="time no compiled models: compiling takes minutes")
    parser.add_argument("--preset", default="cifar10_C1", help="to be trained; of 32 × 32 colour images")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to it, as train has them")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training; 0 for the timing alone")
    parser.add_argument("--held-out", type=int, default=800, help="held-out patches to evaluate on, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a small model for seconds, to see that it works")
    options = parser.parse_args(arguments)
    if options.small:
        options.presets, options.preset, options.no_compile = ["tiny32"], "tiny32", True
        options.batch_size, options.steps, options.minutes, options.held_out = 2, 1, 0.03, 8
        options.set = ["train.batch_size=2", "train.precision=fp32", *options.set]
    return options


# --- time and memory of a step ---------------------------------------------------------------------------------------


def step_costs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a preset, precision and way to run it."""
    empty = measure(None, threads=options.threads).mebibytes if options.device == "cpu" else 0.0
    ways = [False] if options.no_compile else [False, True]
    cases = [(p, precision, way) for p in options.presets for precision in ("fp32", "bf16") for way in ways]
    return [step_cost(options, *case, empty) for case in cases]


def step_cost(options: argparse.Namespace, preset: str, precision: str, compiled: bool, empty: float) -> dict[str, Any]:
    """Measured now, or read where the same was measured before."""
    settings = [f"train.precision={precision}", f"train.compile={str(compiled).lower()}"]
    config = with_settings(load_preset(preset), [*settings, f"train.batch_size={options.batch_size}"])
    request = {"config": config_to_dict(config), "device": options.device, "steps": options.steps}
    path = options.out / "measured" / f"{preset}-{precision}{'-compiled' if compiled else ''}.json"
    saved = json.loads(path.read_text()) if path.exists() else {}
    if saved.get("request") != json.loads(json.dumps(request)):
        print(f"measuring: {path.stem}")
        found = measure(config, device=options.device, threads=options.threads, steps=options.steps)
        saved = {"request": request, "cost": asdict(found), "empty": empty}
        if not found.error:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(saved, indent=2) + "\n")
    cost = StepCost(**saved["cost"])
    row = {"preset": preset, "precision": precision, "compiled": compiled, **asdict(cost)}
    return row | {"mebibytes": cost.mebibytes - saved["empty"], "images_per_second": options.batch_size / cost.seconds}


def report_costs(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    columns = ["preset", "precision", "compiled", "images/s", "ms a step", "first step, s", "memory, MiB"]
    lines = []
    for row in rows:
        line = [row["preset"], row["precision"], "yes" if row["compiled"] else "no"]
        if row["error"]:
            lines.append([*line, row["error"], "", "", ""])
            continue
        line += [f"{row['images_per_second']:,.1f}", f"{1000 * row['seconds']:,.1f}", f"{row['first_seconds']:,.1f}"]
        lines.append([*line, f"{row['mebibytes']:,.0f}"])
    device = next((row["device"] for row in rows if row["device"]), options.device)
    caption = f"{device}, torch {torch.__version__}, batch size {options.batch_size}, median of {options.steps} steps"
    print_table("Training steps", columns, lines, caption)
    write_markdown(options.out / "steps.md", columns, lines)


# --- a model ---------------------------------------------------------------------------------------------------------


def train_and_show(options: argparse.Namespace) -> None:
    patches = photo_patches(options.out, 32, options.held_out)
    folder = options.out / "runs" / options.preset
    config = study_config(options, folder)
    every = max(config.train.steps // 12, 1)
    plan = Plan(folder, config, every, device=options.device, max_seconds=60.0 * options.minutes)
    history = run(plan, patches, print)
    coded = {name: coded_size(patches.held_out, kind) for name, kind in BASELINES.items()}
    model = averaged_model(plan)
    write_results(options.out, "training", history.held_out, {**vars(options), "coded": coded})
    report_training(options, config, history, coded)
    save_figure(plot(history, coded), options.out / "training.png")
    save_pictures(options.out, model, patches.held_out)


def study_config(options: argparse.Namespace, folder: Path) -> Config:
    """The preset with schedules as long as the time allows; a run that was begun keeps its own."""
    if (folder / "config.json").exists():
        data = json.loads((folder / "config.json").read_text())
        data.pop("seed")
        return config_from_dict(data)
    settings = ["train.precision=bf16", *options.set]
    config = with_settings(load_preset(options.preset), settings)
    times = timed_steps(make_model(config, 0, options.device), config, options.device, 5)
    steps = max(int(60.0 * options.minutes / float(np.median(times[1:]))), 2)
    optimizer = replace(config.optimizer, decay_start=steps // 4, decay_steps=max(steps * 3 // 4, 1))
    loss = replace(config.loss, anneal_start=1, anneal_steps=steps // 10, balance_steps=steps // 5)
    # The average must forget the first quarter, however short the run.
    train = replace(config.train, steps=steps, ema_decay=min(config.train.ema_decay, max(1.0 - 20.0 / steps, 0.0)))
    return replace(config, optimizer=optimizer, loss=loss, train=train)


def coded_size(pixels: NDArray[np.uint8], kind: dict[str, Any]) -> float:
    """bits/dim that a file format needs for uint8 `pixels` [N, C, H, W], each image a file."""
    total = 0
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, **kind)
        total += len(file.getvalue())
    return 8.0 * total / pixels.size


def averaged_model(plan: Plan) -> HVAE:
    """The averaged weights of a finished run, also written as a run that the commands take as --model."""
    model = make_model(plan.config, plan.seed, plan.device)
    optimizer = FlatOptimizer(make_model(plan.config, plan.seed, plan.device), plan.config.optimizer, 0.0)
    load_run(plan.folder, optimizer)
    model.load_state_dict(optimizer.named(optimizer.ema))
    save_model(plan.folder / "model", plan.config, model.state_dict())
    return model.requires_grad_(False).eval()


def report_training(options: argparse.Namespace, config: Config, history: History, coded: dict[str, float]) -> None:
    columns = ["", "held-out bits/dim", "reconstruction", "KL", "SSIM", "PSNR, dB", "step", "minutes"]
    last, best = history.held_out[-1], min(history.held_out, key=lambda row: row["nelbo"])
    lines = [[name, f"{value:.3f}", *["–"] * 6] for name, value in coded.items()]
    for name, row in (("model at the end", last), ("model at its best", best)):
        line = [name, f"{row['nelbo']:.3f} ± {row['nelbo_se']:.3f}", f"{row['distortion']:.3f}", f"{row['rate']:.3f}"]
        line += [f"{row['ssim']:.3f}", f"{row['psnr']:.2f}", f"{row['step']:,.0f}", f"{row['seconds'] / 60:.1f}"]
        lines.append(line)
    skipped = sum(step["skipped"] for step in history.steps)
    caption = f"{options.preset}, {config.train.precision}, batch size {config.train.batch_size}, {skipped:.0f} skipped"
    print_table(f"{last['images']:.0f} held-out patches", columns, lines, caption)
    write_markdown(options.out / "training.md", columns, lines)


# --- pictures --------------------------------------------------------------------------------------------------------


def plot(history: History, coded: dict[str, float]) -> Figure:
    """NELBO of training batches and of held-out patches over time, against the file formats."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    window = max(len(history.steps) // 50, 1)
    steps = [np.mean([s["nelbo"] for s in history.steps[i : i + window]]) for i in range(0, len(history.steps), window)]
    minutes = [history.steps[i]["seconds"] / 60 for i in range(0, len(history.steps), window)]
    axes.plot(minutes, steps, color=COLOURS[5], label="training batches")
    held_out = [row["nelbo"] for row in history.held_out]
    axes.plot([row["seconds"] / 60 for row in history.held_out], held_out, "o-", color=COLOURS[0], label="held-out")
    for (name, value), dash, colour in zip(coded.items(), ("--", ":"), COLOURS[1:], strict=False):
        axes.axhline(value, linestyle=dash, color=colour, label=name)
    low = min(*held_out, *coded.values())
    top = max(1.6 * low, min(held_out) + 1)
    axes.set(xlabel="minutes of training", ylabel="NELBO (bits/dim)", ylim=(0.9 * low, top))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def save_pictures(out: Path, model: HVAE, pixels: NDArray[np.uint8]) -> None:
    """reconstructions.png: originals above reconstructions; samples.png: 4 rows at each temperature."""
    chosen = pixels[np.linspace(0, len(pixels) - 1, 32).round().astype(int)]
    pairs = zip(*(part.reshape(2, 16, *part.shape[1:]) for part in reconstructions(model, chosen)), strict=True)
    save_grid(out / "reconstructions.png", [row for pair in pairs for row in pair])
    rows: list[NDArray[np.uint8]] = []
    for temperature in TEMPERATURES:
        drawn = np.concatenate(list(sample_images(model, 64, temperature)))
        rows += list(drawn.reshape(4, 16, *drawn.shape[1:]))
    save_grid(out / "samples.png", rows)
    print(f"Pictures: {out / 'reconstructions.png'}, {out / 'samples.png'} (temperatures {TEMPERATURES}, 4 rows each)")


def save_grid(path: Path, rows: Sequence[NDArray[np.uint8]], enlarge: int = 2) -> None:
    """Rows of uint8 [n, C, H, W] as one PNG, each pixel `enlarge` wide, a white line between images."""
    padded = [np.pad(row, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=255) for row in rows]
    lines = [np.concatenate(list(row), axis=2) for row in padded]
    picture = np.concatenate(lines, axis=1).transpose(1, 2, 0).repeat(enlarge, 0).repeat(enlarge, 1)
    Image.fromarray(picture).save(path)


if __name__ == "__main__":
    main()
