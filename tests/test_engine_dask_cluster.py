"""Tasks on Dask: the same results, culprits named, and one sentence if the cluster cannot be used."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from functools import partial

import pytest
from distributed import Client

from engine_tasks import (
    complain,
    ends_worker,
    pid_and_environment,
    programming_error,
    raise_model_error,
    set_mark,
    slow_square,
    square,
    square_or_error,
    write_pid_once,
)
from hvae_codec.engine import dask_cluster
from hvae_codec.engine.executor_engine import ExecutorEngine
from hvae_codec.engine.tally import Tally
from hvae_codec.engine.where import engine_on
from hvae_codec.errors import DataError, EngineError, ModelError, UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address():
    said = []
    with dask_cluster.local_cluster(2, said.append) as address:
        assert "dashboard: http://127.0.0.1" in said[0]
        yield address


@pytest.fixture
def engine(address):
    with engine_on(address) as engine:
        yield engine


@pytest.fixture
def client(address):
    with Client(address, set_as_default=False) as client:
        yield client


def test_results_are_those_of_a_loop(engine):
    tally = Tally()
    assert sorted(o.get() for o in engine.run(slow_square, range(20), tally=tally)) == [n * n for n in range(20)]
    assert list(engine.map(slow_square, range(20))) == [n * n for n in range(20)]
    assert str(tally) == "2 workers"


def test_an_executor_of_the_users_own(client):
    engine = ExecutorEngine(client.get_executor(pure=False))
    assert engine.window == 4
    assert sorted(outcome.get() for outcome in engine.run(square, range(6))) == [n * n for n in range(6)]


def test_errors_of_items_and_of_programs(engine):
    errors = {o.item: o.error for o in engine.run(square_or_error, range(8)) if o.error}
    assert isinstance(errors[3], DataError)
    assert errors[5].filename == "5.png"
    assert all(error.__traceback__ is None for error in errors.values())
    with pytest.raises(ZeroDivisionError):
        list(engine.run(programming_error, range(1000)))


def test_an_item_that_ends_its_worker_is_named_and_the_rest_is_done(engine):
    tally = Tally()
    outcomes = {o.item: o for o in engine.run(ends_worker, range(20), name="row group {}".format, tally=tally)}
    assert "row group 7 ended its worker three times" in str(outcomes.pop(7).error)
    assert {n: outcome.get() for n, outcome in outcomes.items()} == {n: n * n for n in range(20) if n != 7}
    assert tally.failed == 1


def test_a_worker_that_is_killed_does_its_task_again(engine, tmp_path):
    def kill() -> None:
        while not (mark.exists() and mark.read_text()):
            time.sleep(0.01)
        os.kill(int(mark.read_text()), signal.SIGKILL)

    mark = tmp_path / "0"
    killing = threading.Thread(target=kill)
    killing.start()
    (outcome,) = engine.run(write_pid_once, [mark])
    killing.join()
    assert outcome.attempts == 2
    assert outcome.get() != int(mark.read_text())


def test_a_worker_that_is_stopped_and_continued_does_its_task_once(engine):
    pid = next(iter(engine.map(pid_and_environment, ["HOME"])))[0]
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (pid, signal.SIGCONT)).start()
    outcomes = list(engine.run(slow_square, range(10)))
    assert sorted(outcome.get() for outcome in outcomes) == [n * n for n in range(10)]
    assert {outcome.attempts for outcome in outcomes} == {1}


def test_workers_are_prepared_before_their_first_task(address):
    with engine_on(address, initializer=partial(set_mark, "prepared")) as engine:
        answers = [outcome.get() for outcome in engine.run(pid_and_environment, ["ENGINE_MARK"] * 8)]
    assert {mark for _, mark in answers} == {"prepared"}
    with pytest.raises(ModelError, match="differs"), engine_on(address, initializer=raise_model_error):
        pass


def test_workers_that_cannot_take_part(address, monkeypatch):
    with pytest.raises(EngineError, match=r"worker tcp://.* cannot take part: the folder /data is missing"):
        open_and_close(address, check=complain)
    monkeypatch.setattr("hvae_codec.engine.handshake.package_version", lambda: "9.9")
    with pytest.raises(EngineError, match=r"worker tcp://.* has version .* this process 9\.9"):
        open_and_close(address)


def test_an_address_of_something_else(client, monkeypatch):
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 0.3)
    worker = next(iter(client.nthreads()))
    with pytest.raises(EngineError, match="is a Dask worker; give the address of its scheduler"):
        open_and_close(worker)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(EngineError, match=r"no Dask scheduler answers .* within 0\.3 s"):
            open_and_close(f"tcp://127.0.0.1:{port}")
        with pytest.raises(EngineError, match=r"no Dask scheduler answers .*distributed\.comm\.tls"):
            open_and_close(f"tls://127.0.0.1:{port}")
    with pytest.raises(EngineError, match="no Dask scheduler answers"):
        open_and_close(f"tcp://127.0.0.1:{port}")


def test_scheduler_files(address, tmp_path):
    path = tmp_path / "scheduler.json"
    with pytest.raises(UsageError, match=r"scheduler\.json is no scheduler file \(No such file"):
        open_and_close(str(path))
    for content in ("", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(UsageError, match="no JSON with an address"):
            open_and_close(str(path))
    path.write_text(f'{{"type": "Scheduler", "address": "{address}"}}')
    open_and_close(str(path))


def test_a_cluster_without_workers(client, address, monkeypatch):
    monkeypatch.setattr(dask_cluster, "WORKERS_SECONDS", 0.1)
    monkeypatch.setattr(Client, "nthreads", lambda _: {})
    monkeypatch.setattr(Client, "wait_for_workers", lambda *_, **__: (_ for _ in ()).throw(TimeoutError))
    said = []
    with pytest.raises(EngineError, match=r"no workers for 0\.1 s; start some with `dask worker"):
        open_and_close(address, say=said.append)
    assert "Waiting for a worker" in said[0]


def test_a_scheduler_that_is_lost(address, monkeypatch):
    """The last test: it takes the cluster away."""
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 0.5)
    with engine_on(address) as engine, Client(address, set_as_default=False) as client:
        threading.Timer(0.3, client.shutdown).start()
        with pytest.raises(EngineError, match=r"dropped its tasks: .*what is done stays"):
            list(engine.run(slow_square, range(100_000)))
        with pytest.raises(EngineError, match=r"dropped its tasks|takes no tasks"):
            list(engine.run(square, [1]))  # while the client looks for the scheduler


def open_and_close(on: str, **arguments: object) -> None:
    with engine_on(on, **arguments):
        pass
