"""Whoever reads a store's row groups, the report is the same, and a row group that ends its worker is in it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from engine_tasks import Backwards, die_once
from hvae_codec.engine.engine import Engine
from hvae_codec.engine.executor_engine import ExecutorEngine
from hvae_codec.engine.outcomes import Outcome
from hvae_codec.engine.tally import Tally
from hvae_codec.engine.where import engine_on
from hvae_codec.errors import EngineError, StoreError, UsageError
from hvae_codec.storage.location import location_of, seen_from
from hvae_codec.store.reader import Store, open_damaged
from hvae_codec.verification import row_group_check
from hvae_codec.verification.inspection import Inspection
from hvae_codec.verification.verify import VerifyReport, verify
from stores import make_spec, make_store

IMAGES = 30  # in 8 row groups


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("whole") / "out.zarr", make_spec(IMAGES, row_group_size=4)).path


@pytest.fixture
def damaged(whole, tmp_path, monkeypatch) -> Path:
    """A store with something wrong in most row groups, named as in a command."""
    path = Path(shutil.copytree(whole, tmp_path / "out.zarr"))
    (path / "z4/c/0/0/0/0").unlink()
    flip(path / "z16/c/1/0/0/0")
    (path / "z1/c/2/0/0/0").write_bytes(b"torn")
    (path / "committed/c/3").unlink()
    (path / "committed/c/4").write_bytes(b"torn")
    shutil.copy(path / "z4/c/6/0/0/0", path / "z4/c/5/0/0/0")
    shutil.rmtree(path / "z16/c/7/0/0")
    (path / "z16/c/7/0/0/0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return Path("out.zarr")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


def lines(report: VerifyReport) -> list[tuple]:
    plain = dataclasses.asdict(report)
    return [
        plain.pop("path"),
        *([str(value) if isinstance(value, range) else value for value in d.values()] for d in plain.pop("damages")),
        *plain.items(),
    ]


@pytest.fixture(params=["processes", "threads", "dask"])
def engine(request) -> Iterator[Engine]:
    if request.param == "threads":
        with ThreadPoolExecutor(3) as pool:
            yield ExecutorEngine(pool)
        return
    with engine_on({"processes": "local:2", "dask": "dask:2"}[request.param]) as found:
        yield found


@pytest.mark.slow
def test_the_report_is_that_of_one_process(damaged, engine):
    expected = verify(damaged)
    assert expected.damaged_row_groups == [0, 1, 2, 3, 4, 5, 7]
    seen: list[tuple[int, int]] = []
    report = verify(damaged, engine=engine, progress=lambda done, total: seen.append((done, total)))
    assert lines(report) == lines(expected)
    assert (len(seen), seen[-1]) == (8, (IMAGES, IMAGES))


def test_an_executor_will_do(damaged):
    with ThreadPoolExecutor(2) as pool:
        assert lines(verify(damaged, executor=pool)) == lines(verify(damaged))
        assert pool.submit(int).result() == 0  # it stays open
        with pytest.raises(UsageError, match="leave one of them out"):
            verify(damaged, engine=Backwards(), executor=pool)


def test_tasks_are_small_and_end_in_any_order(damaged):
    engine = Backwards()
    assert lines(verify(damaged, engine=engine)) == lines(verify(damaged))
    assert len(engine.sizes) == 8
    assert max(engine.sizes) < 2_000


def test_a_process_opens_a_store_once_and_never_its_names(damaged, monkeypatch):
    opened, expected = [], lines(verify(damaged))
    inspection = Inspection(open_damaged(damaged))
    expected = row_group_check.check_row_groups(inspection)

    def open_there(path):
        opened.append(path)
        return open_damaged(path)

    monkeypatch.setattr(row_group_check, "open_damaged", open_there)
    monkeypatch.setattr(Store, "_texts", lambda *_: pytest.fail("names were read"))
    assert row_group_check.check_row_groups(inspection, engine=Backwards()) == expected
    assert len(opened) == 1


class EndsItsWorkers(Backwards):
    """As an engine on which one row group ends each process that it is given to."""

    def run(self, work, items, **options):
        for outcome in super().run(work, items, **options):
            lost = EngineError("row group 6 ended its worker three times (signal 9); look at its data")
            yield Outcome(outcome.number, outcome.item, error=lost) if outcome.number == 6 else outcome


def test_a_row_group_that_ends_its_workers_is_named(whole):
    report = verify(whole, engine=EndsItsWorkers())
    (damage,) = report.damages
    assert (damage.file, list(damage.images), damage.row_group) == ("row group 6", [*range(24, 28)], None)
    assert "ended its worker three times (signal 9)" in damage.problem
    assert len(damage.names) == 3


def test_another_folder_is_seen_by_the_same_path(damaged, tmp_path, monkeypatch):
    expected, here = lines(verify(damaged)), os.getcwd()
    (tmp_path / "elsewhere").mkdir()

    class Elsewhere(Backwards):
        def run(self, work, items, **options):
            items = [*items]
            os.chdir("elsewhere")
            yield from super().run(work, items, **options)
            os.chdir(here)

    monkeypatch.chdir(tmp_path)
    assert [line for line in lines(verify(damaged, engine=Elsewhere())) if "Is a directory" not in str(line)] == [
        line for line in expected if "Is a directory" not in str(line)
    ]
    assert seen_from("/elsewhere", location_of("out.zarr")) == Path("/elsewhere/out.zarr")


@pytest.mark.parametrize("change", ["gone", "another"])
def test_a_worker_that_does_not_see_the_store_ends_all(damaged, whole, change):
    class Elsewhere(Backwards):
        def run(self, work, items, **options):
            items = [*items]
            shutil.rmtree(damaged)
            if change == "another":
                make_store(damaged, make_spec(12))
            yield from super().run(work, items, **options)

    message = {"gone": "there is no store", "another": "finds another store"}[change]
    with pytest.raises(StoreError, match=rf"worker on {socket.gethostname()} .*{message}"):
        verify(damaged, engine=Elsewhere())


@pytest.mark.slow
def test_a_killed_worker_does_not_show(damaged, tmp_path):
    expected, tally = lines(verify(damaged)), Tally()
    with engine_on("local:2", initializer=partial(die_once, tmp_path / "died")) as engine:
        report = verify(damaged, engine=engine, tally=tally)
    assert lines(report) == expected
    assert (tally.done, tally.retries) == (8, 1)
