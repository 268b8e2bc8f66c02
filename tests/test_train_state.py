from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from hvae_codec.errors import ModelError
from hvae_codec.model.hvae import HVAE
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.state import TrainState, has_state, load_state, save_state


@pytest.fixture
def fresh(tiny_config):
    """`fresh(seed)`: a new state, whose weights and gradients depend on the seed."""

    def make(seed: int, step: int = 0) -> TrainState:
        torch.manual_seed(seed)
        model = HVAE(tiny_config.model)
        state = TrainState(model, FlatOptimizer(model, tiny_config.optimizer, 0.5), step, seed)
        state.optimizer.gradients.normal_()
        return state

    return make


def stems(run: Path) -> list[str]:
    return sorted({path.name.split(".")[0] for path in (run / "state").iterdir()})


@pytest.mark.slow
def test_states_come_back_exactly(fresh, tmp_path: Path):
    state = fresh(3, step=12)
    state.optimizer.step(0.1)
    state.optimizer.skipped.fill_(2)
    state.seconds = 7.25
    save_state(tmp_path, state)
    other = fresh(4)
    assert load_state(tmp_path, other) == tmp_path / "state" / "step-000000012.safetensors"
    assert (other.step, other.optimizer.skipped, other.seed, other.seconds) == (12, 2, 3, 7.25)
    ours, expected = other.optimizer.tensors(), state.optimizer.tensors()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert torch.equal(other.model.top_down.start, state.model.top_down.start)


def test_no_state_is_a_start(fresh, tmp_path: Path):
    assert not has_state(tmp_path)
    assert load_state(tmp_path, fresh(0)) is None


def test_the_newest_states_are_kept_and_nothing_else_of_theirs(fresh, tmp_path: Path):
    state = fresh(0)
    for state.step in (1, 2, 3, 4):
        save_state(tmp_path, state, newest=2)
    assert stems(tmp_path) == ["step-000000003", "step-000000004"]
    (tmp_path / "state" / "step-000000002.safetensors.partial").write_text("what a kill left")
    (tmp_path / "state" / "step-notes.txt").write_text("mine")
    state.step = 5
    save_state(tmp_path, state, newest=2)
    assert stems(tmp_path) == ["step-000000004", "step-000000005", "step-notes"]


def test_states_of_later_steps_go_once_the_run_went_back(fresh, tmp_path: Path):
    state = fresh(0)
    for state.step in (1, 2, 9):
        save_state(tmp_path, state)
    state.step = 3
    save_state(tmp_path, state)
    assert stems(tmp_path) == ["step-000000001", "step-000000002", "step-000000003"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped byte", "flipped in counters", "cut", "empty", "no counters", "gone"])
def test_a_damaged_state_is_named_and_the_one_before_is_used(fresh, tmp_path: Path, damage: str):
    state = fresh(0)
    for state.step in (1, 2):
        save_state(tmp_path, state)
    path = tmp_path / "state" / "step-000000002.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flipped byte":
        content[-9] ^= 4  # in a tensor: the file can be read all the same
        path.write_bytes(content)
    elif damage == "flipped in counters":
        counters = path.with_suffix(".json")
        counters.write_text(counters.read_text().replace('"sha256": "', '"sha256": "0'))
    elif damage == "no counters":
        path.with_suffix(".json").write_text("{}")
    elif damage == "gone":
        os.remove(path)
    else:
        path.write_bytes(content[:-100] if damage == "cut" else b"")
    warnings: list[str] = []
    other = fresh(1)
    assert load_state(tmp_path, other, warnings.append).stem == "step-000000001"
    assert other.step == 1
    assert damage == "gone" or (len(warnings) == 1 and str(path) in warnings[0] and "is damaged" in warnings[0])


def test_a_state_of_another_model_is_an_error(fresh, tiny_config, tmp_path: Path):
    save_state(tmp_path, fresh(0))
    model = torch.nn.Linear(2, 2)
    other = TrainState(model, FlatOptimizer(model, tiny_config.optimizer, 0.5))
    with pytest.raises(ModelError, match="does not fit the configuration"):
        load_state(tmp_path, other)


@pytest.mark.parametrize("where", ["weights", "ema"])
def test_numbers_that_are_not_finite_are_found(fresh, where: str):
    state = fresh(0)
    assert state.is_finite()
    getattr(state.optimizer, where).data[5] = float("inf")
    assert not state.is_finite()


def test_looking_at_an_optimiser_that_made_no_step_changes_nothing(fresh):
    """Indexing the library's state made an empty entry: no moments to load into."""
    state, other = fresh(0), fresh(0)
    assert not any(name.startswith("optimizer.") for name in state.optimizer.tensors())
    state.optimizer.gradients[0] = float("inf")
    state.optimizer.step(0.1)
    assert torch.equal(state.model.top_down.start, other.model.top_down.start)
    state.optimizer.gradients[0] = 0.5
    state.optimizer.step(0.1)
    other.optimizer.tensors()
    other.optimizer.load(state.optimizer.tensors())
    ours, expected = other.optimizer.tensors(), state.optimizer.tensors()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
