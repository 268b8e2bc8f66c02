"""Several processes write one store: in any order, one after the other or at once, and killed."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, open_images, open_store, sweep
from hvae_codec.encode.pipeline import EncodeOptions, encode_worker
from hvae_codec.errors import DataError, StoreError, UsageError
from hvae_codec.store import folder_writer
from hvae_codec.store.locks import publish_lock, write_lock
from hvae_codec.store.workers import Worker
from photos import save_png
from stores import tree

pytestmark = pytest.mark.slow

IMAGES, KILLS = 90, 3
OPTIONS = EncodeOptions(batch_size=4, row_group_size=8, evaluate=True, seed=3)
"""Twelve row groups, the last of two images."""


@pytest.fixture(scope="module")
def images(cut_patches) -> np.ndarray:
    return cut_patches(IMAGES)


@pytest.fixture(scope="module")
def stats(tiny_model, images):
    return kl_stats(tiny_model, images[:40])


@pytest.fixture(scope="module")
def share(tiny_model, images, stats):
    """Encodes one worker's share of the images into a store."""
    mask = LatentMask.from_keep(stats, 0.5)

    def run(path: Path, worker: Worker, **changes):
        arguments = {"mask": mask, "stats": stats, "options": OPTIONS} | changes
        return encode_worker(tiny_model, images, path, worker, **arguments)

    return run


@pytest.fixture(scope="module")
def unbroken(tiny_model, images, stats, tmp_path_factory) -> dict[str, bytes]:
    """The store of one worker that nothing happened to."""
    path = tmp_path_factory.mktemp("stores") / "out.zarr"
    encode_images(tiny_model, images, path, mask=LatentMask.from_keep(stats, 0.5), stats=stats, options=OPTIONS)
    return tree(path)


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_workers_are_told_by_number_and_count():
    assert Worker.parse("0/1") == Worker()
    assert str(Worker.parse("2/3")) == "2/3"
    for text, message in (
        ("3/3", "no worker 3/3; .* 0/3 to 2/3"),
        ("1/0", "no worker 1/0; .* 0/1"),
        ("1", "the worker is '1'; give"),
        ("-1/2", "'-1/2'"),
        ("1/2/3", "'1/2/3'"),
        ("a/b", "'a/b'"),
    ):
        with pytest.raises(UsageError, match=message):
            Worker.parse(text)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_one_after_the_other_in_any_order(share, unbroken, tmp_path, order):
    path = tmp_path / "out.zarr"
    for number in order[:-1]:
        assert share(path, Worker(number, 3)) is None
        assert entries(tmp_path) == ["out.zarr.partial"]
    seen: list[tuple[int, int]] = []
    store = share(path, Worker(order[-1], 3), progress=lambda *counts: seen.append(counts))
    assert tree(path) == unbroken
    assert len(store) == IMAGES
    own = sum(len(range(IMAGES)[first : first + 8]) for first in range(8 * order[-1], IMAGES, 24))
    assert seen[-1] == (own, own)
    assert entries(tmp_path) == ["out.zarr"]
    # A scheduler may run a worker again that was done long ago.
    assert len(share(path, Worker(0, 3))) == IMAGES


def test_a_finished_store_of_images_that_were_edited_is_no_success(tiny_model, images, stats, tmp_path):
    """Names and sizes are as they were, so the finished store seems to be the wanted one, with --overwrite, too."""
    for i, image in enumerate(images[:16]):
        save_png(tmp_path / "data" / f"{i:02d}.png", image)

    def work(number: int):
        options, mask = replace(OPTIONS, overwrite=True), LatentMask.from_keep(stats, 0.5)
        source = open_images(tmp_path / "data", size=16, channels=3)
        path, worker = tmp_path / "out.zarr", Worker(number, 2)
        return encode_worker(tiny_model, source, path, worker, mask=mask, stats=stats, options=options)

    assert [work(number) is None for number in range(2)] == [True, False]
    file = tmp_path / "data/09.png"  # of the second row group
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert len(work(0)) == 16
    with pytest.raises(DataError, match=r"out\.zarr is finished, and 09\.png was changed since; .*sync"):
        work(1)


def test_one_worker_finishes_what_others_began(tiny_model, images, stats, share, unbroken, tmp_path):
    path = tmp_path / "out.zarr"
    assert share(path, Worker(3, 4)) is None
    encode_images(tiny_model, images, path, mask=LatentMask.from_keep(stats, 0.5), stats=stats, options=OPTIONS)
    assert tree(path) == unbroken


def test_more_workers_than_row_groups(share, unbroken, tmp_path):
    path = tmp_path / "out.zarr"
    stores = [share(path, Worker(number, 15)) for number in range(15)]
    assert [store is not None for store in stores] == 11 * [False] + 4 * [True]
    assert tree(path) == unbroken


def test_workers_that_were_given_something_else(stats, share, tmp_path):
    path, other = tmp_path / "out.zarr", LatentMask.from_keep(stats, 0.2)
    share(path, Worker(0, 2))
    for options in (OPTIONS, EncodeOptions(batch_size=4, row_group_size=8, evaluate=True, overwrite=True)):
        with pytest.raises(StoreError, match=r"unfinished store of other.* give all workers of a store"):
            share(path, Worker(1, 2), mask=other, options=options)
    assert len(share(path, Worker(1, 2))) == IMAGES
    with pytest.raises(StoreError, match=r"exists; .*--overwrite"):
        share(path, Worker(1, 2), mask=other)
    before = tree(path)
    changed = EncodeOptions(batch_size=4, row_group_size=8, overwrite=True)
    assert share(path, Worker(1, 2), mask=other, options=changed) is None
    assert tree(path) == before
    assert share(path, Worker(0, 2), mask=other, options=changed).mask == other.to_dict()
    assert entries(tmp_path) == ["out.zarr"]


