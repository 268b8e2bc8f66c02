from __future__ import annotations

import pytest
import torch

from hvae_codec.train.metrics import StepMetrics
from hvae_codec.train.progress import ProgressReporter, Status


def test_it_is_told_once_in_a_while(tiny_config, monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    told: list[Status] = []
    read: list[int] = []
    watch = ProgressReporter(100, 8, told.append, every_seconds=2.0)

    def numbers(step: int) -> torch.Tensor:
        read.append(step)
        return torch.tensor([0.0, 3.0 if step < 30 else 2.0, 1.0, 0.0, 4.0, 0.0, 0.5, 0.0])

    for step in range(41, 101):
        now += 0.1
        watch(StepMetrics(step, lambda step=step: numbers(step), tiny_config))
    assert [status.step for status in told] == read == [41, 61, 81, 100]
    start, first, *_, last = told
    assert (start.images_per_second, start.seconds_left, start.pace()) == (None, None, "")
    assert first.pace() == "80 images/s, 0:00:04 left"
    assert first.images_per_second == pytest.approx(80)
    assert first.seconds_left == pytest.approx(3.9)
    assert last.seconds_left == 0
    assert (first.nelbo, first.rate, first.active_groups, first.groups, first.skipped) == (2.5, 0.5, 1, 2, 4)
    assert first.text() == "NELBO 2.500 = 2.000 + KL 0.500, 1/2 groups active, 4 skipped"


def test_averages_lag_and_get_over_a_step_that_is_not_finite(tiny_config, monkeypatch: pytest.MonkeyPatch):
    told: list[Status] = []
    watch = ProgressReporter(100, 8, told.append, every_seconds=0.0)
    for step, distortion in enumerate([9.0, 3.0, 2.0, float("nan"), 4.0], 1):
        numbers = torch.tensor([0.0, distortion, 1.0, 0.0, 0.0, 0.0, 0.5])
        watch(StepMetrics(step, lambda numbers=numbers: numbers, tiny_config))
    assert [status.distortion for status in told] == pytest.approx([9.0, 6.0, 4.0, float("nan"), 4.0], nan_ok=True)
