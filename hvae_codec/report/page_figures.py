"""The page's plots as Plotly figures: plain data, with what each cutoff marks in them.

Colours of text, grids and marks are the page's, which knows whether it is light or dark.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import sample_colorscale

from ..prune.kl_stats import KLStats
from ..prune.ranking import Granularity, Ranking
from .cutoffs import Row, change_text
from .groups import resolution_table
from .page_text import percent

LINE = "#3d7fd6"
RESOLUTION_SCALE = ("#8a63d2", "#3d7fd6", "#17a2a2", "#4fae4a", "#d9a21b", "#e2703a", "#cc4b6c")
"""From the lowest resolution to the highest; each is seen on white and on black."""
SHARE_TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
LEAST_KL = 1e-6
"""The ranking is drawn down to this share of its highest KL: collapsed variates have next to none."""


@dataclass(frozen=True)
class PageFigure:
    """One plot of the page, with its words."""

    name: str
    title: str
    caption: str
    figure: dict[str, Any]
    """`data` and `layout`, as Plotly takes them."""
    marks: Sequence[Mapping[str, float]]
    """For each cutoff, where its vertical line stands (`x`), and its horizontal one if it has one (`y`)."""
    kept: Sequence[Sequence[Sequence[float]]] = ()
    """For each cutoff, the lengths of the bars of what it keeps, [traces][bars]; they are the last traces."""
    points: bool = False
    """Whether the first trace has a point for each cutoff."""
    wide: bool = False
    """Whether it takes the whole width of the page."""

    def to_dict(self) -> dict[str, Any]:
        """Return what the page's script needs."""
        return {name: getattr(self, name) for name in ("name", "figure", "marks", "kept", "points")}


def cutoff_figures(rows: Sequence[Row]) -> list[PageFigure]:
    """Plot NELBO, its two terms, and quality against size, from the rows of the cutoff table."""
    bars = "Bars: one standard error of the paired change. Dotted: all latents."
    share = "bits/dim of held-out images."
    return [
        _against_share(rows, "nelbo", "Negative ELBO", bars, with_change=True),
        _quality(rows),
        _against_share(rows, "reconstruction", "Reconstruction", f"The distortion term, {share}"),
        _against_share(rows, "kl", "KL", f"The rate term, {share} Pruned dimensions have none."),
    ]


def _against_share(
    rows: Sequence[Row], column: str, title: str, caption: str, *, with_change: bool = False
) -> PageFigure:
    shares = [100 * row["kept_dims"] / row["dims"] for row in rows]
    trace = _line(shares, [row[column] for row in rows], [_hover(row, column) for row in rows])
    layout = _layout("latent dimensions kept", "bits/dim")
    layout.xaxis.update(type="log", range=_log_range(shares))
    layout.xaxis.update(tickvals=SHARE_TICKS, ticktext=[f"{tick:g}%" for tick in SHARE_TICKS], tickangle=0)
    if with_change:
        errors = [0.0 if math.isnan(row["nelbo_change_se"]) else row["nelbo_change_se"] for row in rows]
        trace.error_y = {"array": errors, "thickness": 1.5, "width": 4}
        everything = rows[-1]["nelbo"] - rows[-1]["nelbo_change"]
        dotted = {"line": {"dash": "dot", "width": 1, "color": "#888"}, "layer": "below"}
        layout.shapes = [*layout.shapes, _horizontal(everything, **dotted)]
    marks = [{"x": share} for share in shares]
    return PageFigure(column, title, caption, _plain([trace], layout), marks, points=True)


def _hover(row: Row, column: str) -> str:
    lines = [f"<b>{_rule(row)}</b>: {row['kept_dims']:,} dims ({percent(row['kept_dims'] / row['dims'])})"]
    lines.append(f"{row[column]:.4f} bits/dim")
    if column == "nelbo" and row["nelbo_change"] != 0:
        lines.append(f"{change_text(row)} from all latents")
    return "<br>".join(lines)


def _rule(row: Row) -> str:
    """Escaped: Plotly reads some HTML in its texts, and a rule may be the name of a file."""
    return html.escape(row["rule"])


def _quality(rows: Sequence[Row]) -> PageFigure:
    sizes = [row["bits_per_dim"] for row in rows]
    hover = [
        f"<b>{_rule(row)}</b><br>{row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}"
        f"<br>{row['bits_per_dim']:.3f} bits/dim ({row['bytes']:,.0f} bytes an image)"
        for row in rows
    ]
    trace = _line(sizes, [row["psnr"] for row in rows], hover)
    layout = _layout("stored, bits/dim", "PSNR, dB")
    caption = "Held-out images really encoded and decoded at each cutoff."
    marks = [{"x": size} for size in sizes]
    return PageFigure("quality", "Quality against size", caption, _plain([trace], layout), marks, points=True)


