"""What each latent group holds: its KL, active variates, and a histogram of its latent dimensions' KL."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.table import Table

from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from .cutoffs import save_json_and_csv

GROUPS_NAME = "groups"
ACTIVE_BITS = 0.01
"""A variate is active above this average KL, bits per latent dimension: one bit per hundred of its dimensions."""
HISTOGRAM_EDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Bounds of the histogram's bins, bits per latent dimension. A bin holds its lower bound and not its upper one; the
first takes all below 1e-5, the last 10 and all above."""
TERMINAL_ROWS = 16  # groups that the terminal shows one by one; deeper models are summed up by resolution

GROUP_COLUMNS = {
    "group": "number in top-down order, from 0",
    "resolution": "height and width of the group",
    "variates": "variates (channels) of the group",
    "dims": "latent dimensions, per image",
    "kl": "rate, bits/dim of the image",
    "share": "of the KL of all groups, 0 to 1",
    "active_variates": "variates whose average KL is above the threshold",
}


def group_table(stats: KLStats, image_dims: int, threshold_bits: float = ACTIVE_BITS) -> pd.DataFrame:
    """Make a table of one row per latent group, in top-down order; `GROUP_COLUMNS` says what is in it.

    `image_dims` is C · H · W of the image. A variate is active (as in Burda et al., 2015, with the KL in place of
    their covariance) if its KL averaged over images and positions is above `threshold_bits` per latent dimension.
    """
    total = stats.per_group.sum()
    return pd.DataFrame(
        {
            "group": range(len(stats.kl_bits)),
            "resolution": [kl.shape[-1] for kl in stats.kl_bits],
            "variates": [len(kl) for kl in stats.kl_bits],
            "dims": [kl.size for kl in stats.kl_bits],
            "kl": stats.per_group / image_dims,
            "share": stats.per_group / total if total > 0 else np.zeros(len(stats.kl_bits)),
            "active_variates": [int((kl > threshold_bits).sum()) for kl in stats.per_variate],
        }
    )


def kept_group_bits(stats: KLStats, mask: LatentMask) -> NDArray[np.float64]:
    """Return the average KL of what `mask` keeps in each latent group, bits per image, [groups]."""
    return np.array([kl[keep].sum() for keep, kl in zip(mask.keep, stats.kl_bits, strict=True)])


def kl_histogram(stats: KLStats) -> pd.DataFrame:
    """Count the latent dimensions of each group (row) whose average KL is in each bin of `HISTOGRAM_EDGES` (column)."""
    bounds = np.array([-np.inf, *HISTOGRAM_EDGES, np.inf])
    counts = [np.histogram(kl, bounds)[0] for kl in stats.kl_bits]
    between = [f"dims_{low:g}_to_{high:g}" for low, high in pairwise(HISTOGRAM_EDGES)]
    names = [f"dims_below_{HISTOGRAM_EDGES[0]:g}", *between, f"dims_from_{HISTOGRAM_EDGES[-1]:g}"]
    return pd.DataFrame(counts, columns=names)


def resolution_table(groups: pd.DataFrame) -> pd.DataFrame:
    """Sum a `group_table` over the groups of each resolution, lowest first; `groups` is how many there are."""
    summed = ["variates", "dims", "kl", "share", "active_variates"]
    by_resolution = groups.groupby("resolution", sort=True)
    return by_resolution[summed].sum().assign(groups=by_resolution.size()).reset_index()


def save_groups(folder: Path, stats: KLStats, image_dims: int, about: Mapping[str, Any]) -> None:
    """Write `groups.csv` (the histogram in further columns), and `groups.json` with `about` and the bins' bounds."""
    table, histogram = group_table(stats, image_dims), kl_histogram(stats)
    document = {
        "about": dict(about),
        "active_above_bits": ACTIVE_BITS,
        "histogram_edges_bits": HISTOGRAM_EDGES,
        "groups": table.assign(histogram=pd.Series(histogram.to_numpy().tolist())).to_dict(orient="records"),
    }
    save_json_and_csv(folder / GROUPS_NAME, document, pd.concat([table, histogram], axis=1))


def group_rich_table(groups: pd.DataFrame) -> Table:
    """Show a `group_table` in the terminal; more than `TERMINAL_ROWS` groups are summed up by resolution."""
    single = len(groups) <= TERMINAL_ROWS
    title = "KL by latent group" if single else f"KL of {len(groups)} latent groups, by resolution"
    caption = f"active: variates with more than {ACTIVE_BITS:g} bits per latent dimension on average"
    rich = Table(title=title, caption=caption)
    names = ("group", "resolution") if single else ("resolution", "groups")
    for heading in (*names, "dims", "active\nvariates", "KL\nbits/dim", "share"):
        rich.add_column(heading, justify="right")
    table = groups if single else resolution_table(groups)
    for row in table.to_dict(orient="records"):
        size = f"{row['resolution']} × {row['resolution']}"
        first = (str(row["group"]), size) if single else (size, str(row["groups"]))
        kl = (f"{row['kl']:.4f}", f"{100 * row['share']:.1f}%")
        rich.add_row(*first, f"{row['dims']:,}", f"{row['active_variates']:,} of {row['variates']:,}", *kl)
    return rich
