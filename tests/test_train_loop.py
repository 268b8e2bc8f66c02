from __future__ import annotations

import csv
import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec.config import with_settings
from hvae_codec.data.sources import as_source
from hvae_codec.errors import ModelError, UsageError
from hvae_codec.model.checkpoint import load_model, load_weights
from hvae_codec.model.hvae import HVAE
from hvae_codec.train.loop import StepMetrics, TrainOptions, TrainResult, start_run, train
from hvae_codec.train.run_files import METRICS_COLUMNS
from hvae_codec.train.validation import validate

pytestmark = pytest.mark.slow

OPTIONS = TrainOptions(save_every=3, eval_every=3, log_every=1, validation_images=8)


@pytest.fixture(scope="module")
def sources(photo_patches):
    return as_source(photo_patches[:20]), as_source(photo_patches[20:])


class Stop(Exception):  # noqa: N818 - not an error
    """The process dies."""


class StopAt:
    """Stands for a kill, or for Ctrl-C, after a step."""

    def __init__(self, step: int, *, interrupt: bool = False) -> None:
        self.step, self.interrupt = step, interrupt

    def __call__(self, metrics: StepMetrics) -> None:
        if metrics.step == self.step:
            if not self.interrupt:
                raise Stop
            signal.raise_signal(signal.SIGINT)


def run_whole(run: Path, config, sources, options=OPTIONS, on_step=None) -> TrainResult:
    return train(run, start_run(run, config, resume=False), *sources, options, on_step)


def resume(run: Path, config, sources, options=OPTIONS) -> TrainResult:
    return train(run, start_run(run, config, resume=True), *sources, options)


def rows(run: Path, name: str) -> list[list[str]]:
    """A table without its last column where that is time."""
    with open(run / name, newline="") as file:
        table = list(csv.reader(file))
    return [row[:-1] for row in table] if table[0][-1] == "seconds" else table


@pytest.fixture(scope="module")
def unbroken(tiny_config, sources, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    run_whole(run, tiny_config, sources)
    return run


def assert_same_run(run: Path, unbroken: Path) -> None:
    for name in ("model.safetensors", "state/step-000000008.safetensors"):
        ours, expected = load_weights(run / name), load_weights(unbroken / name)
        assert ours.keys() == expected.keys()
        for key in expected:
            assert torch.equal(ours[key], expected[key]), key
    assert rows(run, "metrics.csv") == rows(unbroken, "metrics.csv")
    assert rows(run, "validation.csv")[-1] == rows(unbroken, "validation.csv")[-1]


# --- a run from start to end


@pytest.mark.slow
def test_a_seed_is_kept_by_a_run_killed_before_its_first_save(tiny_config, sources, tmp_path: Path):
    """The state of step 0 keeps it, so that going on with the default seed gives the losses of the first one."""
    config = with_settings(tiny_config, ["train.steps=2"])
    whole = run_whole(tmp_path / "whole", config, sources, options=TrainOptions(seed=20240101))

    def kill(_: StepMetrics) -> None:
        raise RuntimeError("killed")

    run = tmp_path / "killed"
    start_run(run, config, resume=False)
    with pytest.raises(RuntimeError, match="killed"):
        train(run, config, *sources, TrainOptions(seed=20240101), kill)
    resumed = train(run, config, *sources, TrainOptions())
    assert resumed.validation.nelbo == whole.validation.nelbo
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_run_learns_and_leaves_all_files(tiny_config, sources, tmp_path: Path):
    seen: list[StepMetrics] = []
    config = with_settings(tiny_config, ["train.steps=10"])
    result = run_whole(tmp_path / "run", config, sources, on_step=seen.append)
    assert [metrics.step for metrics in seen] == list(range(1, 11))
    assert all(np.isfinite([m.loss, m.rate, m.distortion, m.grad_norm]).all() for m in seen)
    assert seen[-1].nelbo < seen[0].nelbo
    assert seen[1].learning_rate == pytest.approx(0.02 * 2 / 5)
    assert (result.run, result.step, result.skipped) == (tmp_path / "run", 10, 0)
    states = sorted(path.name for path in (tmp_path / "run" / "state").iterdir())
    assert states == [f"step-{n:09d}.{e}" for n in (6, 9, 10) for e in ("json", "safetensors")]
    elbo = validate(load_model(tmp_path / "run"), sources[1], 4, seed=0, images=8)
    assert result.validation.nelbo.item() == pytest.approx(elbo.nelbo.item(), rel=1e-5)
    assert [row[0] for row in rows(tmp_path / "run", "validation.csv")] == ["step", "3", "6", "9", "10"]


def test_metrics_are_those_of_the_steps(unbroken: Path):
    table = rows(unbroken, "metrics.csv")
    assert table[0] == [*METRICS_COLUMNS[:-1]]
    assert [row[0] for row in table[1:]] == [str(n) for n in range(1, 9)]
    numbers = np.array(table[1:], float)
    np.testing.assert_allclose(numbers[:, 1], numbers[:, 2] + numbers[:, 3], rtol=1e-4)


@pytest.mark.slow
def test_the_seed_decides(tiny_config, sources, unbroken: Path, tmp_path: Path):
    run_whole(tmp_path / "again", tiny_config, sources)
    assert_same_run(tmp_path / "again", unbroken)
    run_whole(tmp_path / "other", tiny_config, sources, dataclasses.replace(OPTIONS, seed=1))
    other, first = (load_weights(run / "model.safetensors") for run in (tmp_path / "other", unbroken))
    assert not torch.equal(other["top_down.start"], first["top_down.start"])


def test_training_does_not_touch_the_global_generator(tiny_config, sources, tmp_path: Path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_whole(tmp_path / "run", with_settings(tiny_config, ["train.steps=1"]), sources)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["save_every", "keep_states", "eval_every", "log_every", "max_skips"])
def test_options_that_can_never_be_right_are_refused(name: str):
    with pytest.raises(UsageError, match=f"{name} is 0; it must be at least 1"):
        TrainOptions(**{name: 0})


def test_a_run_that_is_being_trained_is_left_alone(tiny_config, sources, tmp_path: Path):
    def again(_: StepMetrics) -> None:
        with pytest.raises(ModelError, match="trained by another process"):
            train(tmp_path / "run", tiny_config, *sources, OPTIONS)

    assert run_whole(tmp_path / "run", tiny_config, sources, on_step=again).step == 8


# --- going on


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 5, 6])
def test_a_killed_run_goes_on_bit_for_bit(tiny_config, sources, unbroken: Path, tmp_path: Path, step: int):
    with pytest.raises(Stop):
        run_whole(tmp_path / "run", tiny_config, sources, on_step=StopAt(step))
    resume(tmp_path / "run", tiny_config, sources)
    assert_same_run(tmp_path / "run", unbroken)


