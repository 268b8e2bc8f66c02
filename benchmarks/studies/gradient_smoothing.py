"""Gradient smoothing (paper section 4.2, table 2): gradient norms, skipped updates and NELBO with and without it.

    python benchmarks/studies/gradient_smoothing.py --out studies/gradient_smoothing

The scale of prior and posterior is softplus(raw, beta) with beta = ln 2 (smoothed) or 1 (not), or exp(raw), as VDVAE
has it. All else is the same: the initial weights, batches and noise of each seed too. Every run has equally many
*steps*, not images: the question is how many of the updates are skipped, and the schedules of KL and learning rate
count steps. So NELBO compares within a batch size, not between them. The published threshold, 800, belongs to models a
hundred times larger; updates are skipped at --skip-threshold, and norms at or above other thresholds are counted.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import folder_above  # noqa: F401
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from results import COLOURS, print_table, save_figure, write_markdown, write_results
from study import History, Patches, Plan, photo_patches, run, standard_error, use_threads

from hvae_codec.config import Config, LossConfig, ModelConfig, OptimizerConfig, StageConfig, TrainConfig


@dataclass(frozen=True)
class Scale:
    """A way to make the scale of prior and posterior from the network's raw output."""

    label: str
    """The function that gives a scale, and its beta."""
    base: Literal["std", "logstd"]
    beta: float


SCALES = {
    "smoothed": Scale("softplus, ln 2", "std", math.log(2.0)),
    "unsmoothed": Scale("softplus, 1", "std", 1.0),
    "logstd": Scale("exp", "logstd", 1.0),
}
Runs = dict[tuple[int, str], list[History]]
"""Histories of all seeds, by batch size and scale."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    use_threads(options.threads)
    patches = photo_patches(options.out, 16, options.held_out)
    runs = {
        (size, name): [train(options, patches, size, name, seed) for seed in range(options.seeds)]
        for size in options.batch_sizes
        for name in options.scales
    }
    rows = [summary(runs, size, name, options.thresholds) for size, name in runs]
    write_results(options.out, "gradient_smoothing", rows, vars(options))
    report(options, rows)
    save_figure(plot(runs, options), options.out / "gradient_smoothing.png")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/gradient_smoothing"), help="folder of runs, results")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--scales", nargs="+", choices=list(SCALES), default=list(SCALES))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--skip-threshold", type=float, default=50.0, help="gradient norm at which updates are skipped")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[25, 50, 100, 200, 400, 800], help="to count at")
    parser.add_argument("--held-out", type=int, default=800, help="held-out patches to evaluate on, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a few steps of one seed, to see that it works")
    options = parser.parse_args(arguments)
    if options.small:
        options.batch_sizes, options.seeds, options.steps, options.held_out = [2, 4], 1, 2, 8
    return options


def study_config(options: argparse.Namespace, batch_size: int, scale: Scale) -> Config:
    """10 latent groups for 16 × 16 patches; optimiser and output as published, schedules as short as the runs."""
    stages = (
        StageConfig(16, width=16, variates=8, bottleneck=0.5, linked_blocks=2),
        StageConfig(8, width=24, variates=8, bottleneck=0.5, linked_blocks=3),
        StageConfig(4, width=32, variates=8, bottleneck=0.5, linked_blocks=3),
        StageConfig(1, width=32, variates=8, bottleneck=0.5, kernel=1, linked_blocks=2),
    )
    steps, rate = options.steps, options.learning_rate
    model = ModelConfig(16, stages, mixtures=5, middle_layers=1, output_scale="logstd", output_beta=1.0)
    return Config(
        replace(model, posterior_scale=scale.base, posterior_beta=scale.beta),
        OptimizerConfig(
            learning_rate=rate,
            warmup_steps=steps / 20,
            decay_start=steps // 2,
            decay_steps=steps // 2,
            min_learning_rate=rate / 5,
            skip_threshold=options.skip_threshold,
        ),
        LossConfig(anneal_start=1, anneal_steps=steps // 10, balance_steps=steps // 5),
        TrainConfig(steps=steps, batch_size=batch_size, ema_decay=0.98, precision="fp32"),
    )


def train(options: argparse.Namespace, patches: Patches, batch_size: int, name: str, seed: int) -> History:
    folder = options.out / "runs" / f"batch{batch_size}-{name}-seed{seed}"
    config = study_config(options, batch_size, SCALES[name])
    return run(Plan(folder, config, evaluate_every=max(options.steps // 2, 1), seed=seed), patches, print)


# --- what is reported ------------------------------------------------------------------------------------------------


def norms(histories: Sequence[History]) -> NDArray[np.float64]:
    """Gradient norms, [seeds, steps]; a norm that is no number counts as infinite."""
    found = np.array([[step["grad_norm"] for step in history.steps] for history in histories])
    return np.where(np.isnan(found), np.inf, found)


def summary(runs: Runs, size: int, name: str, thresholds: Sequence[float]) -> dict[str, Any]:
    """One row of the table; counts are over all seeds. `change` is NELBO against beta = 1, seed by seed."""
    histories, found = runs[size, name], norms(runs[size, name])
    skipped = [sum(step["skipped"] for step in history.steps) for history in histories]
    row: dict[str, Any] = {"batch_size": size, "scale": name, "steps": found.size, "skipped": int(sum(skipped))}
    row |= {f"norm_{q}": float(np.quantile(found, s)) for q, s in (("median", 0.5), ("p99", 0.99), ("max", 1.0))}
    row |= {f"at_least_{threshold:g}": int((found >= threshold).sum()) for threshold in thresholds}
    row["nelbo"], row["nelbo_se"] = mean_and_error([history.nelbo for history in histories])
    base = runs.get((size, "unsmoothed"))
    if base is not None and name != "unsmoothed":
        changes = [history.nelbo - other.nelbo for history, other in zip(histories, base, strict=True)]
        row["change"], row["change_se"] = mean_and_error(changes)
    return row


def mean_and_error(per_image: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Mean over seeds and images; standard error over seeds, or over images where there is one seed."""
    means = [float(values.mean()) for values in per_image]
    return float(np.mean(means)), standard_error(means if len(means) > 1 else per_image[0])


