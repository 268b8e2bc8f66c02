"""Processes of this machine: each dies alone, all end with the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import pytest

from engine_tasks import (
    always_ends_worker,
    ends_worker,
    pid_and_environment,
    prints_and_reads,
    programming_error,
    raise_model_error,
    set_mark,
    slow_square,
    square,
    square_or_error,
    unpicklable_error,
    write_pid_once,
    wrong_model,
)
from hvae_codec.engine.local_processes import (
    LocalProcesses,
    available_cores,
    local_engine,
    one_per_gpu,
    shared_cores,
    visible_gpus,
)
from hvae_codec.engine.outcomes import WorkerEnded
from hvae_codec.engine.tally import Tally
from hvae_codec.errors import DataError, EngineError, ModelError, UsageError


@pytest.fixture(scope="module")
def engine():
    with local_engine(shared_cores(2)) as engine:
        yield engine


def is_running(pid: int) -> bool:
    """Whether a process is there, and is no zombie."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_results_are_those_of_a_loop(engine):
    tally = Tally()
    outcomes = engine.run(slow_square, range(20), tally=tally)
    assert sorted(outcome.get() for outcome in outcomes) == [n * n for n in range(20)]
    assert list(engine.map(slow_square, range(20))) == [n * n for n in range(20)]
    assert str(tally) == "2 workers"


def test_two_processes_work_at_once_with_their_share_of_the_cores(engine):
    answers = [outcome.get() for outcome in engine.run(pid_and_environment, ["OMP_NUM_THREADS"] * 20)]
    pids = {pid for pid, _ in answers}
    assert len(pids) == 2
    assert os.getpid() not in pids
    expected = os.environ.get("OMP_NUM_THREADS", str(max(1, available_cores() // 2)))
    assert {threads for _, threads in answers} == {expected}


def test_cores_are_shared_unless_threads_were_chosen(monkeypatch):
    monkeypatch.setattr("hvae_codec.engine.local_processes.available_cores", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [each["OMP_NUM_THREADS"] for each in shared_cores(2)] == ["4", "4"]
    assert shared_cores(20)[19]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert shared_cores(2)[0]["OMP_NUM_THREADS"] == "3"


def test_errors_of_items_and_of_programs(engine):
    errors = {o.item: o.error for o in engine.run(square_or_error, range(8)) if o.error}
    assert isinstance(errors[3], DataError)
    assert (errors[5].errno, errors[5].filename) == (13, "5.png")
    assert not hasattr(errors[3], "__notes__")
    with pytest.raises(ModelError, match="the model differs") as stopped:
        list(engine.run(wrong_model, range(100)))
    assert not hasattr(stopped.value, "__notes__")
    with pytest.raises(ZeroDivisionError) as bug:
        list(engine.run(programming_error, range(100)))
    assert "in programming_error" in bug.value.__notes__[0]
    with pytest.raises(RuntimeError, match="UnpicklableError: first"):
        list(engine.run(unpicklable_error, range(100)))


def test_what_cannot_be_sent_is_a_programming_error(engine):
    with pytest.raises(Exception, match="pickle"):
        list(engine.run(lambda item: item, range(3)))
    with pytest.raises(TypeError, match="pickle"):
        list(engine.run(square, [threading.Lock()]))
    assert list(engine.map(square, [3])) == [9]


def test_tasks_may_print_and_read(capfd):
    with local_engine(shared_cores(1)) as engine:
        assert list(engine.map(prints_and_reads, [1, 2])) == ["", ""]
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "printed 1\n" in shown.err


def test_an_item_that_ends_its_worker_is_named_and_the_rest_is_done():
    tally = Tally()
    with local_engine(shared_cores(2)) as engine:
        outcomes = {o.item: o for o in engine.run(ends_worker, range(20), name="row group {}".format, tally=tally)}
    culprit = outcomes.pop(7)
    assert isinstance(culprit.error, EngineError)
    assert "row group 7 ended its worker three times (signal 9" in str(culprit.error)
    assert {n: o.get() for n, o in outcomes.items()} == {n: n * n for n in range(20) if n != 7}
    assert {outcome.attempts for outcome in outcomes.values()} == {1}  # no neighbour was taken along
    assert (tally.done, tally.failed, tally.retries) == (19, 1, 2)


def test_a_worker_that_is_killed_does_its_task_again(tmp_path):
    marks = [tmp_path / "0", tmp_path / "1"]
    with local_engine(shared_cores(2)) as engine:

        def kill() -> None:
            wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks))
            os.kill(int(marks[0].read_text()), signal.SIGKILL)
            (tmp_path / "go").touch()

        killing = threading.Thread(target=kill)
        killing.start()
        outcomes = {outcome.item: outcome for outcome in engine.run(write_pid_once, marks)}
        killing.join()
    assert [outcomes[mark].attempts for mark in marks] == [2, 1]
    assert outcomes[marks[0]].get() != int(marks[0].read_text())


def test_a_worker_that_is_stopped_and_continued_does_its_task_once():
    with local_engine(shared_cores(2)) as engine:
        pid = next(iter(engine.map(pid_and_environment, ["HOME"])))[0]
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()
        begun = time.monotonic()
        outcomes = list(engine.run(slow_square, range(10)))
        assert time.monotonic() - begun > 0.25
    assert sorted(outcome.get() for outcome in outcomes) == [n * n for n in range(10)]
    assert {outcome.attempts for outcome in outcomes} == {1}


def test_processes_are_prepared_once():
    with local_engine(shared_cores(2), partial(set_mark, "prepared")) as engine:
        answers = [outcome.get() for outcome in engine.run(pid_and_environment, ["ENGINE_MARK"] * 4)]
    assert {mark for _, mark in answers} == {"prepared"}
    with local_engine(shared_cores(1), raise_model_error) as engine, pytest.raises(ModelError, match="differs"):
        list(engine.run(square, range(10)))


def test_killing_ends_tasks_in_the_middle(tmp_path):
    pool = LocalProcesses(shared_cores(2))
    marks = [tmp_path / "0", tmp_path / "1"]
    futures = [pool.submit(write_pid_once, mark) for mark in (*marks, tmp_path / "2")]
    wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks))
    pool.kill()
    assert not any(is_running(int(mark.read_text())) for mark in marks)
    assert [type(future.exception()) for future in futures[:2]] == [WorkerEnded] * 2
    assert futures[2].cancelled()
    pool.kill()


