from __future__ import annotations

import io
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hvae_codec.data.sources import as_source
from hvae_codec.train.loop import StepMetrics, TrainOptions, start_run, train

OPTIONS = TrainOptions(save_every=3, eval_every=4, log_every=1, validation_images=4, tensorboard=True)


def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


@pytest.mark.slow
def test_a_resumed_run_has_each_event_once(tiny_config, photo_patches, tmp_path: Path):
    training, held_out = as_source(photo_patches[:20]), as_source(photo_patches[20:])
    config = start_run(tmp_path / "run", tiny_config, resume=False)

    def die(metrics: StepMetrics) -> None:
        if metrics.step == 6:
            raise RuntimeError  # after the rows and events of step 5, and the state of step 3

    with pytest.raises(RuntimeError):
        train(tmp_path / "run", config, training, held_out, OPTIONS, die)
    time.sleep(1.0)  # event files are read in the order of the seconds in their names; no real run goes on within one
    train(tmp_path / "run", config, training, held_out, OPTIONS)
    found = events(tmp_path / "run")
    scalars = set(found.Tags()["scalars"])
    steps = {name: [event.step for event in found.Scalars(name)] for name in scalars}
    assert all(steps[name] == list(range(1, 9)) for name in scalars if not name.startswith("validation"))
    assert steps["validation/nelbo"] == steps["validation/rate"] == [4, 8]
    assert scalars >= {"train/nelbo", "train/grad_norm", "train/beta", "train/active_groups", "train/skipped"}
    groups = [f"kl/group_{i:02d}" for i in range(len(config.model.groups))]
    assert scalars >= set(groups)
    rate = [event.value for event in found.Scalars("train/rate")]
    total = np.sum([[event.value for event in found.Scalars(name)] for name in groups], axis=0)
    np.testing.assert_allclose(total, rate, rtol=1e-4)


def test_originals_stand_above_their_reconstructions(tiny_config, photo_patches, tmp_path: Path):
    training, held_out = as_source(photo_patches[:20]), as_source(photo_patches[12:])
    config = start_run(tmp_path / "run", tiny_config, resume=False)
    train(tmp_path / "run", config, training, held_out, OPTIONS)
    found = events(tmp_path / "run")
    assert [image.step for image in found.Images("samples")] == [4, 8]
    sheet = Image.open(io.BytesIO(found.Images("originals_and_reconstructions")[-1].encoded_image_string))
    assert sheet.size == (8 * 16, 2 * 16)
    top = np.asarray(sheet)[:16].reshape(16, 8, 16, 3).transpose(1, 3, 0, 2)
    np.testing.assert_array_equal(top, held_out.evenly(8).read(range(8)))


def test_without_it_there_are_no_events(tiny_config, photo_patches, tmp_path: Path):
    source = as_source(photo_patches)
    train(tmp_path / "run", start_run(tmp_path / "run", tiny_config, resume=False), source, source)
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("reason", ["no folder", "full disk"])
def test_training_goes_on_without_events(tiny_config, photo_patches, tmp_path: Path, monkeypatch, reason: str):
    source, warnings = as_source(photo_patches), []

    def lose(metrics: StepMetrics) -> None:
        if metrics.step == 3 and reason == "no folder":
            shutil.rmtree(tmp_path / "run" / "tensorboard")
        elif metrics.step == 3:
            monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    config = start_run(tmp_path / "run", tiny_config, resume=False)
    result = train(tmp_path / "run", config, source, source, OPTIONS, lose, on_warning=warnings.append)
    assert result.step == 8
    (warning,) = warnings
    assert "no more events" in warning
    assert str(tmp_path / "run" / "tensorboard") in warning