def test_an_interrupted_run_goes_on_at_its_step(tiny_config, sources, unbroken: Path, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_whole(run, tiny_config, sources, on_step=StopAt(5, interrupt=True))
    assert (run / "state" / "step-000000005.safetensors").exists()
    seen: list[int] = []
    config = start_run(run, tiny_config, resume=True)
    train(run, config, *sources, OPTIONS, lambda metrics: seen.append(metrics.step))
    assert seen == [6, 7, 8]
    assert_same_run(run, unbroken)


def test_a_longer_run_is_a_run_that_went_on(tiny_config, sources, unbroken: Path, tmp_path: Path):
    run_whole(tmp_path / "run", with_settings(tiny_config, ["train.steps=4"]), sources)
    resume(tmp_path / "run", tiny_config, sources)
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "empty", "counters", "counters list"])
def test_a_damaged_state_falls_back_to_the_one_before(
    tiny_config, sources, unbroken: Path, tmp_path: Path, damage: str
):
    run = tmp_path / "run"
    with pytest.raises(Stop):
        run_whole(run, tiny_config, sources, on_step=StopAt(7))
    damage_state(run / "state" / "step-000000006.safetensors", damage)
    resume(run, tiny_config, sources)
    assert_same_run(run, unbroken)
    assert rows(run, "validation.csv") == rows(unbroken, "validation.csv")


def damage_state(path: Path, damage: str) -> None:
    if damage.startswith("counters"):
        path.with_suffix(".json").write_text("{" if damage == "counters" else "[]")
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-100])


def test_only_damaged_states_are_an_error(tiny_config, sources, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(Stop):
        run_whole(run, tiny_config, sources, on_step=StopAt(7))
    for path in (run / "state").glob("*.safetensors"):
        damage_state(path, "cut")
    with pytest.raises(ModelError, match=r"no training state in .* read"):
        resume(run, tiny_config, sources)


# --- updates that are left out


def test_skipped_updates_change_nothing_and_are_counted(tiny_config, sources, tmp_path: Path):
    config = with_settings(tiny_config, ["train.steps=3", "optimizer.skip_threshold=1e-9"])
    seen: list[StepMetrics] = []
    result = run_whole(tmp_path / "run", config, sources, on_step=seen.append)
    assert result.skipped == 3
    assert all(metrics.skipped for metrics in seen)
    state = load_weights(tmp_path / "run" / "state" / "step-000000003.safetensors")
    torch.manual_seed(OPTIONS.seed)
    for name, parameter in HVAE(config.model).named_parameters():
        assert torch.equal(state[f"weights.{name}"], parameter)
        assert torch.equal(state[f"ema.{name}"], parameter)
    assert not any(key.startswith("optimizer.") for key in state)


def test_the_average_is_of_the_weights_after_each_update(tiny_config, sources, tmp_path: Path):
    config = with_settings(tiny_config, ["train.steps=1", "train.ema_decay=0.75"])
    run_whole(tmp_path / "run", config, sources)
    torch.manual_seed(OPTIONS.seed)
    start = HVAE(config.model).top_down.start
    state = load_weights(tmp_path / "run" / "state" / "step-000000001.safetensors")
    expected = 0.75 * start + 0.25 * state["weights.top_down.start"]
    torch.testing.assert_close(state["ema.top_down.start"], expected.detach())
    assert torch.equal(
        load_weights(tmp_path / "run" / "model.safetensors")["top_down.start"], state["ema.top_down.start"]
    )


def test_clipping_scales_gradients_down_but_not_the_norm_that_is_told(tiny_config, sources, tmp_path: Path):
    norms = {}
    for clip in ("none", "0.001"):
        config = with_settings(tiny_config, ["train.steps=1", f"optimizer.clip_norm={clip}", "optimizer.name=adam"])
        run_whole(tmp_path / clip, config, sources, on_step=lambda m, clip=clip: norms.update({clip: m.grad_norm}))
    assert norms["none"] == norms["0.001"] > 0.1
    name = "state/step-000000001.safetensors"
    moments = [load_weights(tmp_path / clip / name)["optimizer.exp_avg.top_down.start"] for clip in norms]
    torch.testing.assert_close(moments[1], moments[0] * (0.001 / norms["none"]), rtol=1e-3, atol=0)