def test_an_executor_of_its_own():
    pool = LocalProcesses(shared_cores(1))
    futures = [pool.submit(slow_square, n) for n in range(5)]
    dies = pool.submit(always_ends_worker, 0)
    after = pool.submit(square, 9)
    pool.shutdown()
    assert [future.result() for future in futures] == [n * n for n in range(5)]
    with pytest.raises(WorkerEnded, match="exit code 3"):
        dies.result()
    assert after.result() == 81
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(square, 1)


def test_shutting_down_can_drop_what_waits():
    pool = LocalProcesses(shared_cores(1))
    futures = [pool.submit(slow_square, 2) for _ in range(50)]
    futures[0].result()
    pool.shutdown(cancel_futures=True)
    assert futures[-1].cancelled()
    with pytest.raises(CancelledError):
        futures[-1].result()


def test_no_process_can_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with local_engine(shared_cores(2)) as engine, pytest.raises(EngineError, match="no process can be started"):
        list(engine.run(square, range(10)))


def test_gpus_are_those_that_may_be_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-5c")
    assert visible_gpus() == ["2", "GPU-5c"]
    environments = one_per_gpu()
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["2", "GPU-5c"]
    with local_engine(environments) as engine:
        seen = {outcome.get()[1] for outcome in engine.run(pid_and_environment, ["CUDA_VISIBLE_DEVICES"] * 20)}
    assert seen == {"2", "GPU-5c"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="no GPU"):
        one_per_gpu()


def test_gpus_are_counted_by_the_driver(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA X (UUID: GPU-1)'\necho 'GPU 1: NVIDIA X (UUID: GPU-2)'\n")
    program.chmod(0o755)
    assert visible_gpus() == ["0", "1"]


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, TESTS)
from engine_tasks import write_pid_once
from hvae_codec.engine.where import engine_on

with engine_on(ON) as engine:
    try:
        list(engine.run(write_pid_once, [Path(FOLDER, str(n)) for n in range(6)]))
    except KeyboardInterrupt:
        print("stopped", flush=True)
"""
"""Not guarded by `if __name__ == "__main__"`: scripts need none."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_outlives_the_one_that_started_it(tmp_path, number):
    """Ctrl-C goes to all processes of the terminal; the others to one."""
    values = f"TESTS, FOLDER, ON = {str(Path(__file__).parent)!r}, {str(tmp_path)!r}, 'local:2'\n"
    (tmp_path / "driver.py").write_text(values + DRIVER)
    driver = subprocess.Popen(
        [sys.executable, "driver.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    marks = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks))
    pids = [int(mark.read_text()) for mark in marks]
    assert all(map(is_running, pids))
    (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
    out, err = driver.communicate(timeout=10)
    assert (out, err) == ("stopped\n" if number == signal.SIGINT else "", "")
    wait_until(lambda: not any(map(is_running, pids)))
    assert not (tmp_path / "2").exists()
