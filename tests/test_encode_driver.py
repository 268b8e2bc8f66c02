"""One driver and workers of any kind write the store of one process, byte for byte, whatever becomes of workers."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from driver_tasks import Deaths, DyingProcesses
from hvae_codec import LatentMask, append, encode_images, kl_stats, load_model, open_images
from hvae_codec.encode import driver, in_process
from hvae_codec.encode import job as job_module
from hvae_codec.encode.driver import job_of
from hvae_codec.encode.job import RowGroupImages, encode_row_group
from hvae_codec.encode.missing import MissingRowGroups
from hvae_codec.encode.pipeline import EncodeOptions, plan_store
from hvae_codec.engine.engine import Engine
from hvae_codec.engine.executor_engine import ExecutorEngine
from hvae_codec.engine.tally import Tally
from hvae_codec.engine.where import engine_on
from hvae_codec.errors import DataError, EngineError, ModelError, StoreError, UsageError
from hvae_codec.model.checkpoint import WEIGHTS_FILE, load_weights, save_weights
from hvae_codec.model.reference import ModelReference
from hvae_codec.storage.location import location_of
from hvae_codec.store.folder_writer import FolderStoreWriter
from hvae_codec.store.row_group_writer import RowGroupWriter
from hvae_codec.verification.verify import check_written
from hvae_codec.writing import here
from hvae_codec.writing.commit import write_row_group
from hvae_codec_cli.app import main
from photos import save_png
from stores import make_spec, make_store, photo_latents, tree

IMAGES, SHARD = 44, 8
OPTIONS = EncodeOptions(batch_size=4, row_group_size=SHARD, evaluate=True, seed=3, verify=True)
"""Six row groups, the last of four images."""


@pytest.fixture(scope="module")
def folder(cut_patches, tmp_path_factory) -> Path:
    """Images as files, two of which are of another size."""
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(cut_patches(IMAGES, 20)):
        save_png(
            folder / ("cats" if i % 3 else "dögs") / f"{i:03d}.png", image if i in (9, 30) else image[:, 2:18, 2:18]
        )
    return folder


@pytest.fixture(scope="module")
def encode(tiny_model, folder):
    """Encodes the folder into a store."""
    stats = kl_stats(tiny_model, open_images(folder, size=16, channels=3).evenly(30))
    common = {"mask": LatentMask.from_keep(stats, 0.5), "stats": stats, "options": OPTIONS}

    def run(path: Path, **more):
        given = common | more
        return encode_images(given.pop("model", tiny_model), given.pop("images", None) or opened(folder), path, **given)

    run.common = common
    return run


def opened(folder: Path):
    return open_images(folder, size=16, channels=3)


@pytest.fixture(scope="module")
def unbroken(encode, tmp_path_factory) -> dict[str, bytes]:
    """The store that this process writes alone."""
    path = tmp_path_factory.mktemp("stores") / "out.zarr"
    encode(path)
    return tree(path)


@pytest.fixture(scope="module")
def local() -> Iterator[Engine]:
    with engine_on("local:2") as engine:
        yield engine


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_threads_write_what_this_process_does(encode, unbroken, folder, tmp_path):
    images, tally, seen = opened(folder), Tally(), []
    with ThreadPoolExecutor(2) as pool:
        arguments = {"executor": pool, "tally": tally, "progress": lambda *counts: seen.append(counts)}
        store = encode(tmp_path / "out.zarr", images=images, **arguments)
    assert tree(store.path) == unbroken
    assert entries(tmp_path) == ["out.zarr"]
    assert seen[-1] == (IMAGES, IMAGES)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (tally.done, tally.failed, tally.retries) == (6, 0, 0)
    assert images.resized == 2  # what workers saw is known here
    np.testing.assert_array_equal(images.checksums(range(IMAGES)), store.per_image("checksum"))


@pytest.mark.slow
def test_processes_write_what_this_process_does(encode, unbroken, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # workers have another working folder, and find a relative path all the same
    assert tree(encode(Path("out.zarr"), engine=local).path) == unbroken


@pytest.mark.slow
def test_dask_writes_what_this_process_does_also_if_a_worker_is_killed(encode, unbroken, tmp_path):
    from distributed import Client, LocalCluster

    settings = {"threads_per_worker": 1, "processes": True, "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    with LocalCluster(n_workers=2, **settings) as cluster, Client(cluster) as client:
        pids = list(client.run(os.getpid).values())

        def kill_one(done: int, total: int) -> None:
            if pids and done >= SHARD:
                os.kill(pids.pop(), signal.SIGKILL)

        store = encode(tmp_path / "out.zarr", executor=client.get_executor(pure=False), progress=kill_one)
    assert not pids[1:]
    assert tree(store.path) == unbroken


@pytest.mark.slow
def test_workers_that_die_and_a_row_group_that_ends_all_of_them(encode, unbroken, tmp_path):
    path, notes, tally = tmp_path / "out.zarr", tmp_path / "notes", Tally()
    notes.mkdir()
    deaths = Deaths(notes, before=frozenset({1}), after=frozenset({5}), always=frozenset({2}))
    named = r"row group 2 .images 16 to 23.: row group 2 ended its worker three times .signal 9"
    with (
        DyingProcesses(deaths) as pool,
        pytest.raises(StoreError, match=rf"1 of 6 row groups .*out\.zarr\.partial stays .* {named}.*same command"),
    ):
        encode(path, executor=pool, tally=tally)
    assert (tally.done, tally.failed, tally.retries) == (5, 1, 4)
    assert sorted(p.name for p in (tmp_path / "out.zarr.partial/committed/c").iterdir()) == list("01345")
    assert tree(encode(path).path) == unbroken
    assert entries(tmp_path) == ["notes", "out.zarr"]


@pytest.mark.slow
def test_a_worker_that_is_stopped_and_continues(encode, unbroken, tmp_path):
    with DyingProcesses(Deaths(tmp_path)) as pool:
        stopped: list[int] = []

        def stop_one(done: int, total: int) -> None:
            if not stopped:
                stopped.append(next(worker._process.pid for worker in pool._workers if worker._process))
                os.kill(stopped[0], signal.SIGSTOP)
                threading.Timer(1.0, os.kill, (stopped[0], signal.SIGCONT)).start()

        store = encode(tmp_path / "out.zarr", executor=pool, progress=stop_one)
    assert stopped
    assert tree(store.path) == unbroken


@pytest.mark.slow
def test_a_broken_image_is_named_and_the_same_command_writes_the_rest(
    tiny_run, folder, unbroken, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    photos, run = Path(shutil.copytree(folder, "photos")), shutil.copytree(tiny_run, "run")  # which gets a ranking
    file = photos / "cats" / "020.png"
    sound = file.read_bytes()
    command = [
        "encode",
        "photos",
        "out.zarr",
        "--keep",
        "50%",
        "--shard",
        "8",
        "--batch-size",
        "4",
        "--evaluate",
        "none",
    ]
    command += ["--model", str(run), "--on", "local:2"]
    main_ends(command, 0)
    expected = tree(Path(shutil.move("out.zarr", "expected.zarr")))
    file.write_bytes(sound[:60] + bytes(len(sound) - 60))  # as large as it was
    capsys.readouterr()
    main_ends(command, 1)
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("hvae-codec: 1 of 6 row groups could not be written")
    assert "cats/020.png" in message
    assert message.endswith("the same command writes the rest")
    assert len([*Path("out.zarr.partial/committed/c").iterdir()]) == 5
    file.write_bytes(sound)
    main_ends(command, 0)
    assert tree(Path("out.zarr")) == expected


def main_ends(command: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert (stopped.value.code or 0) == code


def test_an_interrupted_driver_is_continued(encode, unbroken, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done >= 2 * SHARD:
            raise KeyboardInterrupt

    path = tmp_path / "out.zarr"
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(KeyboardInterrupt):
            encode(path, executor=pool, progress=interrupt)
        assert not path.exists()
        seen: list[int] = []
        encode(path, executor=pool, progress=lambda done, _: seen.append(done))
    assert seen[0] > 2 * SHARD
    assert tree(path) == unbroken


@pytest.mark.slow
def test_append_writes_what_this_process_does(tiny_model, encode, local, folder, tmp_path):
    images, paths = opened(folder), [tmp_path / "here.zarr", tmp_path / "there.zarr"]
    for path, engine in zip(paths, (None, local), strict=True):
        encode(path, images=images.subset(range(12)))
        append(tiny_model, images.subset(range(12, IMAGES)), path, batch_size=4, seed=3, engine=engine)
    assert tree(paths[0]) == tree(paths[1])


def test_append_takes_the_model_that_the_store_carries(encode, folder, tmp_path):
    """Workers need no run then."""
    images, paths = opened(folder), [tmp_path / "here.zarr", tmp_path / "there.zarr"]
    options = dataclasses.replace(OPTIONS, embed="whole")
    with ThreadPoolExecutor(2) as pool:
        for path, executor in zip(paths, (None, pool), strict=True):
            store = encode(path, images=images.subset(range(8)), options=options)
            carried = store.load_model()
            assert carried.run is None
            append(carried, images.subset(range(8, IMAGES)), path, batch_size=4, seed=3, executor=executor)
    assert tree(paths[0]) == tree(paths[1])


def test_batches_are_those_of_the_workers_devices(tiny_model, encode, tmp_path, monkeypatch):
    """A driver without a GPU has GPUs encode in the batches that these would choose."""
    jobs, real = [], driver.job_of

    def noted(*arguments):
        jobs.append(real(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "job_of", noted)
    for device in ("cpu", "cuda", "auto"):
        options = dataclasses.replace(OPTIONS, batch_size=None, row_group_size=256, device=device)
        with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
            encode(tmp_path / f"{device}.zarr", options=options, executor=pool)
    assert [(job.device, job.batch_size) for job in jobs] == [("cpu", 64), ("cuda", 256), ("auto", 64)]


# --- who cannot take part --------------------------------------------------------------------------------------------


@pytest.fixture
def missing(tiny_model, encode, folder, tmp_path) -> MissingRowGroups:
    """A store that was only created."""
    encoder, spec = plan_store(tiny_model, opened(folder), **encode.common)
    return MissingRowGroups(FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", spec), encoder)


@pytest.fixture
def job(missing, tiny_model):
    return job_of(missing, ModelReference.of(tiny_model), "cpu")


def images_of(missing: MissingRowGroups, row_group: int) -> RowGroupImages:
    return RowGroupImages(row_group, missing.encoder.source.portion(np.array(missing.images(row_group))))


def test_a_task_is_small_and_can_be_repeated(missing, job):
    assert len(pickle.dumps(partial(encode_row_group, job.encoder))) < 2_000
    images = images_of(missing, 1)
    assert len(pickle.dumps(images)) < 20_000
    for _ in range(2):
        seen = pickle.loads(pickle.dumps(partial(encode_row_group, job.encoder)))(pickle.loads(pickle.dumps(images)))
    assert seen.is_checked.all()
    assert missing.writer.pending() == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("embed", ["", "whole"])
def test_workers_read_mask_and_steps_from_the_store(tiny_model, encode, folder, tmp_path, embed):
    """A task says nothing of single positions, of which there may be a million."""
    given = encode.common | {"options": dataclasses.replace(OPTIONS, embed=embed)}
    given["mask"] = LatentMask.from_keep(given["stats"], 0.3, granularity="position")
    encoder, spec = plan_store(tiny_model, opened(folder), **given)
    store = FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", spec)
    job = job_of(MissingRowGroups(store, encoder), ModelReference.of(tiny_model), "cpu")
    assert len(pickle.dumps(job.encoder)) < 2_000
    made = pickle.loads(pickle.dumps(job.encoder)).make()
    coder, layout = made.batch_coder.coder, made.writer.layout
    assert coder.mask.keeps_the_same(encoder.coder.mask)
    assert coder.codec == encoder.coder.codec
    assert [*coder.steps] == [*encoder.coder.steps]
    for resolution, steps in encoder.coder.steps.items():
        np.testing.assert_array_equal(coder.steps[resolution], steps)
    assert layout.columns.agree_with(spec.columns)
    assert sorted(layout.of_row_groups) == sorted(spec.of_row_groups)
    same = {"columns": spec.columns, "per_image": spec.per_image}
    assert dataclasses.replace(layout, **same) == spec.layout
    assert layout.schema == spec.schema


def test_threads_write_single_positions_as_this_process_does(encode, folder, tmp_path):
    mask = LatentMask.from_keep(encode.common["stats"], 0.3, granularity="position")
    given = {"mask": mask, "images": opened(folder).subset(range(12))}
    alone = encode(tmp_path / "alone.zarr", **given)
    with ThreadPoolExecutor(2) as pool:
        assert tree(encode(tmp_path / "out.zarr", **given, executor=pool).path) == tree(alone.path)


def test_a_worker_that_sees_another_store_or_a_damaged_one(missing, job):
    document = missing.writer.unfinished / "zarr.json"
    whole = document.read_bytes()
    other = dataclasses.replace(job.store, fingerprint="0" * 64)
    with pytest.raises(StoreError, match=r"out\.zarr\.partial was removed or replaced"):
        other.open()
    document.write_bytes(whole.replace(b'"shard": 8', b'"shard": 9'))
    with pytest.raises(StoreError, match=r"worker on .*zarr\.json does not match its checksum.* encode again"):
        encode_row_group(job.encoder, images_of(missing, 0))
    document.write_bytes(whole)
    steps = next(missing.writer.unfinished.glob("step*/c/0"))
    steps.write_bytes(steps.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match=r"worker on .* array step\d+ is damaged"):
        encode_row_group(job.encoder, images_of(missing, 0))


def test_a_worker_with_another_version_of_the_package(missing, job):
    with pytest.raises(EngineError, match=r"worker on .* has version .*0\.0\.1 began"):
        encode_row_group(dataclasses.replace(job, version="0.0.1").encoder, images_of(missing, 0))


def test_a_worker_with_another_model(missing, job, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(run / "weights", ignore_errors=True)
    weights = load_weights(run / WEIGHTS_FILE)
    save_weights(run / WEIGHTS_FILE, {name: tensor + 1 for name, tensor in weights.items()})
    other = dataclasses.replace(job, model=ModelReference(run, job.model.hash))
    with pytest.raises(ModelError, match=r"worker on .* model of .*run is .* here.* the same files"):
        encode_row_group(other.encoder, images_of(missing, 0))
    nowhere = dataclasses.replace(job, model=ModelReference(tmp_path / "nowhere", job.model.hash))
    with pytest.raises(ModelError, match=r"worker on .* no run at .*nowhere"):
        encode_row_group(nowhere.encoder, images_of(missing, 0))


def test_a_worker_that_does_not_see_the_output(missing, job):
    missing.writer.unfinished.rename(missing.writer.unfinished.with_name("elsewhere"))
    with pytest.raises(EngineError, match=r"worker on .* does not see .*out\.zarr\.partial.*in common"):
        encode_row_group(job.encoder, images_of(missing, 0))
    assert not missing.writer.unfinished.exists()


def test_a_wrong_worker_stops_the_whole(encode, monkeypatch, tmp_path):
    monkeypatch.setattr(here, "package_version", lambda: "0.0.1")
    with ThreadPoolExecutor(2) as pool, pytest.raises(EngineError, match="the worker on"):
        encode(tmp_path / "out.zarr", executor=pool)
    assert entries(tmp_path) == ["out.zarr.partial"]


def test_what_cannot_be_given_to_workers(encode, tiny_run, tmp_path):
    pool = ThreadPoolExecutor(1)
    model = load_model(tiny_run)
    model.run = None
    with pytest.raises(UsageError, match="the model is of no run"):
        encode(tmp_path / "out.zarr", executor=pool, model=model)
    with pytest.raises(UsageError, match="both an engine and an executor"):
        encode(tmp_path / "out.zarr", executor=pool, engine=ExecutorEngine(pool))
    pool.shutdown()
    with pytest.raises(EngineError, match=r"takes no tasks .*open"):
        encode(tmp_path / "out.zarr", executor=pool)


def test_torchrun_is_answered_once(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, said in (("0", "torchrun, which started it 3 times; give --on local:3"), ("2", "")):
        monkeypatch.setenv("RANK", rank)
        for command in (["encode", "data", "out.zarr"], ["append", "data", "out.zarr"]):
            main_ends(command, 2 if said else 0)  # at the first error torchrun ends the others, said or not
            error = capsys.readouterr().err
            assert said in error
            assert bool(said) == bool(error)


# --- two writers of one row group ------------------------------------------------------------------------------------


@pytest.fixture
def other_numbers() -> dict[int, np.ndarray]:
    return {r: np.where(numbers > 0, numbers - 1, numbers + 1) for r, numbers in first_rows().items()}


def first_rows() -> dict[int, np.ndarray]:
    return {r: numbers[:8] for r, numbers in photo_latents(make_spec()).items()}


def test_who_comes_second_with_the_same_numbers_changes_nothing(tmp_path):
    store = FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", make_spec())
    writer = pickle.loads(pickle.dumps(store.row_group_writer))
    assert len(pickle.dumps(writer)) < 4_000
    assert writer.write(0, first_rows())
    before = tree(tmp_path)
    assert not writer.write(0, first_rows())
    write_row_group(writer, 0, first_rows(), {})
    assert tree(tmp_path) == before


def test_who_comes_second_with_other_numbers_leaves_what_its_digest_is_of(tmp_path, other_numbers):
    """As workers of other processors may have them."""
    writer = FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", make_spec()).row_group_writer
    write_row_group(writer, 0, first_rows(), {})
    before = tree(tmp_path)
    assert not writer.write(0, other_numbers)
    write_row_group(writer, 0, other_numbers, {})
    assert tree(tmp_path) == before


def test_who_is_overtaken_in_the_middle_leaves_what_its_digest_is_of(tmp_path, other_numbers, monkeypatch):
    """Both found the row group uncommitted; one commits while the other one writes."""
    writer = FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", make_spec()).row_group_writer
    real, first = RowGroupWriter.write_per_image, []

    def overtaken(self, row_group, per_image):
        real(self, row_group, per_image)
        if not first:
            first.append(None)
            write_row_group(writer, 0, first_rows(), {})
            first.append(writer.digest(0))

    monkeypatch.setattr(RowGroupWriter, "write_per_image", overtaken)
    assert not writer.write(0, other_numbers)  # a worker that was killed at that moment
    with pytest.raises(StoreError, match="not read back as"):
        check_written(writer, 0)
    write_row_group(writer, 0, other_numbers, {})
    check_written(writer, 0)
    assert writer.digest(0) != first[1]


def test_who_comes_after_publishing_takes_no_digest_away(tmp_path):
    """In a bucket, the published store has the objects of the unfinished one."""
    writer = make_store(tmp_path / "out.zarr")
    late = RowGroupWriter(
        location_of(writer.path), location_of(tmp_path / "unfinished.json"), "of that", make_spec().layout
    )
    before = tree(tmp_path)
    with pytest.raises(StoreError, match="removed or replaced"):
        late.uncommit(0)
    assert tree(tmp_path) == before


def test_a_digest_that_vanishes_before_publishing_is_named(encode, tmp_path):
    """A worker that was only thought dead takes it away to write its row group anew."""
    path = tmp_path / "out.zarr"

    def lose_one(done: int, total: int) -> None:
        if done == total:
            (tmp_path / "out.zarr.partial/committed/c/2").unlink()

    with ThreadPoolExecutor(1) as pool, pytest.raises(StoreError, match=r"1 of 6 row groups .*again"):
        encode(path, executor=pool, progress=lose_one)
    encode(path)


def overtake(module, monkeypatch) -> list[bool]:
    """Let another worker write other numbers after the digest of row group 3, the first time."""
    real, once = module.write_row_group, [True]

    def overtaken(writer, row_group, stored, *more, **options):
        real(writer, row_group, stored, *more, **options)
        if row_group == 3 and once:
            once.clear()
            key = next(p for p in (writer.unfinished / "z16" / "c" / "3").rglob("*") if p.is_file())
            shutil.copy(next(p for p in (writer.unfinished / "z16" / "c" / "0").rglob("*") if p.is_file()), key)

    monkeypatch.setattr(module, "write_row_group", overtaken)
    return once


@pytest.fixture
def overtaken(monkeypatch) -> list[bool]:
    return overtake(job_module, monkeypatch)


def test_a_row_group_that_two_workers_wrote_differently_is_found_before_publishing(encode, tmp_path, overtaken):
    """The driver of a run that continues reads back all that it had written."""
    path, options = tmp_path / "out.zarr", dataclasses.replace(OPTIONS, verify=False)
    expected = tree(encode(tmp_path / "expected.zarr", options=options).path)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            encode(path, options=options, executor=pool, progress=interrupted_after_the_first)
        encode(path, options=options, executor=pool)
    assert not overtaken
    assert tree(path) == expected


def test_a_run_that_continues_in_this_process_reads_back_what_it_wrote(encode, tmp_path, monkeypatch):
    """Workers of the driver that was killed may be writing yet."""
    path, options, seen = tmp_path / "out.zarr", dataclasses.replace(OPTIONS, verify=False), []
    expected = tree(encode(tmp_path / "expected.zarr", options=options).path)
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        encode(path, options=options, executor=pool, progress=interrupted_after_the_first)
    once = overtake(in_process, monkeypatch)
    encode(path, options=options, progress=lambda *counts: seen.append(counts))
    assert not once
    assert seen[-1] == (IMAGES, IMAGES)
    assert tree(path) == expected


def test_an_executor_that_may_send_row_groups_to_two_workers(encode, tmp_path, overtaken):
    options = dataclasses.replace(OPTIONS, verify=False)
    expected = tree(encode(tmp_path / "expected.zarr", options=options).path)
    with ThreadPoolExecutor(1) as pool:
        engine = ExecutorEngine(pool, may_repeat=True)
        assert tree(encode(tmp_path / "out.zarr", options=options, engine=engine).path) == expected
    assert not overtaken


def interrupted_after_the_first(done: int, total: int) -> None:
    if done:
        time.sleep(0.3)  # the next ones are written meanwhile
        raise KeyboardInterrupt


def test_a_marker_that_a_power_cut_tore_is_replaced(tmp_path):
    writer = FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", make_spec()).row_group_writer
    torn = writer.unfinished / "committed" / "c" / "0"
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_bytes(b"")
    assert writer.write(0, first_rows())
    check_written(writer, 0)


def test_who_comes_after_the_store_was_published_leaves_nothing(tmp_path):
    path = tmp_path / "out.zarr"
    writer = FolderStoreWriter.create_or_resume(path, make_spec()).row_group_writer
    before = tree(make_store(path).path)
    with pytest.raises(StoreError, match="removed or replaced while it was written"):
        writer.write(0, first_rows())
    with pytest.raises(FileNotFoundError):
        writer.unfinished.write("z16/c/0/0/0/0", b"late")
    assert entries(tmp_path) == ["out.zarr"]
    assert tree(path) == before


def test_one_of_many_processes_makes_a_marker(tmp_path):
    writer = FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", make_spec()).row_group_writer
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda digest: writer.commit(1, digest), range(1, 33)))
    assert sum(made) == 1
    assert writer.digest(1) == 1 + made.index(True)
    assert [p.name for p in (writer.unfinished / "committed" / "c").iterdir()] == ["1"]


def test_data_errors_are_those_of_one_row_group():
    """What the driver relies on: other errors stop it."""
    from hvae_codec.engine.outcomes import is_of_one_item

    assert is_of_one_item(DataError("x.png is broken"))
    assert not any(map(is_of_one_item, (ModelError(""), StoreError(""), UsageError(""), EngineError(""))))
