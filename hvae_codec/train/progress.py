"""Reports how training goes, every few seconds at most: reading numbers off a device makes it wait."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from .metrics import StepMetrics

SMOOTHING = 0.5  # weight of what was shown before in the averages shown now


@dataclass(frozen=True, kw_only=True)
class Status:
    """How training goes."""

    step: int
    steps: int  # in all
    images_per_second: float | None  # of all processes; None after the first step, which also warms up
    rate: float  # bits/dim, a running average, as are distortion and NELBO
    distortion: float
    active_groups: int
    groups: int
    skipped: int  # updates left out so far
    seconds_left: float | None

    @property
    def nelbo(self) -> float:
        """bits/dim."""
        return self.rate + self.distortion

    def text(self) -> str:
        """Say bits/dim and groups in one line; a bar shows step and pace apart."""
        skips = f", {self.skipped} skipped" if self.skipped else ""
        return (
            f"NELBO {self.nelbo:.3f} = {self.distortion:.3f} + KL {self.rate:.3f}, "
            f"{self.active_groups}/{self.groups} groups active{skips}"
        )

    def pace(self) -> str:
        """Say images per second and the time that is left; empty if they are not known yet."""
        if self.images_per_second is None or self.seconds_left is None:
            return ""
        return f"{self.images_per_second:,.0f} images/s, {timedelta(seconds=round(self.seconds_left))} left"


class ProgressReporter:
    """Called after each step; shows a `Status` every few seconds, of this process's images."""

    def __init__(self, steps: int, batch_size: int, show: Callable[[Status], None], every_seconds: float = 1.0) -> None:
        self._steps, self._batch_size = steps, batch_size
        self._show, self._every = show, every_seconds
        self._last: tuple[int, float] | None = None
        self._pace: float | None = None
        """Steps per second, a running average."""
        self._rate = self._distortion = math.nan

    def __call__(self, m: StepMetrics) -> None:
        """Show a status after the first step, the last one, and every `every_seconds` between them."""
        now = time.monotonic()
        if self._last is not None:
            step, then = self._last
            if now - then < self._every and m.step < self._steps:
                return
            self._pace = _blend(self._pace, (m.step - step) / max(now - then, 1e-9))
        self._last = (m.step, now)
        self._rate, self._distortion = _blend(self._rate, m.rate), _blend(self._distortion, m.distortion)
        self._show(
            Status(
                step=m.step,
                steps=self._steps,
                images_per_second=self._pace and self._pace * self._batch_size,
                rate=self._rate,
                distortion=self._distortion,
                active_groups=m.active_groups,
                groups=len(m.group_rates),
                skipped=m.skipped_so_far,
                seconds_left=self._pace and (self._steps - m.step) / self._pace,
            )
        )


def _blend(before: float | None, now: float) -> float:
    return now if before is None or math.isnan(before) else SMOOTHING * before + (1.0 - SMOOTHING) * now
