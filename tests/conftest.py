"""What several tests share: photograph patches, a tiny model that was trained for a moment, its run on disk."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from browser import start_chromium
from hvae_codec.config import Config, LossConfig, ModelConfig, OptimizerConfig, StageConfig, TrainConfig
from hvae_codec.model.checkpoint import load_model, save_model
from hvae_codec.model.choices import gaussian_noise
from hvae_codec.model.hvae import HVAE
from hvae_codec.storage import connection
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.update import update
from photos import Patches, cut

settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """Keep what was imported out of garbage collections, which would look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is remembered of archives out of the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _tiny_run_has_no_ranking(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a ranking, steps or tables in the run that all share: later ones would use them."""
    yield
    if "tiny_run" in request.fixturenames:
        analysis: Path = request.getfixturevalue("tiny_run") / "analysis"
        left = [path.name for path in analysis.glob("*")]
        shutil.rmtree(analysis, ignore_errors=True)
        assert not left, f"the test left {left} in the run that all tests share; copy that run"


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes in which everything is imported already, without this one's threads."""
    context = multiprocessing.get_context("forkserver")
    # The first start decides what the server imports. Training imports torch's compiler, which takes seconds.
    rooms = ["hvae_codec.encode.append", "hvae_codec.encode.pipeline", "hvae_codec.train.loop"]
    context.set_forkserver_preload([*rooms, "hypothesis", "pandas", "pytest", "skimage.data", "torch._dynamo"])
    return context


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that speaks S3, and the environment that leads to it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setattr(connection, "RETRIES", 2)
        yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str) -> Iterator[str]:
    """A new bucket's URL."""
    import obstore

    from hvae_codec.storage.bucket import BucketLocation

    urllib.request.urlopen(urllib.request.Request(f"{server}/images", method="PUT")).close()
    yield "s3://images"
    client = BucketLocation.of("s3://images/any").bucket.client
    obstore.delete(client, [entry["path"] for batch in obstore.list(client) for entry in batch])
    urllib.request.urlopen(urllib.request.Request(f"{server}/images", method="DELETE")).close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium; tests that ask for it are skipped where there is none."""
    window = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield window
    window.quit()


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of analyses become empty files: to draw one takes longer than the rest of a small command."""

    def left_blank(_: object, path: Path) -> Path:
        path.touch()
        return path

    monkeypatch.setattr("hvae_codec.report.plots.save_figure", left_blank)
    monkeypatch.setattr("hvae_codec.report.bench_plot.save_figure", left_blank)


@pytest.fixture
def without_ctimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let folders lie on a disk that does not say when a file itself was changed, as FAT."""
    monkeypatch.setattr("hvae_codec.data.folders.file_stamp", lambda status: (status.st_size, status.st_mtime_ns, 0))


@pytest.fixture(scope="session")
def cut_patches() -> Callable[..., Patches]:
    """`cut(count, size=16, channels=3)`: patches of other counts, sizes and channels than `photo_patches`."""
    return cut


@pytest.fixture(scope="session")
def photo_patches() -> Patches:
    """24 patches of photographs, uint8 [24, 3, 16, 16]: what `tiny_model` takes."""
    return cut(24)


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """A configuration whose model (16 × 16 colour images, 4 latent groups, 3 resolutions) takes milliseconds."""
    stages = (
        StageConfig(16, width=8, variates=3, bottleneck=0.5),
        StageConfig(8, width=8, variates=4, bottleneck=0.5, linked_blocks=1, extra_top_down=1),
        StageConfig(2, width=12, variates=5, bottleneck=0.5, extra_bottom_up=1),
    )
    return Config(
        ModelConfig(16, stages, mixtures=2, middle_layers=1),
        OptimizerConfig(learning_rate=0.02, warmup_steps=5.0, decay_start=100, decay_steps=100),
        LossConfig(anneal_start=1, anneal_steps=20, balance_steps=10),
        TrainConfig(steps=8, batch_size=8, ema_decay=0.8),
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Config, photo_patches: Patches, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: `tiny_config` trained for 80 steps, averaged weights. Tests copy it to write into it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HVAE(tiny_config.model).to(memory_format=torch.channels_last)
    optimizer = FlatOptimizer(model, tiny_config.optimizer, tiny_config.train.ema_decay)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 81):
        images = torch.from_numpy(photo_patches[np.arange(8 * step, 8 * step + 8) % len(photo_patches)])
        update(model, optimizer, tiny_config, images, gaussian_noise(generator), step)
    run = tmp_path_factory.mktemp("runs") / "tiny"
    save_model(run, tiny_config, optimizer.named(optimizer.ema))
    return run


@pytest.fixture(scope="session")
def tiny_model(tiny_run: Path) -> HVAE:
    """The model of `tiny_run`, as `load_model` gives it; tests must not change it."""
    return load_model(tiny_run)
