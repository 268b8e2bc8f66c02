"""Speed is time of a core, whatever else the machine does."""

from __future__ import annotations

import time

import numpy as np

from hvae_codec.analysis.rate_distortion import Batch, Coded, RateMeter, Sizes, Stopwatch


class Inverted:
    """Turns each image into its negative; 0.5 s a batch to encode, 0.25 s to decode."""

    label = ("lossy", "negative", "quality 1")

    def code(self, batch: Batch) -> Coded:
        return Coded(255 - batch.seen, 0.5, 0.25)

    def sizes(self, images: int) -> Sizes:
        return Sizes(100.0 / images, None)


def test_a_stopwatch_does_not_count_waiting():
    watch = Stopwatch()
    time.sleep(0.3)
    assert watch.lap() < 0.2
    start = time.process_time()
    while time.process_time() < start + 0.05:
        pass
    assert watch.lap() >= 0.05


def test_batches_add_up():
    images = np.full((6, 1, 8, 8), 100, np.uint8)
    meter = RateMeter(Inverted())
    for first in (0, 4):
        batch = images[first : first + 4]
        meter.add(Batch(range(first, first + len(batch)), batch, batch))
    row = meter.row(64)
    assert (row["encode_per_second"], row["decode_per_second"]) == (6.0, 12.0)
    assert row["payload_bits_per_dim"] == 8 * 100 / 6 / 64
    assert row["psnr"] == 10 * np.log10(255**2 / 55**2)
    assert (row["bytes"], row["exact"]) == (None, False)
