"""`report.html`: what pruning costs, as one page that needs nothing else, neither files beside it nor a network."""

from __future__ import annotations

import base64
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from ..analysis.cutoff_table import Analysis
from ..prune.ranking import Granularity
from ..storage.files import write_atomically
from .groups import ACTIVE_BITS, group_table, kept_group_bits
from .page_figures import PageFigure, cutoff_figures, kl_figures
from .page_pictures import shown_images, sprite_uri
from .page_text import Row, change_text, cutoff_sentences, measured, percent, smallest_close
from .ranking_curve import RankingCurve

PAGE_FILE = "report.html"
TEMPLATE = Path(__file__).with_name("page.html.j2")
CHOSEN_SHARE = 0.03
"""The cutoff nearest to this share is shown first if none was chosen: the paper's."""

Cell = Callable[[Row], str]
TABLE_COLUMNS: dict[str, tuple[str, str, Cell]] = {
    "kept_dims": ("dims", "an image", lambda row: f"{row['kept_dims']:,}"),
    "kept_variates": ("variates", "", lambda row: f"{row['kept_variates']:,}"),
    "cutoff": ("KL cutoff", "bits/latent", lambda row: f"{row['cutoff']:.3g}"),
    "nelbo": ("NELBO", "bits/dim", lambda row: f"{row['nelbo']:.3f}"),
    "nelbo_nats": ("NELBO", "nats", lambda row: f"{row['nelbo_nats']:.2f}"),
    "reconstruction": ("recon.", "bits/dim", lambda row: f"{row['reconstruction']:.3f}"),
    "kl": ("KL", "bits/dim", lambda row: f"{row['kl']:.3f}"),
    "nelbo_change": ("NELBO change ± SE", "bits/dim", change_text),
    "psnr": ("PSNR", "dB", lambda row: f"{row['psnr']:.2f}"),
    "ssim": ("SSIM", "", lambda row: f"{row['ssim']:.3f}"),
    "bytes": ("stored", "bytes/image", lambda row: f"{row['bytes']:,.0f}"),
    "bits_per_dim": ("stored", "bits/dim", lambda row: f"{row['bits_per_dim']:.3f}"),
}
"""Columns of the cutoff table that the page shows, if the table has them: heading, unit, and the cell of a row."""


def save_page(folder: Path, analysis: Analysis, about: Mapping[str, Any], sentences: Sequence[str] = ()) -> Path:
    """Write `report.html` of `analysis` into `folder`, atomically; returns its path.

    `about` says how it was measured: `images`, `ranking_images`, `codec` (plain data), `seed`, `model_hash`; optional
    are `source` and `ranking_source` (fingerprints), `granularity` of the masks (variate), `count`, and
    `chosen`, the number of the table's row to show first. What it lacks is left out of the page. `sentences` stand at
    the top, under the page's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE_FILE
    write_atomically(path, render_page(analysis, about, sentences).encode("utf-8"))
    return path


def render_page(analysis: Analysis, about: Mapping[str, Any], sentences: Sequence[str] = ()) -> str:
    """Make the page as text; see `save_page`."""
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    content = _content(analysis, "position" if about.get("granularity") == "position" else "variate")
    rows = content["rows"]
    return environment.get_template(TEMPLATE.name).render(
        **content,
        chosen=_nearest(rows, CHOSEN_SHARE) if about.get("chosen") is None else about["chosen"],
        sentences=sentences,
        measured=measured(about),
        percent=percent,
        plotly=_packed_plotly(),
    )


def _nearest(rows: Sequence[Row], share: float) -> int:
    distances = [abs(math.log(row["keep"] / share)) for row in rows]
    return distances.index(min(distances))


def _content(analysis: Analysis, granularity: Granularity) -> dict[str, Any]:
    """Collect what the template shows of an analysis."""
    table: list[dict[Any, Any]] = analysis.table.to_dict(orient="records")
    image_dims = math.prod(analysis.originals.shape[1:])
    groups = group_table(analysis.stats, image_dims)
    kept = [kept_group_bits(analysis.stats, mask) / image_dims for mask in analysis.masks]
    total = groups["kl"].sum()
    kl_shares = [float(bits.sum() / total) if total > 0 else 0.0 for bits in kept]
    ranking = RankingCurve.of(analysis.stats, granularity)
    figures = {"cutoffs": cutoff_figures(table), "kl": kl_figures(table, ranking, groups, kept)}
    columns = [TABLE_COLUMNS[name] for name in TABLE_COLUMNS if name in analysis.table]
    return {
        "data": _script_data(analysis, table, kl_shares, [f for section in figures.values() for f in section]),
        "rows": [{**row, "cells": [cell(row) for _, _, cell in columns]} for row in table],
        "headings": [(name, unit) for name, unit, _ in columns],
        "finding": smallest_close(table, kl_shares),
        "sections": figures,
        "groups": groups.to_dict(orient="records"),
        "active_bits": ACTIVE_BITS,
        "images": {"count": shown_images(analysis.originals), "size": analysis.originals.shape[3]},
    }


def _script_data(
    analysis: Analysis, table: Sequence[Row], kl_shares: Sequence[float], figures: Sequence[PageFigure]
) -> dict[str, Any]:
    """Collect what the page's script needs, plain data."""
    count = shown_images(analysis.originals)
    cutoffs = [
        {**_words(row, kl_share), "picture": sprite_uri(images[:count])}
        for row, kl_share, images in zip(table, kl_shares, analysis.decoded, strict=True)
    ]
    originals = sprite_uri(analysis.originals[:count])
    return {"cutoffs": cutoffs, "originals": originals, "figures": [figure.to_dict() for figure in figures]}


def _words(row: Row, kl_share: float) -> dict[str, Any]:
    share = percent(row["kept_dims"] / row["dims"])
    return {
        "rule": row["rule"],
        "brief": [f"NELBO {row['nelbo']:.3f}", f"{row['psnr']:.2f} dB", f"{row['bytes']:,.0f} bytes an image"],
        "spoken": f"{row['rule']}: {share} of the latent dimensions",
        "sentences": cutoff_sentences(row, kl_share),
    }


@functools.cache
def _packed_plotly() -> str:
    """Return the plotting library, deflated and in base64: 2 MB of the page in place of 5."""
    return base64.b64encode(zlib.compress(get_plotlyjs().encode("utf-8"), 9)).decode("ascii")
