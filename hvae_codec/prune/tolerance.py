"""Finds the smallest keep whose loss of NELBO is tolerable, by bisection over the ranking."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from ..data.sources import Images, as_source
from ..engine.engine import Engine
from ..engine.given import Executors, given_engine
from ..engine.tally import Tally
from ..errors import UsageError
from ..model.hvae import HVAE
from ..progress import Progress
from .kl_stats import Granularity, KLStats, Ranking
from .mask import LatentMask
from .sweep import SweepRow, standard_error, sweep

GRID = 8  # sizes of masks that are measured before bisection


@dataclass(frozen=True)
class Tolerated:
    """The mask that was found, and what it costs on the images it was found on."""

    mask: LatentMask  # what is kept
    tolerance: float  # share of the NELBO with all latents, 0 to 1
    nelbo: float  # mean NELBO with all latents, bits/dim
    change: float  # mean paired difference of the mask's NELBO from that, bits/dim
    change_se: float  # its standard error over images; NaN of one image
    confidence: float  # one-sided, that the loss over all images like these is tolerable; >= 0.5; NaN of one image
    images: int  # how many it was measured on
    held_out: bool | None = None  # whether training leaves the images out; None if that is not known

    @property
    def loss(self) -> float:
        """The change as a share of the NELBO."""
        return self.change / self.nelbo


def find_tolerated(
    model: HVAE,
    images: Images,
    stats: KLStats,
    tolerance: float,
    *,
    granularity: Granularity = "variate",
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    engine: Engine | None = None,
    executor: Executors | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> Tolerated:
    """Find a small mask along the ranking whose mean NELBO over `images` is at most 1 + `tolerance` times that of all
    latents, on the same noise.

    The loss falls as more is kept, but hardly changes at mild cutoffs, and may even be a gain. So masks of a few sizes
    are measured first; below the smallest tolerable one, bisection finds where such masks begin: what is found is
    tolerable, and one variate (or dimension) less is not. All latents always are. Runs on `engine` or `executor` as
    `kl_stats`. Raises `UsageError` if `tolerance` is negative or not a number, and as `sweep`.
    """
    if not tolerance >= 0.0:
        raise UsageError(f"the tolerance is {100 * tolerance:g}%; it must be at least 0% of the NELBO")
    source = as_source(images)
    units = Ranking.of(stats, granularity).units
    sizes = np.unique(np.geomspace(1, units, GRID).round().astype(int)).tolist()
    passes, numbers = 1 + math.ceil(math.log2(max(np.diff([0, *sizes])))), itertools.count()
    report = progress or (lambda done, total: None)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "device": device, "tally": tally}

    def measured(used: Engine, *kept: int) -> list[SweepRow]:
        masks, number = [LatentMask.from_rank(stats, k, granularity=granularity) for k in kept], next(numbers)
        options["progress"] = lambda done, total: report(number * total + done, passes * total)
        return sweep(model, source, masks, engine=used, **options)

    with given_engine(engine, executor) as used:
        best, dense = _bisect(partial(measured, used), sizes, tolerance)
    report(passes * len(source), passes * len(source))  # fewer passes may have been needed
    change, sure = best.change_from(dense), confidence(_excess(best, dense, tolerance))
    return Tolerated(best.mask, tolerance, dense.nelbo.mean(), *change, sure, len(source), source.held_out)


def _bisect(
    measured: Callable[..., list[SweepRow]], sizes: Sequence[int], tolerance: float
) -> tuple[SweepRow, SweepRow]:
    """Return the row of the smallest tolerable mask, found from `sizes` on, and the row of all latents."""
    rows = measured(*sizes)
    dense = rows[-1]
    tolerable = [row is dense or _excess(row, dense, tolerance).mean() <= 0.0 for row in rows]
    smallest = tolerable.index(True)
    best, enough, too_few = rows[smallest], sizes[smallest], [0, *sizes][smallest]
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        (row,) = measured(middle)
        if _excess(row, dense, tolerance).mean() <= 0.0:
            best, enough = row, middle
        else:
            too_few = middle
    return best, dense


def _excess(row: SweepRow, dense: SweepRow, tolerance: float) -> NDArray[np.float64]:
    """Return by how much each image's NELBO is above the tolerated one, bits/dim."""
    return row.nelbo - (1.0 + tolerance) * dense.nelbo


def confidence(excess: NDArray[np.float64]) -> float:
    """Return the one-sided confidence that the mean of what `excess` was drawn from is not above 0, by Student's t.

    >>> confidence(np.array([-3.0, -1.0, -2.0, -2.0])) > 0.99
    True
    """
    error = standard_error(excess)
    if error == 0.0:
        return float(excess.mean() <= 0.0)
    return float(student_t.cdf(-excess.mean() / error, len(excess) - 1))
