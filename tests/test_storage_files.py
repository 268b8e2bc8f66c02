"""Files and folders that several processes write, or that a killed one has left."""

import multiprocessing
import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from hvae_codec.errors import DataError
from hvae_codec.storage.files import lock_file, write_atomically
from hvae_codec.storage.folder import FolderLocation
from hvae_codec.storage.locks import ProcessLock
from hvae_codec.storage.new_folder import MARKER, finish_folder, new_folder

ROUNDS, BYTES = 25, 200_000


def _write(path: Path, content: bytes) -> None:
    for _ in range(ROUNDS):
        write_atomically(path, content)


@pytest.mark.slow
def test_processes_that_write_one_file_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "samples.png"
    write_atomically(path, bytes(BYTES))
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(path, bytes([b]) * BYTES)) for b in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        assert len(content) == BYTES
        assert len(set(content)) == 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["samples.png"]


def test_what_a_kill_has_left_of_a_file_is_reused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    (tmp_path / "table.csv.partial").write_bytes(b"half of a lon")
    lock_file(path).touch()
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def _die_before_it_is_named(folder: Path, method: str) -> None:
    os.link = Path.replace = lambda *_: os._exit(9)  # type: ignore[assignment]
    getattr(FolderLocation(folder), method)("z16/c/7/0/0/0", b"a shard")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["write", "create"])
def test_what_killed_writers_have_left_is_found_without_a_look_at_every_folder(processes, tmp_path, method) -> None:
    (tmp_path / "z16").mkdir()
    killed = processes.Process(target=_die_before_it_is_named, args=(tmp_path, method))
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    (left,) = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert left.parent == tmp_path / "z16"
    other = FolderLocation(tmp_path)
    other.remove_partial_files()
    assert not left.exists()
    other.write("z16/c/7/0/0/0", b"a shard")
    assert not other.create("z16/c/7/0/0/0", b"another")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / "z16/c/7/0/0/0"]


def test_no_folder_is_made_for_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "table.csv", b"")
    assert not list(tmp_path.iterdir())


def test_a_new_folder_removes_what_a_kill_has_left(tmp_path: Path) -> None:
    (tmp_path / "images.partial").mkdir()
    (tmp_path / "images.partial" / "0.png").touch()
    (tmp_path / "images.partial" / MARKER).write_text("null")
    with new_folder(tmp_path / "images") as partial:
        (partial / "1.png").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["images", "images/1.png"]


@pytest.mark.parametrize("job", [None, {"store": "a"}])
def test_a_new_folder_after_an_error(tmp_path: Path, job: dict[str, str] | None) -> None:
    kept = job is not None

    def interrupted() -> None:
        with new_folder(tmp_path / "images", job) as partial:
            (partial / "0.png").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "images.partial" / "0.png").exists() == kept
    with new_folder(tmp_path / "images", job) as partial:
        assert (partial / "0.png").exists() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_folder_that_is_not_empty_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "mine").mkdir(parents=True)
    with pytest.raises(DataError, match=r"^images exists and is not empty"), new_folder(Path("images")):
        pass


def test_two_processes_do_not_make_one_folder(tmp_path: Path) -> None:
    other = ProcessLock(lock_file(tmp_path / "images"))
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.append(other.acquire()))
    thread.start()
    thread.join()
    assert taken == [True]
    with pytest.raises(DataError, match="images is being written by another process"), new_folder(tmp_path / "images"):
        pass
    other.remove()


def test_another_job_begins_anew(tmp_path: Path) -> None:
    for job in ({"store": "a"}, {"store": "b"}):
        stack = ExitStack()
        partial = stack.enter_context(new_folder(tmp_path / "images", job))
        assert [path.name for path in partial.iterdir()] == [MARKER]
        (partial / "0.png").touch()
        assert not stack.__exit__(OSError, OSError("the disk is full"), None)


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    mine = tmp_path / "images.partial" / "mine.txt"
    mine.parent.mkdir()
    mine.touch()
    for job in (None, {"store": "a"}):
        with pytest.raises(DataError, match=r"images.partial is in the way"), new_folder(tmp_path / "images", job):
            pass
    assert mine.exists()


def test_a_kill_after_the_renaming_is_made_good(tmp_path: Path) -> None:
    job = {"store": "a"}
    with new_folder(tmp_path / "images", job) as partial:
        (partial / "0.png").touch()
    (tmp_path / "images" / MARKER).write_text('{"store": "a"}')
    assert not finish_folder(tmp_path / "images", {"store": "b"})
    assert finish_folder(tmp_path / "images", job)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["0.png"]


def test_a_link_to_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "images").symlink_to(tmp_path / "disk")
    with new_folder(tmp_path / "images") as partial:
        (partial / "0.png").touch()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["0.png"]
