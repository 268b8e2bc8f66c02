"""Pictures: the cutoff curve, and reconstructions beside their originals (figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

CURVE_FILE = "cutoffs.png"
SHEET_FILE = "reconstructions.png"


def save_cutoff_curve(folder: Path, table: pd.DataFrame) -> Path:
    """Draw NELBO, reconstruction and KL, and PSNR and size, against the share of dimensions kept."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    keep = [100 * share for share in table["keep"]]
    for key, label in (("nelbo", "negative ELBO"), ("reconstruction", "reconstruction"), ("kl", "KL")):
        left.plot(keep, table[key], marker="o", label=label)
    left.set(ylabel="bits/dim", ylim=(0, None), title="What a cutoff costs")
    left.legend()
    right.plot(keep, table["psnr"], marker="o", color="tab:purple")
    right.set(title="What is decoded, and its size")
    right.set_ylabel("PSNR (dB)", color="tab:purple")
    size = right.twinx()
    size.plot(keep, table["bits_per_dim"], marker="s", color="tab:brown")
    size.set_ylabel("stored (bits/dim)", color="tab:brown")
    size.set_ylim(0, None)
    for axes in (left, right):
        _percent_axis(axes, keep)
    path = folder / CURVE_FILE
    figure.savefig(path, dpi=110)
    return path


def _percent_axis(axes: Axes, keep: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(keep, minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.set_xlabel("latent dimensions kept")
    axes.grid(alpha=0.3)


def save_reconstruction_sheet(
    folder: Path, originals: NDArray[np.uint8], decoded: Sequence[NDArray[np.uint8]], keeps: Sequence[float]
) -> Path:
    """Draw originals, uint8 [n, C, H, W], above the same images decoded at each cutoff."""
    labels = ["original", *(f"{100 * keep:g}%" for keep in keeps)]
    rows = [originals, *decoded]
    count = len(originals)
    figure = Figure(figsize=(0.9 * count + 1.2, 0.95 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for label, images, line in zip(labels, rows, grid, strict=True):
        for image, axes in zip(images, line, strict=True):
            axes.imshow(_displayable(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    path = folder / SHEET_FILE
    figure.savefig(path, dpi=110)
    return path


def _displayable(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[C, H, W] as [H, W] where there is one channel, else the first three as [H, W, 3] (two: the first alone)."""
    return image[0] if image.shape[0] < 3 else image[:3].transpose(1, 2, 0)
