"""The picture of bench: rate-distortion curves, without and with headers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from .page_figures import RATE_TICKS
from .plots import save_figure
from .rate_curves import lossless_rates, rate_curves

PLOT_FILE = "bench.png"


def save_rate_curves(folder: Path, table: pd.DataFrame) -> Path:
    """Draw PSNR and SSIM against bits/dim, without headers, and PSNR against bits/dim on disk."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    quality, similarity, on_disk = figure.subplots(1, 3)
    _draw(quality, table, "payload_bits_per_dim", "psnr")
    quality.set(title="PSNR against payload", xlabel="bits/dim, without headers", ylabel="PSNR (dB)")
    _draw(similarity, table, "payload_bits_per_dim", "ssim")
    similarity.set(title="SSIM against payload", xlabel="bits/dim, without headers", ylabel="SSIM")
    _draw(on_disk, table, "bits_per_dim", "psnr")
    on_disk.set(title="PSNR against all bytes on disk", xlabel="bits/dim, with headers, names and metadata")
    on_disk.set_ylabel("PSNR (dB)")
    handles, labels = quality.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9)
    return save_figure(figure, folder / PLOT_FILE)


def _draw(axes: Axes, table: pd.DataFrame, rate: str, quality: str) -> None:
    for curve in rate_curves(table):
        points = curve.points.dropna(subset=[rate])
        style = {"marker": "*", "markersize": 13, "linestyle": ""} if curve.is_point else {"marker": "o"}
        width = 2.4 if curve.kind == "model" else 1.4
        axes.plot(points[rate], points[quality], color=curve.colour, linewidth=width, label=curve.name, **style)
    for name, bits, colour in lossless_rates(table, rate):
        axes.axvline(bits, color=colour, linestyle=":", linewidth=1.4, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(RATE_TICKS))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
