"""`report.html`: what pruning costs, as one page that needs nothing else, neither files beside it nor a network."""

from __future__ import annotations

import base64
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from ..model.checkpoint import replace_atomically
from .analysis import Analysis
from .groups import ACTIVE_BITS, group_table
from .page_figures import cutoff_figures, kl_figures
from .page_pictures import shown_images, sprite_uri
from .page_text import Row, change_text, cutoff_sentences, keep_label, measured, percent, rule_label, smallest_close
from .ranking_curve import RankingCurve

PAGE_FILE = "report.html"
TEMPLATE = "page.html.j2"
CHOSEN_SHARE = 0.03
"""The cutoff nearest to this share is shown first where none was chosen: the paper's."""

Cell = Callable[[Row], str]
TABLE_COLUMNS: dict[str, tuple[str, str, Cell]] = {
    "kept_dims": ("dims", "an image", lambda row: f"{row['kept_dims']:,}"),
    "kept_variates": ("variates", "", lambda row: f"{row['kept_variates']:,}"),
    "cutoff": ("KL cutoff", "bits/latent dim", lambda row: f"{row['cutoff']:.3g}"),
    "nelbo": ("NELBO", "bits/dim", lambda row: f"{row['nelbo']:.3f}"),
    "nelbo_nats": ("NELBO", "nats", lambda row: f"{row['nelbo_nats']:.2f}"),
    "reconstruction": ("recon.", "bits/dim", lambda row: f"{row['reconstruction']:.3f}"),
    "kl": ("KL", "bits/dim", lambda row: f"{row['kl']:.3f}"),
    "nelbo_change": ("NELBO change ± SE", "bits/dim", change_text),
    "psnr": ("PSNR", "dB", lambda row: f"{row['psnr']:.2f}"),
    "ssim": ("SSIM", "", lambda row: f"{row['ssim']:.3f}"),
    "bytes": ("stored", "bytes/image", lambda row: f"{row['bytes']:,.0f}"),
    "bits_per_dim": ("stored", "bits/dim", lambda row: f"{row['bits_per_dim']:.3f}"),
    "dense_bytes": ("dense latents", "bytes/image", lambda row: f"{row['dense_bytes']:,.0f}"),
}
"""Columns of the cutoff table that the page shows, where there are such: heading, unit, and the cell of a row."""


def save_page(folder: Path, analysis: Analysis, about: Mapping[str, Any], sentences: Sequence[str] = ()) -> Path:
    """Write `report.html` of `analysis` into `folder`, atomically; returns its path.

    `about` says how it was measured: `images`, `ranking_images`, `codec` (plain data), `seed`, `model_hash`; where
    there are such, `source` and `ranking_source` (fingerprints), `granularity` of the masks (variate), `count`, and
    `chosen`, the number of the table's row to show first. What it lacks is left out of the page. `sentences` stand at
    the top, under the page's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE_FILE
    replace_atomically(path, render_page(analysis, about, sentences).encode("utf-8"))
    return path


def render_page(analysis: Analysis, about: Mapping[str, Any], sentences: Sequence[str] = ()) -> str:
    """The page as text; see `save_page`."""
    rows: list[dict[str, Any]] = [
        {str(key): value for key, value in row.items()} for row in analysis.table.to_dict(orient="records")
    ]
    # The slider and the lines of the plots go from the fewest dimensions to the most.
    order = sorted(range(len(rows)), key=lambda index: rows[index]["kept_dims"])
    ranking = RankingCurve.of(analysis.stats, about.get("granularity", "variate"))
    first = order.index(_chosen(rows, ranking.dims, about))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.get_template(TEMPLATE).render(
        **_content(analysis, [rows[i] for i in order], [analysis.decoded[i] for i in order], ranking, about),
        chosen=first,
        sentences=sentences,
        plotly=_packed_plotly(),
    )


def _chosen(rows: Sequence[Row], dims: int, about: Mapping[str, Any]) -> int:
    if about.get("chosen") is not None:
        return int(about["chosen"])
    distances = [abs(math.log(row["kept_dims"] / dims / CHOSEN_SHARE)) for row in rows]
    return distances.index(min(distances))


def _content(
    analysis: Analysis,
    rows: Sequence[Row],
    decoded: Sequence[np.ndarray],
    ranking: RankingCurve,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    count = shown_images(analysis.originals)
    image_dims = math.prod(analysis.originals.shape[1:])
    groups = group_table(analysis.stats, image_dims)
    sections = {"cutoffs": cutoff_figures(rows, ranking.dims), "kl": kl_figures(rows, ranking, groups, image_dims)}
    columns = [column for column in TABLE_COLUMNS if column in analysis.table]
    data = {
        "cutoffs": [_cutoff(row, images[:count], ranking) for row, images in zip(rows, decoded, strict=True)],
        "originals": sprite_uri(analysis.originals[:count]),
        "figures": [figure.to_dict() for figures in sections.values() for figure in figures],
    }
    return {
        "data": data,
        "labels": [keep_label(row, ranking.dims) for row in rows],
        "rules": [rule_label(row, ranking.dims) for row in rows],
        "finding": smallest_close(rows, ranking),
        "measured": measured(about),
        "sections": sections,
        "headings": [TABLE_COLUMNS[column][:2] for column in columns],
        "cells": [[TABLE_COLUMNS[column][2](row) for column in columns] for row in rows],
        "groups": groups.to_dict(orient="records"),
        "active_bits": ACTIVE_BITS,
        "images": {"count": count, "height": analysis.originals.shape[2], "width": analysis.originals.shape[3]},
        "percent": percent,
    }


def _cutoff(row: Row, images: np.ndarray, ranking: RankingCurve) -> dict[str, Any]:
    """What the page's script shows of a cutoff."""
    rule, share = rule_label(row, ranking.dims), percent(row["kept_dims"] / ranking.dims)
    brief = [f"NELBO {row['nelbo']:.3f}", f"{row['psnr']:.2f} dB", f"{row['bytes']:,.0f} bytes an image"]
    return {
        "rule": rule,
        "brief": brief,
        "spoken": f"{rule}: {share} of the latent dimensions",
        "sentences": cutoff_sentences(row, ranking),
        "picture": sprite_uri(images),
    }


@functools.cache
def _packed_plotly() -> str:
    """The plotting library, deflated and in base64: 2 MB of the page in place of 5."""
    return base64.b64encode(zlib.compress(get_plotlyjs().encode("utf-8"), 9)).decode("ascii")
