"""The page's plots as Plotly figures: plain data, with what each cutoff marks in them.

Colours of text, grids and marks are the page's, which knows whether it is light or dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from plotly.colors import sample_colorscale

from ..prune.kl_stats import Ranking
from .cutoffs import Row, change_text, percent
from .groups import resolution_table

LINE = "#3d7fd6"
RESOLUTION_SCALE = ("#8a63d2", "#3d7fd6", "#17a2a2", "#4fae4a", "#d9a21b", "#e2703a", "#cc4b6c")
"""From the lowest resolution to the highest; each is seen on white and on black."""
SHARE_TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
RATE_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
MARK: dict[str, Any] = {"name": "mark", "line": {"width": 1.5, "dash": "dash"}}
"""A line that the page moves to the cutoff."""
VERTICAL_MARK = {**MARK, "yref": "paper", "y0": 0, "y1": 1, "x0": 1, "x1": 1}
LEAST_KL = 1e-6  # the ranking is drawn down to this share of its highest KL: collapsed variates have next to none


@dataclass(frozen=True)
class PageFigure:
    """One plot of the page, with its words."""

    name: str
    title: str
    caption: str
    figure: dict[str, Any]  # `data` and `layout`, as Plotly takes them
    marks: Sequence[Mapping[str, float]]  # per cutoff, where its vertical line stands (`x`), and a horizontal one (`y`)
    kept: Sequence[Sequence[Sequence[float]]] = ()  # bar lengths of the last traces, [cutoffs][traces][bars]
    points: bool = False  # whether the first trace has a point for each cutoff
    wide: bool = False  # whether it takes the whole width of the page

    def to_dict(self) -> dict[str, Any]:
        """Return what the page's script needs."""
        return {name: getattr(self, name) for name in ("name", "figure", "marks", "kept", "points")}


def cutoff_figures(rows: Sequence[Row], kind: str) -> list[PageFigure]:
    """Plot NELBO, its two terms, and quality against size, from the rows of the cutoff table.

    `kind` is that of the images that it is of, such as `held-out`.
    """
    bars = "Bars: one standard error of the paired change. Dotted: all latents."
    share = f"bits/dim of {f'{kind} images'.strip()}."
    return [
        _against_share(rows, "nelbo", "Negative ELBO", bars, with_change=True),
        _quality(rows, kind),
        _against_share(rows, "reconstruction", "Reconstruction", f"The distortion term, {share}"),
        _against_share(rows, "kl", "KL", f"The rate term, {share} Pruned dimensions have none."),
    ]


def _against_share(
    rows: Sequence[Row], column: str, title: str, caption: str, *, with_change: bool = False
) -> PageFigure:
    shares = [100 * row["kept_dims"] / row["dims"] for row in rows]
    trace = _line(shares, [row[column] for row in rows], [_hover(row, column) for row in rows])
    layout = _layout("latent dimensions kept", "bits/dim", shapes=[VERTICAL_MARK])
    layout["xaxis"] |= {"type": "log", "range": _log_range(shares), "tickangle": 0}
    layout["xaxis"] |= {"tickvals": SHARE_TICKS, "ticktext": [f"{tick:g}%" for tick in SHARE_TICKS]}
    if with_change:
        errors = [0.0 if math.isnan(row["nelbo_change_se"]) else row["nelbo_change_se"] for row in rows]
        trace["error_y"] = {"array": errors, "thickness": 1.5, "width": 4}
        everything = rows[-1]["nelbo"] - rows[-1]["nelbo_change"]
        line = {"dash": "dot", "width": 1, "color": "#888"}
        layout["shapes"] += [{"layer": "below", "line": line, **_horizontal(everything)}]
    return _of_cutoffs(column, title, caption, trace, layout)


def _hover(row: Row, column: str) -> str:
    """Escapes the rule, as `_quality` does: it may be the name of a file, and Plotly reads some HTML in its texts."""
    share = percent(row["kept_dims"] / row["dims"])
    text = f"<b>{html.escape(row['rule'])}</b>: {row['kept_dims']:,} dims ({share})<br>{row[column]:.4f} bits/dim"
    changed = column == "nelbo" and row["nelbo_change"] != 0
    return f"{text}<br>{change_text(row)} from all latents" if changed else text