def kl_figures(
    rows: Sequence[Row],
    stats: KLStats,
    granularity: Granularity,
    groups: pd.DataFrame,
    kept: Sequence[NDArray[np.float64]],
) -> list[PageFigure]:
    """Plot the ranking, KL by resolution and KL by latent group.

    `groups` is the `group_table` of `stats`, `kept` the KL that each cutoff keeps in each group, [groups] in bits/dim.
    """
    distinct = sorted(set(groups["resolution"].tolist()))
    places = np.linspace(0, 1, len(distinct)).tolist() if len(distinct) > 1 else [0.15]
    colours = dict(zip(distinct, sample_colorscale(list(RESOLUTION_SCALE), places), strict=True))
    return [
        _sorted_kl(rows, Ranking.of(stats, granularity)),
        _by_resolution(groups, kept, colours),
        _by_group(groups, kept, colours),
    ]


def kl_shares(ranking: Ranking, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of all KL that the dimensions up to each rank (from 1) hold, 0 to 1; 0 if there is no KL."""
    bits = np.cumsum((ranking.kl_bits * ranking.dims)[ranking.order])
    up_to = np.interp(ranks, np.append(0, ranking.cumulative_dims), np.append(0.0, bits))
    return up_to / bits[-1] if bits[-1] > 0 else np.zeros(len(ranks))


def ranking_points(ranking: Ranking, at_most: int = 600) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return rank in dimensions (from 1) and KL of a curve: both ends of each unit, thinned evenly in log rank."""
    last = ranking.cumulative_dims
    both_ends = np.stack([np.append(1, last[:-1] + 1), last], axis=1).ravel()
    ranks, ends = np.unique(both_ends, return_index=True)  # a unit of one dimension has but one end
    if len(ranks) > at_most:
        wanted = np.searchsorted(ranks, np.geomspace(1, last[-1], at_most - 1))
        thinned = np.unique(np.append(wanted, len(ranks) - 1).clip(max=len(ranks) - 1))
        ranks, ends = ranks[thinned], ends[thinned]
    return ranks, ranking.kl_bits[ranking.order][ends // 2]


def _sorted_kl(rows: Sequence[Row], ranking: Ranking) -> PageFigure:
    ranks, kl = ranking_points(ranking)
    drawn = kl > max(ranking.kl_bits.max() * LEAST_KL, 0.0)
    ranks, kl, dims = ranks[drawn], kl[drawn], int(ranking.dims.sum())
    hover = [
        f"rank {rank:,} of {dims:,} ({percent(rank / dims)})<br>{bits:.3g} bits"
        f"<br>up to here {100 * share:.1f}% of the KL"
        for rank, bits, share in zip(ranks.tolist(), kl.tolist(), kl_shares(ranking, ranks).tolist(), strict=True)
    ]
    trace = _line(ranks.tolist(), kl.tolist(), hover, mode="lines")
    layout = _layout("latent dimensions, ranked", "bits per latent dimension")
    layout.xaxis.update(type="log", range=_log_range([1, dims]), dtick=1)
    layout.yaxis.update(type="log", dtick=1, exponentformat="power")
    marks: list[dict[str, float]] = [{"x": row["kept_dims"]} for row in rows]
    if len(kl):
        layout.yaxis.range = _log_range(kl.tolist())
        layout.shapes = [*layout.shapes, _horizontal(1, name="mark", line={"width": 1.5, "dash": "dash"})]
        marks = [{"x": row["kept_dims"], "y": max(row["cutoff"], float(kl[-1]))} for row in rows]
    caption = "Average KL of each latent dimension, highest first. Lines: how many are kept, the highest KL pruned."
    return PageFigure("sorted", "Ranking", caption, _plain([trace], layout), marks)


def _by_resolution(groups: pd.DataFrame, kept: Sequence[NDArray[np.float64]], colours: Mapping[int, str]) -> PageFigure:
    table = resolution_table(groups)
    resolutions = table["resolution"].tolist()
    names = [f"{r} × {r}" for r in resolutions]
    dims = table["dims"].sum()
    hover = [
        f"<b>{name}</b>: {row['kl']:.4f} bits/dim ({percent(row['share'])} of the KL)"
        f"<br>{row['groups']} groups, {row['dims']:,} dims ({percent(row['dims'] / dims)})"
        for name, row in zip(names, table.to_dict(orient="records"), strict=True)
    ]
    fill = [colours[r] for r in resolutions]
    whole = go.Bar(y=names, x=table["kl"].tolist(), orientation="h", marker={"color": fill, "opacity": 0.3})
    whole.update(hovertext=hover, hoverinfo="text")
    part = go.Bar(y=names, x=[0.0] * len(names), orientation="h", marker={"color": fill}, hoverinfo="skip")
    layout = _layout("bits/dim", "")
    layout.update(barmode="overlay", hovermode="closest")
    layout.shapes = ()
    layout.yaxis.update(type="category", autorange="reversed", ticklabelstandoff=6)
    of = groups["resolution"].to_numpy()
    lengths = [[[float(bits[of == r].sum()) for r in resolutions]] for bits in kept]
    caption = "Full colour: what the cutoff keeps. Faded: what it prunes."
    return PageFigure("resolutions", "KL by resolution", caption, _plain([whole, part], layout), (), lengths)


def _by_group(groups: pd.DataFrame, kept: Sequence[NDArray[np.float64]], colours: Mapping[int, str]) -> PageFigure:
    members = {r: np.flatnonzero(groups["resolution"] == r).tolist() for r in sorted(set(groups["resolution"]))}
    whole = [_group_bars(groups.iloc[places], f"{r} × {r}", colours[r]) for r, places in members.items()]
    part = [
        go.Bar(x=places, y=[0.0] * len(places), marker={"color": colours[r]}, hoverinfo="skip", name=f"{r} × {r}")
        for r, places in members.items()
    ]
    layout = _layout("latent group, in top-down order", "bits/dim")
    layout.update(barmode="overlay", hovermode="closest", showlegend=True)
    layout.shapes = ()
    layout.legend.update(
        orientation="h", y=1.02, yanchor="bottom", x=0, itemclick=False, itemdoubleclick=False, entrywidth=62
    )
    layout.xaxis.update(dtick=1 if len(groups) <= 30 else 5, range=[-0.7, len(groups) - 0.3])
    layout.margin.t = 36
    lengths = [[[float(bits[place]) for place in places] for places in members.values()] for bits in kept]
    caption = "In the order in which they are decoded, coloured by resolution. Faded: what the cutoff prunes."
    figure = _plain([*whole, *part], layout)
    return PageFigure("groups", "KL by latent group", caption, figure, (), lengths, wide=True)


def _group_bars(groups: pd.DataFrame, name: str, colour: str) -> go.Bar:
    hover = [
        f"<b>group {row['group']}</b>, {name}<br>{row['kl']:.4f} bits/dim ({percent(row['share'])} of the KL)"
        f"<br>{row['active_variates']} of {row['variates']} variates active, {row['dims']:,} dims"
        for row in groups.to_dict(orient="records")
    ]
    bars = go.Bar(x=groups["group"].tolist(), y=groups["kl"].tolist(), name=name, showlegend=False)
    return bars.update(marker={"color": colour, "opacity": 0.3}, hovertext=hover, hoverinfo="text")


def _line(x: Sequence[float], y: Sequence[float], hover: Sequence[str], mode: str = "lines+markers") -> go.Scatter:
    trace = go.Scatter(x=list(x), y=list(y), mode=mode, hovertext=list(hover), hoverinfo="text")
    trace.update(selected={"marker": {"size": 14}}, unselected={"marker": {"opacity": 1}})
    return trace.update(line={"color": LINE, "width": 2}, marker={"size": 8}, showlegend=False)


def _layout(x_title: str, y_title: str) -> go.Layout:
    """Without zooming, so that a finger on a plot scrolls the page; the first shape is the cutoff's vertical line."""
    axis = {"fixedrange": True, "zeroline": False, "automargin": True}
    mark = {"name": "mark", "yref": "paper", "y0": 0, "y1": 1, "x0": 1, "x1": 1, "line": {"width": 1.5, "dash": "dash"}}
    return go.Layout(
        xaxis={**axis, "title": {"text": x_title, "standoff": 10}},
        yaxis={**axis, "title": {"text": y_title, "standoff": 10}},
        shapes=[mark],
        margin={"l": 8, "r": 8, "t": 12, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        dragmode=False,
        hovermode="x",
        showlegend=False,
        font={"size": 13},
    )


def _horizontal(y: float, **style: Any) -> go.layout.Shape:
    return go.layout.Shape(xref="paper", x0=0, x1=1, y0=y, y1=y, **style)


def _log_range(values: Sequence[float]) -> list[float]:
    """Exponents of a log axis that holds `values`: a decade at least, so that it has ticks."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.05 * (high - low), (1 - (high - low)) / 2)
    return [low - room, high + room]


def _plain(traces: Sequence[Any], layout: go.Layout) -> dict[str, Any]:
    figure = json.loads(go.Figure(list(traces), layout).to_json())
    figure["layout"].pop("template", None)  # the page has its own colours, and a template is 7 kB
    return {"data": figure["data"], "layout": figure["layout"]}