def test_workers_write_side_by_side_but_nobody_beside_one_that_writes_all(share, unbroken, tmp_path):
    path = tmp_path / "out.zarr"
    with write_lock(path):
        for worker in (Worker(1, 2), Worker()):
            with pytest.raises(StoreError, match=r"out\.zarr is being written by another process; wait"):
                share(path, worker)
    assert share(path, Worker(1, 2)) is None
    assert len(share(path, Worker(0, 2))) == IMAGES
    assert tree(path) == unbroken
    assert entries(tmp_path) == ["out.zarr"]


def test_a_killed_process_s_lock_keeps_nobody_out(share, tmp_path):
    folder = tmp_path / "out.zarr.locks"
    folder.mkdir()
    for name in ("writer", "0-of-1"):
        (folder / name).touch()
    share(tmp_path / "out.zarr", Worker(1, 2))
    share(tmp_path / "out.zarr", Worker(0, 2))
    assert entries(tmp_path) == ["out.zarr"]


def test_what_another_worker_removes_at_the_same_time_is_no_error(share, tmp_path, monkeypatch):
    """A worker that was too late to create the store removes what it made of it, while a faster one publishes it."""
    path, late, remove = tmp_path / "out.zarr", tmp_path / f"out.zarr.{32 * 'a'}.creating", shutil.rmtree

    def removed_by_both(folder, **options):
        remove(folder, **options)
        if Path(folder) == late:
            raise FileNotFoundError(folder)

    share(path, Worker(1, 2))
    late.mkdir()
    monkeypatch.setattr(shutil, "rmtree", removed_by_both)
    assert len(share(path, Worker(0, 2))) == IMAGES
    assert entries(tmp_path) == ["out.zarr"]


def test_what_another_worker_creates_at_the_same_time_is_found(share, tmp_path, monkeypatch):
    """It was not there at the first look, and is at the second one."""
    path, look, looks = tmp_path / "out.zarr", folder_writer.fingerprint_at, iter([None])
    share(path, Worker(1, 2))
    unfinished = tmp_path / "out.zarr.partial"
    monkeypatch.setattr(
        folder_writer, "fingerprint_at", lambda at: next(looks, look(at)) if at == unfinished else look(at)
    )
    assert len(share(path, Worker(0, 2))) == IMAGES


def test_rate_and_distortion_of_each_image(tiny_model, images, stats, share, tmp_path):
    store = share(tmp_path / "out.zarr", Worker())
    (expected,) = sweep(tiny_model, images, [LatentMask.from_keep(stats, 0.5)], seed=OPTIONS.seed, batch_size=7)
    np.testing.assert_allclose(store.per_image("rate"), expected.rate, rtol=1e-4)
    np.testing.assert_allclose(store.per_image("distortion"), expected.distortion, rtol=1e-4)
    assert {p.name for p in (store.path / "rate" / "c").iterdir()} == {str(r) for r in range(12)}


def work(run: Path, images: np.ndarray, stats, path: Path, worker: Worker) -> None:
    torch.set_num_threads(1)
    mask = LatentMask.from_keep(stats, 0.5)
    encode_worker(load_model(run), images, path, worker, mask=mask, stats=stats, options=OPTIONS)


@pytest.fixture(scope="module")
def started(processes, tiny_run, images, stats):
    """Starts workers in processes of their own."""

    def start(path: Path, worker: Worker):
        process = processes.Process(target=work, args=(tiny_run, images, stats, path, worker))
        process.start()
        return process

    return start


def test_all_at_once(started, unbroken, tmp_path):
    path = tmp_path / "out.zarr"
    processes = [started(path, Worker(number, 4)) for number in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == 4 * [0]
    assert tree(path) == unbroken
    assert entries(tmp_path) == ["out.zarr"]


def committed(path: Path) -> int:
    return sum(1 for _ in path.with_name(path.name + ".partial").glob("committed/c/*"))


def kill(process, path: Path, row_groups: int, moments: random.Random) -> bool:
    """Kill a process some time after so many row groups are there; False where it was done before."""
    end = time.monotonic() + 30
    while committed(path) < row_groups and process.is_alive() and time.monotonic() < end:
        time.sleep(0.0005)
    time.sleep(moments.uniform(0.0, 0.02))
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments(started, unbroken, tmp_path, workers):
    path, moments, killed = tmp_path / "out.zarr", random.Random(workers), 0
    while killed < KILLS:
        process = started(path, Worker(0, workers))
        other = started(path, Worker(1, workers)) if workers > 1 and not killed else None
        # Every second one is killed while it starts.
        killed += kill(process, path, committed(path) + killed % 2, moments)
        if other is not None:
            other.join()
            assert other.exitcode == 0
        if path.exists():
            assert tree(path) == unbroken
            shutil.rmtree(path)
    for number in range(workers):
        process = started(path, Worker(number, workers))
        process.join()
        assert process.exitcode == 0
    assert tree(path) == unbroken
    assert entries(tmp_path) == ["out.zarr"]
    assert open_store(path).labels == [""] * IMAGES


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_everybody_writes(tmp_path, monkeypatch, number):
    """As on some network file systems; also where a lock's file was left by a kill."""
    fcntl = pytest.importorskip("fcntl")

    def refused(file, operation):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refused)
    locks = tmp_path / "out.zarr.locks"
    locks.mkdir()
    (locks / "writer").write_text("")
    for _ in range(2):
        with write_lock(tmp_path / "out.zarr"), publish_lock(tmp_path / "out.zarr"):
            pass