def report(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    counts = [f"at_least_{threshold:g}" for threshold in options.thresholds]
    columns = ["batch", "scale", f"skipped of {rows[0]['steps']:,}", "norm: median", "99%", "max"]
    columns += [f">= {threshold:g}" for threshold in options.thresholds]
    columns += ["held-out NELBO, bits/dim", "change from softplus, 1"]
    lines = []
    for row in rows:
        line = [str(row["batch_size"]), SCALES[row["scale"]].label, f"{row['skipped']:,}"]
        line += [f"{row[f'norm_{q}']:.1f}" for q in ("median", "p99", "max")] + [f"{row[name]:,}" for name in counts]
        line.append(f"{row['nelbo']:.3f} ± {row['nelbo_se']:.3f}")
        line.append(f"{row['change']:+.4f} ± {row['change_se']:.4f}" if "change" in row else "–")
        lines.append(line)
    over = f"{options.seeds} seeds" if options.seeds > 1 else "images"
    print_table("Gradient smoothing", columns, lines, f"Counts are of all seeds; ± is the standard error over {over}")
    write_markdown(options.out / "gradient_smoothing.md", columns, lines)


def plot(runs: Runs, options: argparse.Namespace) -> Figure:
    figure = Figure(figsize=(4.2 * len(options.batch_sizes), 7), layout="constrained")
    above, below = figure.subplots(2, len(options.batch_sizes), sharey="row", squeeze=False)
    for over_time, counted, size in zip(above, below, options.batch_sizes, strict=True):
        for name, colour, dash in zip(options.scales, COLOURS, ("-", "--", ":"), strict=False):
            draw(over_time, counted, norms(runs[size, name]), color=colour, linestyle=dash, label=SCALES[name].label)
        over_time.axhline(options.skip_threshold, color="black", linewidth=0.8)
        over_time.set(title=f"batch size {size}", xlabel="step", yscale="log")
        counted.axvline(options.skip_threshold, color="black", linewidth=0.8)
        counted.set(xlabel="gradient norm (nats/dim per unit of weight)", xscale="log", yscale="log")
        over_time.grid(alpha=0.3)
        counted.grid(alpha=0.3)
    above[0].set_ylabel("largest gradient norm around this step\n(of all seeds; line: skip threshold)")
    below[0].set_ylabel("share of steps with this norm or more")
    above[0].legend()
    return figure


def draw(over_time: Axes, counted: Axes, found: NDArray[np.float64], **style: Any) -> None:
    """Norms [seeds, steps] as a running maximum over steps, and as the share of steps at or above each norm."""
    window = max(found.shape[1] // 30, 1)
    largest = pd.Series(found.max(axis=0)).rolling(window, center=True, min_periods=1).max()
    over_time.plot(np.arange(1, len(largest) + 1), largest, linewidth=1.5, **style)
    ordered = np.sort(found[np.isfinite(found)])
    counted.step(ordered, 1.0 - np.arange(len(ordered)) / found.size, where="pre", linewidth=1.5, **style)


if __name__ == "__main__":
    main()
