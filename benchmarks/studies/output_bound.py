"""Bounded and unbounded output scales (paper section 6, figure 2) at 5 and 8 bits, over training.

    python benchmarks/studies/output_bound.py --out studies/output_bound

A logistic's scale that may shrink without end lets the likelihood of coarse levels grow without end: at 5 bits the
bound may improve while the images do not. Four runs differ in bits and in the floor of the log scale alone;
reconstruction, KL, NELBO (bits/dim) and SSIM are of held-out patches, with averaged weights. SSIM compares the
reconstruction with what the model was given: at 5 bits, the image without its 3 low bits. The bins tile the line, so
5-bit figures are those of a distribution; the published bins would be about 0.04 bits/dim better there. The preset
clips gradients; --set optimizer.clip_norm=none does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_above  # noqa: F401
from matplotlib.figure import Figure
from results import COLOURS, print_table, save_figure, write_markdown, write_results
from study import History, Patches, Plan, photo_patches, run, use_threads

from hvae_codec.config import Config, with_settings
from hvae_codec.presets import load_preset

UNBOUNDED = -250.0
PANELS = {
    "distortion": "reconstruction (bits/dim)",
    "rate": "KL (bits/dim)",
    "nelbo": "NELBO (bits/dim)",
    "ssim": "SSIM of the reconstruction",
}
Key = tuple[int, float]
"""Bits, and floor of the log scale."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    use_threads(options.threads)
    patches = photo_patches(options.out, 32, options.held_out)
    keys = [(bits, floor) for bits in options.bits for floor in (options.floor, UNBOUNDED)]
    runs = {key: train(options, patches, key) for key in keys}
    rows = [{"bits": bits, "floor": floor, **row} for (bits, floor), h in runs.items() for row in h.held_out]
    write_results(options.out, "output_bound", rows, vars(options))
    report(options, runs)
    save_figure(plot(runs), options.out / "output_bound.png")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/output_bound"), help="folder of runs and results")
    parser.add_argument("--preset", default="tiny32", help="of 32 × 32 colour images")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the preset, as train does")
    parser.add_argument("--bits", type=int, nargs="+", default=[5, 8])
    parser.add_argument("--floor", type=float, default=-7.0, help="of log scales, where bounded; published: -14, -7")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--evaluations", type=int, default=15, help="over training")
    parser.add_argument("--held-out", type=int, default=200, help="held-out patches to evaluate on, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it works")
    options = parser.parse_args(arguments)
    if options.small:
        options.steps, options.evaluations, options.held_out = 2, 2, 8
        options.set = ["train.batch_size=2", *options.set]
    return options


def study_config(options: argparse.Namespace, bits: int, floor: float) -> Config:
    """The preset with a softplus output scale, as published, and the floor."""
    settings = [f"model.bits={bits}", f"model.min_output_logscale={floor}", "train.precision=fp32"]
    settings += ["model.output_scale=std", "model.output_beta=0.6931472"]
    config = with_settings(load_preset(options.preset), [*settings, *options.set])
    return replace(config, train=replace(config.train, steps=options.steps))


def train(options: argparse.Namespace, patches: Patches, key: Key) -> History:
    bits, floor = key
    folder = options.out / "runs" / f"{bits}bits-floor{-floor:g}-seed{options.seed}"
    every = max(options.steps // options.evaluations, 1)
    return run(Plan(folder, study_config(options, bits, floor), every, options.seed), patches, print)


def label(bits: int, floor: float) -> str:
    return f"{bits} bits, " + ("unbounded" if floor == UNBOUNDED else f"log scale at least {floor:g}")


def report(options: argparse.Namespace, runs: dict[Key, History]) -> None:
    columns = ["output", "reconstruction", "KL", "NELBO, bits/dim", "SSIM", "PSNR, dB", "largest gradient", "skipped"]
    lines = []
    for (bits, floor), history in runs.items():
        end, steps = history.held_out[-1], history.steps
        largest, skipped = max(step["grad_norm"] for step in steps), sum(step["skipped"] for step in steps)
        line = [label(bits, floor), f"{end['distortion']:.3f}", f"{end['rate']:.3f}"]
        line += [f"{end['nelbo']:.3f} ± {end['nelbo_se']:.3f}", f"{end['ssim']:.3f}", f"{end['psnr']:.2f}"]
        lines.append([*line, f"{largest:.1f}", f"{skipped:.0f}"])
    caption = (
        f"After {options.steps:,} steps, on {options.held_out} held-out patches; ± is the standard error over them"
    )
    print_table("Bounded and unbounded output scales", columns, lines, caption)
    write_markdown(options.out / "output_bound.md", columns, lines)


def plot(runs: dict[Key, History]) -> Figure:
    """Colour says how many bits, dashes that the scale is unbounded."""
    figure = Figure(figsize=(15, 4), layout="constrained")
    colours = dict(zip(dict.fromkeys(bits for bits, _ in runs), COLOURS, strict=False))
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for (bits, floor), history in runs.items():
            style: dict[str, Any] = {"color": colours[bits], "label": label(bits, floor)}
            style |= {"linestyle": "--", "marker": "o"} if floor == UNBOUNDED else {"linestyle": "-", "marker": "s"}
            steps = [row["step"] for row in history.held_out]
            axes.plot(steps, [row[name] for row in history.held_out], markersize=4, **style)
        axes.set(xlabel="step", ylabel=title)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    main()
