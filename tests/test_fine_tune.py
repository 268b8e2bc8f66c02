"""Pruning that is trained in: masks that stay, stages, codes, slim runs, what is compared, and kills."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec.analysis.ranking_file import find_ranking
from hvae_codec.data.sources import as_source
from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
from hvae_codec.encode.pipeline import encode_images
from hvae_codec.errors import ModelError, UsageError
from hvae_codec.fine_tune.comparison import ALL, LEFT, compare
from hvae_codec.fine_tune.plan import PrunePlan
from hvae_codec.fine_tune.prune import PrunedRun, prune
from hvae_codec.fine_tune.schedule import fine_tuning_config, share_of_training
from hvae_codec.model.checkpoint import load_model, load_run_config
from hvae_codec.prune.cutoffs import CutoffSpec
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.train.loop import TrainOptions, train
from hvae_codec.train.state import steps_taken

OPTIONS = TrainOptions(seed=3, save_every=2, eval_every=4, log_every=1, validation_images=5)


def quiet(name: str):
    return lambda done, total: None


def quietly():
    return contextlib.nullcontext(quiet)


@pytest.fixture
def base(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_run`, as pruning keeps weights and ranking there."""
    return Path(shutil.copytree(tiny_run, tmp_path / "base"))


@pytest.fixture
def source(photo_patches):
    return as_source(photo_patches)


def plan_of(*keep: float, steps: int = 4, **changes) -> PrunePlan:
    cutoffs = [CutoffSpec(keep=share) for share in keep]
    return PrunePlan(cutoffs=cutoffs, steps=steps, images=8, pictures=4, batch_size=4, **changes)


def train_on(source, run: Path, config, seed, initial) -> None:
    options = replace(OPTIONS, seed=seed)
    train(run, config, source.subset(range(16)), source.subset(range(16, 24)), options, initial=initial)


def prune_to(base: Path, out: Path, source, plan: PrunePlan) -> PrunedRun:
    return prune(base, out, TrainingAndHeldOut(source), plan, partial(train_on, source), quietly)


def test_a_run_is_pruned_and_knows_it(base, source, tmp_path):
    pruned = prune_to(base, tmp_path / "out", source, plan_of(0.2))
    config, model = load_run_config(tmp_path / "out"), load_model(tmp_path / "out")
    assert (pruned.rule, config.pruning.rule, config.pruning.share) == ("keep 20%", "keep 20%", 0.2)
    assert config.pruning.model_hash == pruned.kept_hash
    stats = find_ranking(load_model(base), TrainingAndHeldOut(source), 4, 0, quiet).stats
    mask = LatentMask.from_keep(stats, 0.2)
    assert [len(keep) for keep in mask.keep] == [group.variates for group in load_model(base).config.groups]
    assert [int(keep.sum()) for keep in mask.keep] == [group.variates for group in model.config.groups]
    assert model.config.unpruned_dims == mask.dims
    assert steps_taken(tmp_path / "out") == 4
    # It is what is left that shares are of, and all of it is the default.
    own = kl_stats(model, source.subset(range(8)))
    assert LatentMask.everything(own).kept_dims == mask.kept_dims
    assert LatentMask.everything(own).kept_share == mask.kept_share
    smaller = LatentMask.from_keep(own, 0.1)
    assert smaller.kept_dims <= 0.1 * mask.dims


def test_larger_shares_name_the_unpruned_run(base, source, tmp_path):
    prune_to(base, tmp_path / "out", source, plan_of(0.2))
    model = load_model(tmp_path / "out")
    stats = kl_stats(model, source.subset(range(8)))
    with pytest.raises(UsageError, match=r"keep is 30%.*pruned to 20%.*--model.*base"):
        CutoffSpec(keep=0.3).cutoff(model, stats)
    assert CutoffSpec(keep=0.2).cutoff(model, stats).mask.keeps_the_same(LatentMask.everything(stats))
    whole = LatentMask.from_keep(find_ranking(load_model(base), TrainingAndHeldOut(source), 4, 0, quiet).stats, 0.5)
    with pytest.raises(UsageError, match="another model"):
        whole.check_fits(model)


