from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hvae_codec.data.sources import as_source
from hvae_codec.model.hvae import HVAE, Elbo
from hvae_codec.train.metrics import StepMetrics
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.run_files import METRICS_COLUMNS, RunFiles
from hvae_codec.train.run_folder import Origin
from hvae_codec.train.state import TrainState

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


@pytest.fixture
def state(tiny_config) -> TrainState:
    model = HVAE(tiny_config.model)
    return TrainState(model, FlatOptimizer(model, tiny_config.optimizer, 0.5))


@pytest.fixture
def run_files(tiny_config) -> Callable[[Path, TrainState], RunFiles]:
    def make(run: Path, state: TrainState) -> RunFiles:
        return RunFiles(run, state, tiny_config, Origin(seed=0, training="", validation=""), print)

    return make


def test_rows_after_the_step_that_is_gone_on_from_are_dropped(metrics, run_files, state: TrainState, tmp_path: Path):
    def write(*steps: int) -> None:
        files.open(tensorboard=False)
        for step in steps:
            state.step, state.seconds = step, 1.5 * step
            files.add_step(metrics(step))
        files.close()

    files = run_files(tmp_path, state)
    write(2, 4, 6)
    path = tmp_path / "metrics.csv"
    whole = path.read_text()
    path.write_text(whole + "8,3.1")  # torn by a kill
    state.step = 4
    write(6)
    assert path.read_text() == whole
    assert whole.splitlines()[0] == ",".join(METRICS_COLUMNS)
    assert whole.splitlines()[1] == "2,3.75,0.75,3,5,700,0.008,0.0476190476,2,4,3.0"


def test_validations_are_kept_by_step(run_files, state: TrainState, photo_patches, tmp_path: Path):
    files, held_out = run_files(tmp_path, state), as_source(photo_patches)
    state.step = 3
    assert files.read_validation() is None
    files.make_consistent()
    for state.step in (3, 6, 9, 6):  # the second 6 takes the place of the first, and of what came after
        elbo = Elbo(torch.tensor(state.step / 8), torch.tensor(1.0))
        files.add_validation(elbo, 5, state.model, held_out)
    rows = (tmp_path / "validation.csv").read_text().splitlines()
    assert rows == ["step,nelbo,rate,distortion,images", "3,1.375,0.375,1,5", "6,1.75,0.75,1,5"]
    assert files.read_validation() == Elbo(torch.tensor(0.75), torch.tensor(1.0))
    state.step = 5
    files.make_consistent()
    state.step = 6
    assert files.read_validation() is None
