"""Pictures: the cutoff curve, and reconstructions beside their originals (figure 6)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from ..storage.files import replaced_atomically

CURVE_FILE = "cutoffs.png"
SHEET_FILE = "reconstructions.png"
LABEL_WIDTH = 0.14  # of a share such as 0.924%, in widths of an axis of the curve


def save_cutoff_curve(folder: Path, table: pd.DataFrame) -> Path:
    """Draw against the share of dimensions kept: NELBO, its two terms, and what is decoded with its size."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    bound, terms, decoded = figure.subplots(1, 3)
    keep = [100 * share for share in table["kept_dims"] / table["dims"]]
    errors = table["nelbo_change_se"].fillna(0.0)
    bound.errorbar(keep, table["nelbo"], yerr=errors, marker="o", capsize=3)
    bound.set(title="Negative ELBO", ylabel="bits/dim (bars: standard error of the change)")
    for key, label in (("reconstruction", "reconstruction"), ("kl", "KL")):
        terms.plot(keep, table[key], marker="o", label=label)
    terms.set(title="Its two terms", ylabel="bits/dim", ylim=(0, None))
    terms.legend()
    decoded.plot(keep, table["psnr"], marker="o", color="tab:purple")
    decoded.set(title="What is decoded, and its size")
    decoded.set_ylabel("PSNR (dB)", color="tab:purple")
    size = decoded.twinx()
    size.plot(keep, table["bits_per_dim"], marker="s", color="tab:brown")
    size.set_ylabel("stored (bits/dim)", color="tab:brown")
    size.set_ylim(0, None)
    for axes in (bound, terms, decoded):
        _percent_axis(axes, keep)
    return save_figure(figure, folder / CURVE_FILE)


def _percent_axis(axes: Axes, keep: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(_apart(keep), minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}%"))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("latent dimensions kept")
    axes.grid(alpha=0.3)


def _apart(keep: Sequence[float]) -> list[float]:
    """Pick those of `keep` whose labels do not run into each other on a logarithmic axis: the ends, and some between.

    >>> _apart([1.0, 1.0, 1.2, 2.0, 9.0, 10.0])
    [1.0, 2.0, 10.0]
    """
    ticks, last = [min(keep)], max(keep)
    for value in sorted(keep):
        if min(_distance(ticks[-1], value), _distance(value, last)) > LABEL_WIDTH * _distance(ticks[0], last):
            ticks.append(value)
    return ticks if last == ticks[0] else [*ticks, last]


def _distance(small: float, large: float) -> float:
    """How far apart two numbers are on a logarithmic axis."""
    return math.log(large / small)


def save_reconstruction_sheet(
    folder: Path, originals: NDArray[np.uint8], decoded: Sequence[NDArray[np.uint8]], labels: Sequence[str]
) -> Path:
    """Draw originals, uint8 [n, C, H, W], above the same images decoded at each cutoff, labelled `labels`."""
    rows, count = [originals, *decoded], len(originals)
    figure = Figure(figsize=(0.9 * count + 1.2, 0.95 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for label, images, line in zip(("original", *labels), rows, grid, strict=True):
        for image, axes in zip(images, line, strict=True):
            axes.imshow(displayable(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", parse_math=False)
    return save_figure(figure, folder / SHEET_FILE)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically; returns `path`."""
    with replaced_atomically(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # names of files may have any letters
        figure.savefig(partial, format="png", dpi=110)
    return path


def displayable(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn [C, H, W] into [H, W] if there is one channel, else the first three as [H, W, 3] (two: the first alone)."""
    return image[0] if image.shape[0] < 3 else image[:3].transpose(1, 2, 0)