def test_pruned_to_means_the_first_step_begins_with_the_same_function(base, source, tmp_path, photo_patches):
    """Slim before training: what the pruned variates gave at the prior's mean is in the other weights."""
    seen = []

    def look(run, config, seed, initial):
        model = load_model(base)
        small = type(model)(config.model)
        small.load_state_dict(dict(initial))
        seen.append(small.eval())

    with pytest.raises(ModelError):  # as nothing is trained
        prune(base, tmp_path / "out", TrainingAndHeldOut(source), plan_of(0.2), look, quietly)
    stats = find_ranking(load_model(base), TrainingAndHeldOut(source), 4, 0, quiet).stats
    keep = LatentMask.from_keep(stats, 0.2).tensors("cpu")
    model, images = load_model(base), torch.from_numpy(photo_patches[:4])

    def at_mean(group):
        return torch.where(keep[group.index], group.posterior().mean, group.prior_mean)

    with torch.no_grad():
        expected = model.top_down(model.activations(images), at_mean, 4)
        found = seen[0].top_down(seen[0].activations(images), lambda group: group.posterior().mean, 4)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_sample_runs_stay_whole_and_keep_their_mask(base, source, tmp_path):
    prune_to(base, tmp_path / "out", source, plan_of(0.2, collapse="sample"))
    model, unpruned = load_model(tmp_path / "out"), load_model(base)
    assert model.config == unpruned.config
    stats = kl_stats(model, source.subset(range(8)))
    mask = LatentMask.everything(stats)
    assert 0 < mask.kept_share <= 0.2
    wider = LatentMask(tuple(np.ones_like(keep) for keep in mask.keep), mask.resolutions, mask.model_hash)
    with pytest.raises(UsageError, match="pruned away"):
        wider.check_fits(model)
    # Nothing that only pruned variates use has changed.
    for old, new, keep in zip(unpruned.top_down.blocks, model.top_down.blocks, mask.keep, strict=True):
        if not keep.any():
            assert torch.equal(old.posterior_conv.weight, new.posterior_conv.weight)


def test_sample_runs_can_be_made_slim(base, source, tmp_path):
    prune_to(base, tmp_path / "out", source, plan_of(0.2, collapse="sample", slim=True))
    model, whole = load_model(tmp_path / "out"), load_model(tmp_path / "out" / "stages" / "1")
    assert model.config.is_slim
    assert not whole.config.is_slim
    assert steps_taken(tmp_path / "out") == 4
    images = torch.from_numpy(source.read(range(4)))
    differences = (model.reconstruct(images).int() - whole.reconstruct(images).int()).abs()
    assert differences.max() <= 1
    config = load_run_config(tmp_path / "out")
    # A kill between its weights and its configuration leaves a folder that the same call makes a run.
    (tmp_path / "out" / "config.json").unlink()
    prune_to(base, tmp_path / "out", source, plan_of(0.2, collapse="sample", slim=True))
    assert load_run_config(tmp_path / "out") == config
    longer = replace(config, train=replace(config.train, steps=6))
    result = train(
        tmp_path / "out", longer, source.subset(range(16)), source.subset(range(16, 24)), replace(OPTIONS, seed=0)
    )
    assert (result.step, result.steps_taken) == (6, 2)


@pytest.mark.parametrize("changes", [{}, {"collapse": "sample"}, {"codes": True}], ids=["mean", "sample", "codes"])
def test_a_schedule_prunes_what_is_left(base, source, tmp_path, changes):
    out = tmp_path / "out"
    pruned = prune_to(base, out, source, plan_of(0.5, 0.2, 0.1, steps=5, **changes))
    runs = [out / "stages" / "1", out / "stages" / "2", out]
    assert [steps_taken(run) for run in runs] == [2, 2, 1]
    masks = [load_run_config(run).pruning for run in runs]
    assert [mask.rule for mask in masks] == ["keep 50%", "keep 20%", "keep 10%"]
    sizes = [LatentMask.everything(kl_stats(load_model(run), source.subset(range(8)))).kept_dims for run in runs]
    assert sizes == sorted(sizes, reverse=True)
    # In numbers of the unpruned model's variates, each is a part of the one before.
    numbers = [[set(map(int, _numbers(text))) for text in mask.kept] for mask in masks]
    for earlier, later in itertools.pairwise(numbers):
        assert all(b <= a for a, b in zip(earlier, later, strict=True))
    assert pruned.kept == masks[-1].kept