def _quality(rows: Sequence[Row], kind: str) -> PageFigure:
    hover = [
        f"<b>{html.escape(row['rule'])}</b><br>{row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}"
        f"<br>{row['bits_per_dim']:.3f} bits/dim ({row['bytes']:,.0f} bytes an image)"
        for row in rows
    ]
    trace = _line([row["bits_per_dim"] for row in rows], [row["psnr"] for row in rows], hover)
    layout = _layout("stored, bits/dim", "PSNR, dB", shapes=[VERTICAL_MARK])
    caption = f"{f'{kind} images'.strip().capitalize()} really encoded and decoded at each cutoff."
    return _of_cutoffs("quality", "Quality against size", caption, trace, layout)


def _of_cutoffs(name: str, title: str, caption: str, trace: dict[str, Any], layout: dict[str, Any]) -> PageFigure:
    marks = [{"x": x} for x in trace["x"]]
    return PageFigure(name, title, caption, {"data": [trace], "layout": layout}, marks, points=True)


def kl_figures(
    rows: Sequence[Row], ranking: Ranking, groups: pd.DataFrame, kept: Sequence[NDArray[np.float64]]
) -> list[PageFigure]:
    """Plot the ranking, KL by resolution and KL by latent group.

    `groups` is the `group_table` of what was ranked, `kept` the KL that each cutoff keeps in each group, [groups] in
    bits/dim.
    """
    distinct = sorted(set(groups["resolution"].tolist()))
    places = np.linspace(0, 1, len(distinct)).tolist() if len(distinct) > 1 else [0.15]
    colours = dict(zip(distinct, sample_colorscale(list(RESOLUTION_SCALE), places), strict=True))
    return [_sorted_kl(rows, ranking), _by_resolution(groups, kept, colours), _by_group(groups, kept, colours)]


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
    drawn = kl > max(kl[0] * LEAST_KL, 0.0)
    ranks, kl, dims = ranks[drawn], kl[drawn], int(ranking.dims.sum())
    hover = [
        f"rank {rank:,} of {dims:,} ({percent(rank / dims)})<br>{bits:.3g} bits"
        f"<br>up to here {100 * share:.1f}% of the KL"
        for rank, bits, share in zip(ranks.tolist(), kl.tolist(), kl_shares(ranking, ranks).tolist(), strict=True)
    ]
    trace = _line(ranks.tolist(), kl.tolist(), hover, mode="lines")
    layout = _layout("latent dimensions, ranked", "bits per latent dimension", shapes=[VERTICAL_MARK])
    layout["xaxis"] |= {"type": "log", "range": _log_range([1, dims]), "dtick": 1}
    layout["yaxis"] |= {"type": "log", "dtick": 1, "exponentformat": "power"}
    marks: list[dict[str, float]] = [{"x": row["kept_dims"]} for row in rows]
    if len(kl):
        layout["yaxis"]["range"] = _log_range(kl.tolist())
        layout["shapes"] += [{**MARK, **_horizontal(1)}]
        marks = [{"x": row["kept_dims"], "y": max(row["cutoff"], float(kl[-1]))} for row in rows]
    caption = "Average KL of each latent dimension, highest first. Lines: how many are kept, the highest KL pruned."
    return PageFigure("sorted", "Ranking", caption, {"data": [trace], "layout": layout}, marks)


def _by_resolution(groups: pd.DataFrame, kept: Sequence[NDArray[np.float64]], colours: Mapping[int, str]) -> PageFigure:
    table = resolution_table(groups)
    resolutions, dims = table["resolution"].tolist(), table["dims"].sum()
    names, fill = [f"{r} × {r}" for r in resolutions], [colours[r] for r in resolutions]
    hover = [
        f"<b>{name}</b>: {row['kl']:.4f} bits/dim ({percent(row['share'])} of the KL)"
        f"<br>{row['groups']} groups, {row['dims']:,} dims ({percent(row['dims'] / dims)})"
        for name, row in zip(names, table.to_dict(orient="records"), strict=True)
    ]
    whole, part = _bars(table["kl"].tolist(), fill, hover)
    traces = [{"y": names, "x": bars.pop("y"), "orientation": "h", **bars} for bars in (whole, part)]
    layout = _layout("bits/dim", "", barmode="overlay", hovermode="closest")
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "ticklabelstandoff": 6}
    of = groups["resolution"].to_numpy()
    lengths = [[[float(bits[of == r].sum()) for r in resolutions]] for bits in kept]
    caption = "Full colour: what the cutoff keeps. Faded: what it prunes."
    figure = {"data": traces, "layout": layout}
    return PageFigure("resolutions", "KL by resolution", caption, figure, (), lengths)


