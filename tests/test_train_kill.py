"""kill -9 at random moments: what goes on is, to the last bit, what was never killed."""

from __future__ import annotations

import csv
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec.config import Config, with_settings
from hvae_codec.data.sources import as_source
from hvae_codec.model.checkpoint import load_model
from hvae_codec.train.loop import TrainOptions, start_run, train

pytestmark = pytest.mark.slow

KILLS = 3
OPTIONS = TrainOptions(seed=3, save_every=4, eval_every=6, log_every=1, validation_images=5)


def work(run: Path, config: Config, patches: np.ndarray) -> None:
    torch.set_num_threads(1)
    config = start_run(run, config, resume=False)
    train(run, config, as_source(patches[:20]), as_source(patches[20:]), OPTIONS)


def rows(run: Path) -> list[list[str]]:
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


def test_a_run_killed_at_random_moments_is_the_unbroken_one(
    processes, tiny_config, photo_patches, tmp_path: Path, record_property
):
    config = with_settings(tiny_config, ["train.steps=40"])
    work(tmp_path / "unbroken", config, photo_patches)
    killed, moments = tmp_path / "killed", random.Random(0)
    for kill in range(KILLS):
        process = processes.Process(target=work, args=(killed, config, photo_patches))
        process.start()
        wanted = len(rows(killed)) + moments.randrange(1, 9)
        end = time.monotonic() + 30
        # The second kill comes while the run starts.
        while kill != 1 and len(rows(killed)) < wanted and process.is_alive() and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was done before it was killed"
        if (killed / "model.safetensors").exists():
            load_model(killed)
    work(killed, config, photo_patches)
    assert rows(killed) == rows(tmp_path / "unbroken")
    for name in ("validation.csv", "model.safetensors", "state/step-000000040.safetensors"):
        assert (killed / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name
    assert not list(killed.rglob("*.partial"))
