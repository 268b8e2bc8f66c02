from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvae_codec.model.hvae import Elbo
from hvae_codec.train.metrics import (
    METRICS_COLUMNS,
    MetricsLog,
    StepMetrics,
    add_validation,
    drop_validations_after,
    read_validation,
)

NUMBERS = [5.0, 3.0, 700.0, 1.0, 4.0, 2.0]


@pytest.fixture
def metrics(tiny_config):
    """`metrics(step, rates)`: a step's numbers."""
    return lambda step, rates=(0.5, 0.25): StepMetrics(step, lambda: torch.tensor([*NUMBERS, *rates]), tiny_config)


def test_numbers_have_their_names(metrics):
    m = metrics(50)
    assert (m.loss, m.distortion, m.grad_norm, m.skipped, m.skipped_so_far, m.skipped_in_a_row) == (
        5,
        3,
        700,
        True,
        4,
        2,
    )
    assert (m.rate, m.nelbo, m.group_rates) == (0.75, 3.75, [0.5, 0.25])
    assert (m.learning_rate, m.beta) == (0.02, 1.0)


def test_numbers_are_read_once_and_only_when_asked_for(tiny_config):
    asked = []
    m = StepMetrics(1, lambda: asked.append(1) or torch.tensor([*NUMBERS, 0.5]), tiny_config)
    assert (m.step, m.learning_rate, asked) == (1, pytest.approx(0.004), [])
    assert (m.loss, m.rate, asked) == (5, 0.5, [1])


def test_a_group_is_active_above_a_hundredth_of_a_nat(metrics, tiny_config):
    bits = tiny_config.model.nats_per_bit_dim
    assert metrics(1, [0.011 / bits, 0.009 / bits, 0.0, 3.0]).active_groups == 2


def test_rows_after_the_step_that_is_gone_on_from_are_dropped(metrics, tmp_path: Path):
    log = MetricsLog(tmp_path, 0)
    for step in (2, 4, 6):
        log.add(metrics(step), 1.5 * step)
    log.close()
    path = tmp_path / "metrics.csv"
    whole = path.read_text()
    path.write_text(whole + "8,3.1")  # torn by a kill
    log = MetricsLog(tmp_path, 4)
    log.add(metrics(6), 9.0)
    log.close()
    assert path.read_text() == whole
    assert whole.splitlines()[0] == ",".join(METRICS_COLUMNS)
    assert whole.splitlines()[1] == "2,3.75,0.75,3,5,700,0.008,0.0476190476,2,4,3.0"


def test_validations_are_kept_by_step(tmp_path: Path):
    assert read_validation(tmp_path, 3) is None
    drop_validations_after(tmp_path, 3)
    for step in (3, 6, 9, 6):  # the second 6 takes the place of the first, and of what came after
        add_validation(tmp_path, step, Elbo(torch.tensor(step / 8), torch.tensor(1.0)), 5)
    rows = (tmp_path / "validation.csv").read_text().splitlines()
    assert rows == ["step,nelbo,rate,distortion,images", "3,1.375,0.375,1,5", "6,1.75,0.75,1,5"]
    assert read_validation(tmp_path, 6) == Elbo(torch.tensor(0.75), torch.tensor(1.0))
    drop_validations_after(tmp_path, 5)
    assert read_validation(tmp_path, 6) is None
