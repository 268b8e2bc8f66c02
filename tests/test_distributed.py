"""Several processes on this machine: started by torchrun as a user starts them, or forked into its environment."""

from __future__ import annotations

import csv
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

from hvae_codec.config import Config, config_to_toml, with_settings
from hvae_codec.data.sources import as_source, open_images
from hvae_codec.distributed import DistributedContext, StopAgreement, init_distributed
from hvae_codec.errors import HvaeCodecError, TrainingError, UsageError
from hvae_codec.model.checkpoint import load_weights
from hvae_codec.model.hvae import HVAE
from hvae_codec.train.loop import TrainOptions, start_run, train
from hvae_codec.train.validation import validate
from hvae_codec_cli.app import main
from photos import save_png

PATIENCE = 120
"""Seconds after which a process hangs."""

WITHOUT_CACHE = """
import sys
import hvae_codec.train.loop as loop
from hvae_codec_cli.app import main
loop.CACHE_BYTES = 0
main(sys.argv[1:])
"""

THREADS_LEFT = """
from pathlib import Path
import torch
from hvae_codec.distributed import init_distributed

with init_distributed() as processes:
    import torch._dynamo  # as the first compiled formula does
    processes.all_reduce_sum(torch.ones(3))
Path(f"threads-{processes.rank}").write_text(" ".join(p.read_text() for p in Path("/proc/self/task").glob("*/comm")))
"""


@pytest.fixture
def data(tmp_path: Path, cut_patches) -> Path:
    """30 training and 7 held-out images as files: neither count is a multiple of 2 processes' batches."""
    for i, patch in enumerate(cut_patches(37)):
        save_png(tmp_path / "data" / ("train" if i < 30 else "val") / f"{i:02d}.png", patch)
    return tmp_path / "data"


@pytest.fixture
def config(tiny_config) -> Config:
    """float32, 12 steps: balanced ones and others."""
    return with_settings(tiny_config, ["train.steps=12", "train.precision=fp32"])


