"""Which latent arrays have codes of one byte: those whose largest expected code, with a margin, fits.

    largest |posterior mean| of the ranking / step ── times MARGIN ── at most 127: int8, else int16

One type per array, chosen before the first image is encoded. A later image may still have a larger code: `widen`.
"""

from __future__ import annotations

import numpy as np

from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..store.quantiser import Codec
from .coder import quantiser_steps, stored_columns

MARGIN = 2.0
"""How many times larger than the ranking's images expect a code may be, of other images and under a mask.

Of 1,750 training and 800 held-out images of the quickstart, at 3% and steps 1 and 2, the largest code of an array was
at most 1.09 times that expected from 1,000; of 500 and 500 images after two thirds of the training, 1.4 times.
"""

LARGEST = 127
"""The largest code of one byte; -128 marks what was never written."""


def code_dtypes(mask: LatentMask, codec: Codec, stats: KLStats) -> dict[int, str]:
    """Numpy names of the stored numbers' types by latent resolution: int8 or int16 of codes, the codec's of floats.

    Codes of statistics without maxima, as older versions stored them, are int16.
    """
    expected = None if np.dtype(codec.dtype).kind == "f" else largest_codes(mask, codec, stats)
    if expected is None:
        return dict.fromkeys(stored_columns(mask).resolutions, codec.dtype)
    # What is no number does not fit either.
    return {r: "int8" if MARGIN * code <= LARGEST else codec.dtype for r, code in expected.items()}


def largest_codes(mask: LatentMask, codec: Codec, stats: KLStats) -> dict[int, float] | None:
    """The largest |posterior mean| over the step of its column, by latent resolution; None if there are no maxima."""
    if stats.largest_mean is None:
        return None
    columns, steps = stored_columns(mask), quantiser_steps(mask, codec, stats)
    largest = {}
    for resolution in columns.resolutions:
        variates = columns.coordinates[resolution][:, :2]
        means = np.array([stats.largest_mean[group][variate] for group, variate in variates])
        largest[resolution] = float((means / steps[resolution]).max())
    return largest
