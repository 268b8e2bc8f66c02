"""The section of report.html that compares with image codecs; it is put into a page that is there already, too.

<!-- image codecs --> ... <!-- end of image codecs -->     empty until bench was run
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..storage.files import write_atomically
from .page_figures import PageFigure, curves_layout
from .rate_curves import Curve, lossless_rates, rate_curves
from .templates import template

BEGIN, END = "<!-- image codecs -->", "<!-- end of image codecs -->"


def bench_section(content: Mapping[str, Any]) -> str:
    """Make the section of what `page_content` collected, as HTML."""
    figures = rate_figures(content["table"])
    shown = {**content, "figures": figures, "data": [figure.to_dict() for figure in figures]}
    return template("page_bench.html.j2").render(shown)


def put_into_page(path: Path, content: Mapping[str, Any]) -> bool:
    """Put the section into the page at `path`, in place of one that is there; whether there is a page with a place."""
    if not path.is_file():
        return False
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):  # written before there were such sections
        return False
    write_atomically(path, f"{before}{BEGIN}{bench_section(content)}{END}{after}".encode())
    return True


def rate_figures(table: pd.DataFrame) -> list[PageFigure]:
    """Plot PSNR against bits/dim: of the payload, and of all bytes on disk."""
    return [
        _figure(
            table,
            "payload_bits_per_dim",
            "PSNR against payload",
            "File headers are left out; of stores, all but latents. Dotted: lossless codecs.",
        ),
        _figure(
            table,
            "bits_per_dim",
            "PSNR against all bytes",
            "Files as they are; of stores, with names and metadata. A model that has no store is not here.",
        ),
    ]


def _figure(table: pd.DataFrame, rate: str, title: str, caption: str) -> PageFigure:
    traces = [_trace(curve, rate) for curve in rate_curves(table)]
    known = [trace for trace in traces if trace["x"]]
    lossless = lossless_rates(table, rate)
    rates = [*(x for trace in known for x in trace["x"]), *(bits for _, bits, _ in lossless)]
    layout = curves_layout("bits/dim", "PSNR, dB", rates)
    lines = {"layer": "below", "yref": "paper", "y0": 0, "y1": 1}
    layout["shapes"] = [
        {**lines, "x0": bits, "x1": bits, "line": {"dash": "dot", "width": 1.5, "color": colour}}
        for _, bits, colour in lossless
    ]
    return PageFigure(f"bench-{rate}", title, caption, {"data": known, "layout": layout}, ())


def _trace(curve: Curve, rate: str) -> dict[str, Any]:
    """Escape names, as Plotly reads some HTML in texts: a mask has the name of its file."""
    points, name = curve.points.dropna(subset=[rate]), html.escape(curve.name)
    hover = [
        f"<b>{name}</b>, {row['setting']}<br>{row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}<br>{row[rate]:.3f} bits/dim"
        for row in points.to_dict(orient="records")
    ]
    style = {"mode": "markers", "marker": {"size": 13, "symbol": "star"}} if curve.is_point else {}
    line = {"color": curve.colour, "width": 3 if curve.kind == "model" else 1.5}
    return {
        "type": "scatter",
        "x": points[rate].tolist(),
        "y": points["psnr"].tolist(),
        "name": name,
        "mode": "lines+markers",
        "line": line,
        "hovertext": hover,
        "hoverinfo": "text",
        **style,
    }