def launch(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def as_rank(rank: int, count: int, port: int, folder: Path, work: Callable, arguments: list) -> None:
    """Do `work` as one of `count` processes that torchrun started; what it says goes to a file."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    agent = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    agent["TORCHELASTIC_RUN_ID"] = "none"
    os.environ.update({name: str(value) for name, value in (own | agent | {"COLUMNS": 200}).items()})
    os.chdir(folder)
    for descriptor, name in ((1, "out"), (2, "errors")):
        os.dup2(os.open(f"{name}-{rank}.txt", os.O_CREAT | os.O_WRONLY), descriptor)
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(PATIENCE - 10)  # to the errors: where it waits if it does not end
    work(*arguments)


@pytest.fixture
def ranks(processes, tmp_path: Path):
    """`ranks(count, work, *arguments)`: exit codes, output and errors of processes that have the imports already."""

    def run(
        count: int, work: Callable, *arguments: object, meanwhile: Callable = lambda started: None
    ) -> tuple[list[int], str, str]:
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # the launcher's
        started = [
            processes.Process(target=as_rank, args=(rank, count, store.port, tmp_path, work, [*arguments]))
            for rank in range(count)
        ]
        for process in started:
            process.start()
        meanwhile(started)
        for process in started:
            process.join(PATIENCE)
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()  # one that hangs; its code is None
        out, errors = (
            "".join((tmp_path / f"{name}-{k}.txt").read_text() for k in range(count)) for name in ("out", "errors")
        )
        return codes, out, errors

    return run


def columns(path: Path, names: tuple[str, ...]) -> np.ndarray:
    with open(path, newline="") as file:
        return np.array([[float(row[name]) for name in names] for row in csv.DictReader(file)])


def spoken(errors: str) -> list[str]:
    """What the processes said, not their launcher."""
    return [line for line in errors.splitlines() if line.startswith(("hvae-codec:", "Stopped."))]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, data: Path, config: Config, ranks):
    (tmp_path / "tiny.toml").write_text(config_to_toml(config))
    arguments = ["train", str(data), "--config", "tiny.toml", "--out", "two", "--log-every", "1", "--no-tensorboard"]
    codes, out, errors = ranks(2, main, arguments)
    assert codes == [0, 0], errors
    source = open_images(data, size=16, channels=3)
    start_run(tmp_path / "one", config, resume=False)
    train(tmp_path / "one", config, source.split("train"), source.split("val"), TrainOptions(log_every=1))
    assert out.count("held-out NELBO") == 1
    assert "(7 images)" in out
    names = ("step", "nelbo", "rate", "distortion", "loss", "grad_norm", "active_groups", "skipped")
    one, two = (columns(tmp_path / run / "metrics.csv", names) for run in ("one", "two"))
    assert len(one) == 12
    np.testing.assert_allclose(two, one, rtol=1e-5)
    names = ("step", "nelbo", "rate", "distortion", "images")
    one, two = (columns(tmp_path / run / "validation.csv", names) for run in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-5)
    one, two = (load_weights(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_in_parts_as_one_on_whole_batches(tmp_path: Path, data: Path, config: Config, ranks):
    config = with_settings(config, ["train.steps=3", "train.accumulate=2"])
    (tmp_path / "tiny.toml").write_text(config_to_toml(config))
    arguments = ["train", str(data), "--config", "tiny.toml", "--out", "two", "--log-every", "1", "--no-tensorboard"]
    codes, _, errors = ranks(2, main, arguments)
    assert codes == [0, 0], errors
    config, source = with_settings(config, ["train.accumulate=1"]), open_images(data, size=16, channels=3)
    start_run(tmp_path / "one", config, resume=False)
    train(tmp_path / "one", config, source.split("train"), source.split("val"), TrainOptions(log_every=1))
    names = ("step", "nelbo", "rate", "distortion", "loss", "grad_norm")
    one, two = (columns(tmp_path / run / "metrics.csv", names) for run in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-5)


@pytest.mark.slow
def test_analyze_names_what_to_do_without_torchrun(tiny_run: Path, tmp_path: Path, data: Path, ranks):
    codes, _, errors = ranks(2, main, ["analyze-kl", str(data), "--model", str(tiny_run), "--out", "two"])
    assert codes == [2, 0]  # the other one ends quietly, or the launcher would end the first before it says why
    (line,) = spoken(errors)
    assert "--on local:2" in line
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_one_process_that_fails_ends_all_with_its_message(tmp_path: Path, data: Path, config: Config):
    (tmp_path / "tiny.toml").write_text(config_to_toml(config))
    (tmp_path / "main.py").write_text(WITHOUT_CACHE)
    broken = data / "train" / "11.png"
    broken.write_bytes(broken.read_bytes()[:60])
    process = launch(tmp_path, "main.py", "train", data, "--config", "tiny.toml", "--out", "run", "--no-tensorboard")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    (sentence,) = spoken(errors)
    assert sentence.startswith(f"hvae-codec: {broken} is broken, truncated or unreadable")
    assert "hvae_codec/train" not in errors  # no traceback of ours


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads have names under Linux")
def test_no_thread_of_the_processes_connection_outlives_it(tmp_path: Path):
    """One that did took Python's lock while the interpreter ended: SIGABRT, now and then."""
    (tmp_path / "threads.py").write_text(THREADS_LEFT)
    process = launch(tmp_path, "threads.py")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "gloo" not in (tmp_path / "threads-0").read_text() + (tmp_path / "threads-1").read_text()


@pytest.mark.slow
def test_an_error_of_all_is_said_once(data: Path, ranks):
    codes, _, errors = ranks(2, main, ["train", str(data), "--config", "nowhere.toml"])
    assert sorted(codes) == [1, 2]
    (sentence,) = spoken(errors)
    assert "nowhere.toml" in sentence
    assert "hvae_codec/" not in errors  # no traceback of ours


def work_until_killed() -> None:
    try:
        with init_distributed() as processes:
            if processes.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            processes.all_reduce_sum(torch.ones(1))
    except HvaeCodecError as error:
        sys.exit(f"said: {error!r}")


@pytest.mark.slow
def test_a_killed_process_is_told_of_once(ranks):
    codes, _, errors = ranks(3, work_until_killed)
    assert codes == [1, -signal.SIGKILL, 1]
    assert errors.count("said: TrainingError('the connection to another process was lost") == 1
    assert errors.count("said: FailedElsewhere(") == 1


def work_for_longer_than_collectives_wait() -> None:
    with init_distributed(timedelta(seconds=1.5)) as processes:
        print(processes.run_on_main(lambda: time.sleep(2.5) or "the ranking"))
        with processes.waiting_for_all():
            time.sleep(2.5 if processes.rank == 1 else 0)  # reads images into memory
        print("together", int(processes.all_reduce_sum(torch.ones(1))))


@pytest.mark.slow
def test_long_work_is_waited_for(ranks):
    codes, out, errors = ranks(2, work_for_longer_than_collectives_wait)
    assert codes == [0, 0], errors
    assert (out.count("the ranking"), out.count("together 2")) == (2, 2)


def stop_for_good() -> None:
    try:
        with init_distributed(timedelta(seconds=1.5)) as processes:
            processes.run_on_main(lambda: os.kill(os.getpid(), signal.SIGSTOP))
    except HvaeCodecError as error:
        sys.exit(f"said: {error!r}")


@pytest.mark.slow
def test_a_first_process_that_stays_silent_is_told_of(ranks):
    def kill_first_when_second_has_ended(started: list) -> None:
        started[1].join(60)
        started[0].kill()

    codes, _, errors = ranks(2, stop_for_good, meanwhile=kill_first_when_second_has_ended)
    assert codes == [-signal.SIGKILL, 1]
    assert "said: TrainingError('process 0 has not been heard of for 0.025 minutes" in errors


@pytest.mark.slow
def test_a_signal_stops_all_at_one_step_and_another_number_goes_on(tmp_path: Path, data: Path, config: Config, ranks):
    config = with_settings(config, ["train.steps=4000"])
    (tmp_path / "tiny.toml").write_text(config_to_toml(config))
    arguments = ("train", data, "--config", "tiny.toml", "--out", "run", "--log-every", 1)
    metrics = tmp_path / "run" / "metrics.csv"

    def when_it_steps(started: list) -> None:
        end = time.monotonic() + 100
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3) and time.monotonic() < end:
            time.sleep(0.05)
        for process in started:  # as the launcher passes a signal on
            process.terminate()

    codes, _, errors = ranks(2, main, [*map(str, arguments), "--no-tensorboard"], meanwhile=when_it_steps)
    assert codes == 2 * [128 + signal.SIGTERM], errors
    (sentence,) = spoken(errors)
    advice = "Continue with: torchrun --nproc-per-node 2 -m hvae_codec train"
    assert sentence == f"Stopped. {advice} {data} --resume --out run --log-every 1 --no-tensorboard"
    step = int(metrics.read_text().splitlines()[-1].split(",")[0])
    assert (tmp_path / "run" / "state" / f"step-{step:09d}.json").exists()
    source = open_images(data, size=16, channels=3)
    config = start_run(tmp_path / "run", with_settings(config, [f"train.steps={step + 3}"]), resume=True)
    result = train(tmp_path / "run", config, source.split("train"), source.split("val"))
    assert (result.step, result.steps_taken) == (step + 3, 3)


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path, tiny_config, photo_patches):
    source = as_source(photo_patches)
    with pytest.raises(UsageError, match=r"train.batch_size is 8, .* all 3 processes .* --set train.batch_size=9"):
        train(tmp_path / "run", tiny_config, source, source, processes=DistributedContext(world_size=3))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 24])
