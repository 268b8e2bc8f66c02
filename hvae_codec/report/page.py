"""`report.html`: what pruning costs, as one page that needs nothing else, neither files beside it nor a network."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from plotly.offline import get_plotlyjs

from ..analysis.cutoff_table import Analysis
from ..prune.kl_stats import Granularity, Ranking
from ..storage.files import write_atomically
from .bench_page import BEGIN, END, bench_section
from .bench_rows import load_bench
from .cutoff_sentences import cutoff_sentences, measured, smallest_close
from .cutoffs import COLUMNS, Row, cell, percent
from .groups import ACTIVE_BITS, group_table, kept_group_bits
from .page_figures import cutoff_figures, kl_figures
from .plots import displayable
from .pruning_rows import HEADINGS, load_rows
from .splits import image_kind
from .templates import template

PAGE_FILE = "report.html"
CHOSEN_SHARE = 0.03  # the cutoff nearest to this share is shown first if none was chosen: the paper's

SHOWN_IMAGES = 10
SHOWN_WIDTH = 768  # larger images are shown in smaller number: together at most so many pixels wide, but one at least


def save_page(folder: Path, analysis: Analysis, about: Mapping[str, Any], sentences: Sequence[str] = ()) -> Path:
    """Write `report.html` of `analysis` into `folder`, atomically; returns its path.

    `about` says how it was measured; what it lacks is left out of the page: `images`, `ranking_images`, `codec` (plain
    data), `seed`, `model_hash`, `source` and `ranking_source` (fingerprints), `granularity` of the masks, `count`, and
    `chosen`, the number of the table's row to show first. The images are called held-out unless `held_out` is false.
    `sentences` stand at the top, under the page's own. What prune and bench measured stands in `folder`, if they did.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bench = load_bench(folder, about.get("model_hash"))
    page = render_page(analysis, about, sentences, load_rows(folder), bench_section(bench) if bench else "")
    write_atomically(folder / PAGE_FILE, page.encode("utf-8"))
    return folder / PAGE_FILE


def render_page(
    analysis: Analysis,
    about: Mapping[str, Any],
    sentences: Sequence[str] = (),
    pruning: Mapping[str, Any] | None = None,
    bench: str = "",
) -> str:
    """Make the page as text; see `save_page`. `pruning` is what `load_rows` gives, `bench` a section of HTML."""
    rows: list[dict[Any, Any]] = analysis.table.to_dict(orient="records")
    granularity: Granularity = "position" if about.get("granularity") == "position" else "variate"
    chosen = about.get("chosen")
    if chosen is None:
        chosen = max(0, sum(row["keep"] <= CHOSEN_SHARE for row in rows) - 1)  # its own row, or the next smaller mask
    return template("page.html.j2").render(
        **_content(analysis, rows, Ranking.of(analysis.stats, granularity), image_kind(about.get("held_out", True))),
        chosen=chosen,
        sentences=sentences,
        pruning=pruning,
        pruning_headings=HEADINGS,
        bench=f"{BEGIN}{bench}{END}",
        measured=measured(about),
        percent=percent,
        active_bits=ACTIVE_BITS,
        plotly=_packed_plotly(),
    )


def _content(analysis: Analysis, rows: Sequence[Row], ranking: Ranking, kind: str) -> dict[str, Any]:
    """Collect what the template shows of an analysis of images of that kind, and `data` for the page's script."""
    originals, stats = analysis.originals, analysis.stats
    image_dims, count = math.prod(originals.shape[1:]), shown_images(originals)
    groups = group_table(stats, image_dims)
    kept = [kept_group_bits(stats, mask) / image_dims for mask in analysis.masks]
    total = groups["kl"].sum()
    kl_shares = [float(bits.sum() / total) if total > 0 else 0.0 for bits in kept]
    sections = {"cutoffs": cutoff_figures(rows, kind), "kl": kl_figures(rows, ranking, groups, kept)}
    columns = [name for name in COLUMNS if name in analysis.table]
    each = zip(rows, kl_shares, analysis.decoded, strict=True)
    cutoffs = [{**_words(row, share), "picture": _sprite_uri(images[:count])} for row, share, images in each]
    figures = [figure.to_dict() for figure in itertools.chain(*sections.values())]
    return {
        "data": {"cutoffs": cutoffs, "originals": _sprite_uri(originals[:count]), "figures": figures},
        "rows": [{**row, "cells": [cell(row, name) for name in columns]} for row in rows],
        "headings": [(COLUMNS[name].heading, COLUMNS[name].unit) for name in columns],
        "finding": smallest_close(rows, kl_shares),
        "sections": sections,
        "groups": groups.to_dict(orient="records"),
        "images": {"count": count, "size": originals.shape[3]},
    }


def _words(row: Row, kl_share: float) -> dict[str, Any]:
    return {
        "rule": row["rule"],
        "brief": [f"NELBO {row['nelbo']:.3f}", f"{row['psnr']:.2f} dB", f"{row['bytes']:,.0f} bytes an image"],
        "spoken": f"{row['rule']}: {percent(row['kept_dims'] / row['dims'])} of the latent dimensions",
        "sentences": cutoff_sentences(row, kl_share),
    }


def shown_images(originals: NDArray[np.uint8]) -> int:
    """Return how many of the images, uint8 [n, C, H, W], the page shows."""
    count, _, _, width = originals.shape
    return min(count, SHOWN_IMAGES, max(1, SHOWN_WIDTH // width))


def _sprite_uri(images: NDArray[np.uint8]) -> str:
    """Put uint8 [n, C, H, W] side by side in a PNG of H × nW pixels: `data:image/png;base64,...`."""
    pixels, picture = displayable(np.concatenate(list(images), axis=2)), io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(picture, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode('ascii')}"


@functools.cache
def _packed_plotly() -> str:
    """Return the plotting library, deflated and in base64: 2 MB of the page in place of 5."""
    return base64.b64encode(zlib.compress(get_plotlyjs().encode("utf-8"), 9)).decode("ascii")