def _by_group(groups: pd.DataFrame, kept: Sequence[NDArray[np.float64]], colours: Mapping[int, str]) -> PageFigure:
    wholes, parts, members = [], [], []
    for resolution, colour in colours.items():
        own, name = groups[groups["resolution"] == resolution], f"{resolution} × {resolution}"
        hover = [
            f"<b>group {row['group']}</b>, {name}<br>{row['kl']:.4f} bits/dim ({percent(row['share'])} of the KL)"
            f"<br>{row['active_variates']} of {row['variates']} variates active, {row['dims']:,} dims"
            for row in own.to_dict(orient="records")
        ]
        whole, part = _bars(own["kl"].tolist(), colour, hover)
        members.append(own["group"].tolist())
        wholes.append({"x": members[-1], "name": name, "showlegend": False, **whole})
        parts.append({"x": members[-1], "name": name, **part})
    layout = _layout("latent group, in top-down order", "bits/dim", barmode="overlay", hovermode="closest")
    layout["xaxis"] |= {"dtick": 1 if len(groups) <= 30 else 5, "range": [-0.7, len(groups) - 0.3]}
    layout["margin"]["t"] = 36
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "entrywidth": 62}
    layout |= {"showlegend": True, "legend": {**legend, "itemclick": False, "itemdoubleclick": False}}
    lengths = [[[float(bits[group]) for group in own] for own in members] for bits in kept]
    caption = "In the order in which they are decoded, coloured by resolution. Faded: what the cutoff prunes."
    figure = {"data": [*wholes, *parts], "layout": layout}
    return PageFigure("groups", "KL by latent group", caption, figure, (), lengths, wide=True)


def _bars(lengths: list[float], colour: str | list[str], hover: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make faded bars, and those of the parts that are kept, whose lengths the page sets."""
    whole = {"y": lengths, "marker": {"color": colour, "opacity": 0.3}, "hovertext": hover, "hoverinfo": "text"}
    part = {"y": [0.0] * len(lengths), "marker": {"color": colour}, "hoverinfo": "skip"}
    return {"type": "bar", **whole}, {"type": "bar", **part}


def _line(x: list[float], y: list[float], hover: list[str], mode: str = "lines+markers") -> dict[str, Any]:
    trace = {"type": "scatter", "x": x, "y": y, "mode": mode, "hovertext": hover, "hoverinfo": "text"}
    style = {"line": {"color": LINE, "width": 2}, "marker": {"size": 8}, "showlegend": False}
    return {**trace, **style, "selected": {"marker": {"size": 14}}, "unselected": {"marker": {"opacity": 1}}}


def _layout(x_title: str, y_title: str, **more: Any) -> dict[str, Any]:
    """Make a layout without zooming, so that a finger on a plot scrolls the page."""
    axis = {"fixedrange": True, "zeroline": False, "automargin": True}
    return {
        "xaxis": {**axis, "title": {"text": x_title, "standoff": 10}},
        "yaxis": {**axis, "title": {"text": y_title, "standoff": 10}},
        "margin": {"l": 8, "r": 8, "t": 12, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
        "hovermode": "x",
        "showlegend": False,
        "font": {"size": 13},
        **more,
    }


def curves_layout(x_title: str, y_title: str, x: Sequence[float]) -> dict[str, Any]:
    """Make a layout of several named curves over a logarithmic axis that holds `x`, which may be empty."""
    legend = {"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0, "itemclick": False, "itemdoubleclick": False}
    layout = _layout(x_title, y_title, showlegend=True, legend=legend, hovermode="closest")
    layout["xaxis"] |= {
        "type": "log",
        "tickangle": 0,
        "tickvals": RATE_TICKS,
        "ticktext": [f"{t:g}" for t in RATE_TICKS],
    }
    return layout | ({"xaxis": layout["xaxis"] | {"range": _log_range(x)}} if x else {})


def _horizontal(y: float) -> dict[str, Any]:
    return {"xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y}


def _log_range(values: Sequence[float]) -> list[float]:
    """Return the exponents of a log axis that holds `values`: a decade at least, so that it has ticks."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.05 * (high - low), (1 - (high - low)) / 2)
    return [low - room, high + room]