def test_validation_does_not_depend_on_the_batch_size(tiny_model: HVAE, photo_patches, batch_size: int):
    whole = validate(tiny_model, as_source(photo_patches), 7, seed=3, images=23)
    parts = validate(tiny_model, as_source(photo_patches), batch_size, seed=3, images=23)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)


def test_alone_everything_is_the_identity():
    with init_distributed() as processes:
        assert processes == DistributedContext()
    numbers = torch.tensor([1.0, 2.0])
    for work in (processes.all_reduce_mean, processes.all_reduce_sum, processes.all_reduce_min):
        assert work(numbers) is numbers
    assert processes.run_on_main(lambda: 5) == 5
    assert processes.broadcast({"a": numbers})["a"] is numbers
    agreement = StopAgreement(processes)
    assert (agreement.reached(False), agreement.reached(True), agreement.close()) == (False, True, False)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"2 processes .* 1 GPUs?; give torchrun"):
        DistributedContext(rank=1, world_size=2, local_rank=1, local_world_size=2).on("cuda")
    assert DistributedContext(rank=1, world_size=2, local_rank=1, local_world_size=2).on("cpu").device == "cpu"


def test_several_processes_may_not_share_a_gpu():
    with pytest.raises(UsageError, match="each of 2 processes takes a GPU of its own; give --device cuda, not cuda:1"):
        DistributedContext(rank=1, world_size=2, local_rank=1, local_world_size=2).on("cuda:1")
    assert DistributedContext().on("cuda:1").device == "cuda:1"


def test_processes_without_a_launcher_are_told_of_it(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"cannot be connected .*options of torchrun"):
        init_distributed().__enter__()