def _numbers(text: str) -> list[int]:
    ranges = (part.partition("-") for part in text.split())
    return [number for first, dash, last in ranges for number in range(int(first), int(last if dash else first) + 1)]


def test_codes_are_what_encode_stores(base, source, tmp_path):
    prune_to(base, tmp_path / "out", source, plan_of(0.2, codes=True))
    model = load_model(tmp_path / "out")
    stats = kl_stats(model, source.subset(range(8)))
    for block, steps in zip(model.top_down.blocks, stats.posterior_std, strict=True):
        if len(steps):
            np.testing.assert_array_equal(np.float32(steps), block.steps().flatten().numpy())
    images = source.read(range(6))
    store = encode_images(model, images, tmp_path / "out.zarr", mask=LatentMask.everything(stats), stats=stats)
    z, chosen = store.dense(slice(0, 6)), []

    def record(group):
        chosen.append(choose(group))
        return chosen[-1]

    choose = model.choose_best()
    with torch.no_grad():
        model.top_down(model.activations(torch.from_numpy(images)), record, 6)
    for ours, theirs in zip(z, chosen, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_what_is_compared(base, source, tmp_path):
    plan = plan_of(0.2, control=True)
    found = compare(prune_to(base, tmp_path / "out", source, plan), TrainingAndHeldOut(source), plan, quiet)
    table = found.table.set_index(["model", "kept"])
    assert list(table.index) == [
        ("before", LEFT),
        ("before", ALL),
        ("control", LEFT),
        ("control", ALL),
        ("after", LEFT),
    ]
    assert table.loc[("control", ALL), "nelbo_change"] == 0.0
    assert len(set(table.xs(LEFT, level="kept")["kept_dims"])) == 1
    for _, row in table.iterrows():
        assert row["nelbo"] == pytest.approx(row["rate"] + row["distortion"])
        reference = table.loc[("control", ALL), "nelbo"]
        assert row["nelbo_change"] == pytest.approx(row["nelbo"] - reference, abs=1e-9)
    assert found.about["reference"] == "control"
    control = load_model(tmp_path / "out" / "control")
    assert control.pruning is None
    assert steps_taken(tmp_path / "out" / "control") == 4


def test_the_same_again_continues_and_another_is_refused(base, source, tmp_path):
    out, plan = tmp_path / "out", plan_of(0.2)
    prune_to(base, out, source, plan)
    before = (out / "model.safetensors").read_bytes()
    prune_to(base, out, source, plan)
    assert (out / "model.safetensors").read_bytes() == before
    with pytest.raises(ModelError, match=r"begun with train.steps = 4, not 6; .*another --out"):
        prune_to(base, out, source, plan_of(0.2, steps=6))
    with pytest.raises(ModelError, match=r"begun with pruning.rule = keep 20%, not keep 10%"):
        prune_to(base, out, source, plan_of(0.1))
    with pytest.raises(ModelError, match="exists and is not a run"):
        prune_to(base, base.parent, source, plan)


def test_other_runs_are_left_alone(base, source, tmp_path, tiny_config):
    other = Path(shutil.copytree(base, tmp_path / "other"))
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    for changes in ({}, {"collapse": "sample", "slim": True}):
        with pytest.raises(ModelError, match="other is a run that was not pruned; give another --out"):
            prune_to(base, other, source, plan_of(0.2, **changes))
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_a_slim_base_has_no_prior_to_sample_and_codes_stay_codes(base, source, tmp_path):
    prune_to(base, tmp_path / "slim", source, plan_of(0.2, codes=True))
    with pytest.raises(UsageError, match=r"is slim.*leave out --collapse sample"):
        prune_to(tmp_path / "slim", tmp_path / "out", source, plan_of(0.1, collapse="sample"))
    with pytest.raises(UsageError, match="give --codes"):
        prune_to(tmp_path / "slim", tmp_path / "out", source, plan_of(0.1))
    pruned = prune_to(tmp_path / "slim", tmp_path / "out", source, plan_of(0.1, codes=True))
    earlier = load_run_config(tmp_path / "slim").pruning.kept
    assert all(set(_numbers(b)) <= set(_numbers(a)) for a, b in zip(earlier, pruned.kept, strict=True))
    found = compare(pruned, TrainingAndHeldOut(source), plan_of(0.1, codes=True), quiet).table.set_index(
        ["model", "kept"]
    )
    assert found.loc[("before", LEFT), "kept_dims"] == found.loc[("after", LEFT), "kept_dims"]


def test_a_signal_in_the_last_step_is_told(tiny_config, source, tmp_path):
    def stop(metrics) -> None:
        if metrics.step == tiny_config.train.steps:
            os.kill(os.getpid(), signal.SIGTERM)

    parts = source.subset(range(16)), source.subset(range(16, 24))
    result = train(tmp_path / "run", tiny_config, *parts, OPTIONS, stop)
    assert (result.step, result.stopped) == (tiny_config.train.steps, signal.SIGTERM)
    assert train(tmp_path / "run", tiny_config, *parts, OPTIONS).stopped is None


def test_a_base_that_was_trained_on_is_still_there(base, source, tmp_path):
    """Its weights are kept under their hash: what was begun with them continues."""
    out = tmp_path / "out"
    pruned = prune_to(base, out, source, plan_of(0.2))
    other = load_model(base)
    with torch.no_grad():
        other.top_down.start.add_(1.0)
    from hvae_codec.model.checkpoint import save_weights

    save_weights(base / "model.safetensors", dict(other.state_dict()))
    assert prune_to(base, out, source, plan_of(0.2)) == pruned


def test_plans_that_cannot_be(base, source, tmp_path):
    with pytest.raises(UsageError, match="leave out --collapse sample"):
        plan_of(0.1, codes=True, collapse="sample")
    with pytest.raises(UsageError, match="give --collapse sample"):
        plan_of(0.1, slim=False)
    with pytest.raises(UsageError, match="less and less"):
        plan_of(0.1, 0.3)
    with pytest.raises(UsageError, match="too few for 2 stages"):
        prune_to(base, tmp_path / "out", source, plan_of(0.3, 0.1, steps=1))
    with pytest.raises(UsageError, match="whole variates"):
        PrunePlan(cutoffs=[CutoffSpec(keep=0.1, granularity="position")])
    with pytest.raises(UsageError, match="keeps all latent dimensions"):
        prune_to(base, tmp_path / "out", source, plan_of(1.0))
    assert not (tmp_path / "out").exists()


def test_the_fine_tuning_ends_low_and_its_average_forgets(tiny_config, base):
    config = fine_tuning_config(tiny_config, 200)
    assert config.optimizer.learning_rate == tiny_config.optimizer.learning_rate / 8
    assert config.optimizer.min_learning_rate < config.optimizer.learning_rate / 20
    assert config.loss.kl_schedule == "constant"
    assert config.train.ema_decay == 0.8
    assert (
        fine_tuning_config(
            replace(tiny_config, train=replace(tiny_config.train, ema_decay=0.9999)), 200
        ).train.ema_decay
        == 0.95
    )
    assert share_of_training(base, tiny_config, 0.5) == 4


def work(base: Path, out: Path, patches: np.ndarray) -> None:
    torch.set_num_threads(1)
    prune_to(base, out, as_source(patches), plan_of(0.5, 0.1, steps=12, codes=True))


@pytest.mark.slow
def test_kills_in_every_stage_change_nothing(processes, base, photo_patches, tmp_path):
    work(base, tmp_path / "unbroken", photo_patches)
    killed = tmp_path / "killed"
    for folder, step in ((killed / "stages" / "1", 2), (killed / "stages" / "1", 5), (killed, 2)):
        process = processes.Process(target=work, args=(base, killed, photo_patches))
        process.start()
        end = time.monotonic() + 60
        while (steps_taken(folder) or 0) < step and time.monotonic() < end and process.is_alive():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    work(base, killed, photo_patches)
    for run in (Path(), Path("stages/1")):
        for name in ("model.safetensors", "config.json"):
            assert (killed / run / name).read_bytes() == (tmp_path / "unbroken" / run / name).read_bytes()
