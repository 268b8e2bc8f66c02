"""Tasks on any executor: a few under way, errors told apart, and those who end workers found."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
import tracemalloc
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest

from engine_tasks import always_ends_worker, call, programming_error, slow_square, square, square_or_error, wrong_model
from hvae_codec.engine.engine import REACH, Here
from hvae_codec.engine.executor_engine import ExecutorEngine
from hvae_codec.engine.tally import Tally
from hvae_codec.errors import DataError, EngineError, ModelError, UsageError


class AtOnce(Executor):
    """Runs each task when it is submitted."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class DyingPool(Executor):
    """A pool of processes, as it looks from outside: one that dies takes all tasks under way with it.

    The first one of `made` dies with two tasks at least, however late they come.
    """

    def __init__(self, killers: set[int], made: list[DyingPool]) -> None:
        self._max_workers = 2
        self.killers = killers
        self.lock = threading.Lock()
        self.under_way: list[tuple[Future, int, object]] = []
        self.is_broken = False
        self.ran: list[list[int]] = []
        self.is_first = not made
        made.append(self)

    def submit(self, fn, item):
        future: Future = Future()
        with self.lock:
            if self.is_broken:
                raise BrokenExecutor("a process ended")
            self.under_way.append((future, item, fn))
        threading.Timer(0.002, self.work).start()
        return future

    def work(self) -> None:
        with self.lock:
            if self.is_first and len(self.under_way) == 1 and self.under_way[0][1] in self.killers:
                threading.Timer(0.002, self.work).start()
                return
            batch, self.under_way = self.under_way, []
            if not batch:
                return
            self.ran.append([item for _, item, _ in batch])
            self.is_broken = bool(self.killers & {item for _, item, _ in batch})
        if self.is_broken:
            for future, _, _ in batch:
                future.set_exception(BrokenExecutor("a process ended"))
        else:
            for future, item, fn in batch:
                future.set_result(fn(item))


@pytest.fixture(params=["here", "at once", "threads"])
def engine(request):
    if request.param == "here":
        yield Here()
    elif request.param == "at once":
        yield ExecutorEngine(AtOnce())
    else:
        with ThreadPoolExecutor(3) as pool:
            yield ExecutorEngine(pool)


def test_results_are_those_of_a_loop(engine):
    tally = Tally()
    outcomes = list(engine.run(slow_square, iter(range(20)), tally=tally))
    assert sorted((outcome.number, outcome.item, outcome.get()) for outcome in outcomes) == [
        (n, n, n * n) for n in range(20)
    ]
    assert {outcome.attempts for outcome in outcomes} == {1}
    assert (tally.done, tally.failed, tally.retries) == (20, 0, 0)


def test_map_keeps_the_order(engine):
    assert list(engine.map(slow_square, range(20))) == [n * n for n in range(20)]
    assert list(engine.map(slow_square, [])) == []


def test_an_error_of_one_item_is_its_outcome(engine):
    tally = Tally()
    outcomes = {outcome.item: outcome for outcome in engine.run(square_or_error, range(8), tally=tally)}
    assert isinstance(outcomes[3].error, DataError)
    assert isinstance(outcomes[5].error, PermissionError)
    assert outcomes[5].error.filename == "5.png"
    assert [n for n, outcome in outcomes.items() if outcome.error] == [3, 5]
    assert all(outcomes[n].error.__traceback__ is None for n in (3, 5))
    assert (tally.done, tally.failed) == (6, 2)
    with pytest.raises(DataError, match=r"3\.png"):
        outcomes[3].get()


def test_map_raises_an_error_in_its_place(engine):
    results = engine.map(square_or_error, range(8))
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(DataError, match=r"3\.png"):
        next(results)


@pytest.mark.parametrize(("work", "error"), [(programming_error, ZeroDivisionError), (wrong_model, ModelError)])
def test_other_errors_stop_all(engine, work, error):
    taken = []
    with pytest.raises(error):
        list(engine.run(work, (taken.append(n) or n for n in range(1000))))
    assert len(taken) < 20


@pytest.mark.parametrize("code", [28, 30, 122])  # ENOSPC, EROFS, EDQUOT
def test_a_full_disk_is_no_error_of_one_item(engine, code):
    def write(_: int) -> None:
        raise OSError(code, "no space")

    with pytest.raises(OSError, match="no space"):
        list(engine.run(write, range(1000)))


def test_tasks_that_wait_are_dropped():
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise ZeroDivisionError
        time.sleep(0.05)

    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        list(ExecutorEngine(pool, slots=8).run(work, range(100)))
    assert len(begun) <= 2


def test_closing_drops_what_waits():
    begun = []
    with ThreadPoolExecutor(1) as pool:
        with closing(ExecutorEngine(pool, slots=8).run(begun.append, range(100))) as outcomes:
            next(outcomes)
            begun.append(None)
        pool.submit(begun.append, "after").result()
    assert len(begun) < 25


def test_a_few_tasks_per_worker_are_under_way():
    with ThreadPoolExecutor(3) as pool:
        taken = itertools.count()
        outcomes = ExecutorEngine(pool).run(square, (next(taken) for _ in range(100)))
        next(outcomes)
        assert next(taken) == 6
        assert sum(1 for _ in outcomes) == 99


def test_the_window_follows_the_workers(monkeypatch):
    monkeypatch.setattr("hvae_codec.engine.renewable_executor._SECONDS", 0.0)
    slots = itertools.chain([1] * 10, itertools.repeat(5))
    tally = Tally()
    assert sum(1 for _ in ExecutorEngine(AtOnce(), slots=lambda: next(slots)).run(square, range(30), tally=tally)) == 30
    assert tally.workers == 5


def test_results_in_order_wait_for_the_slowest_within_bounds():
    go, taken = threading.Event(), []

    def work(item: int) -> int:
        if item == 0:
            assert go.wait(10)
        return item

    with ThreadPoolExecutor(2) as pool:
        engine = ExecutorEngine(pool)
        results = engine.map(work, (taken.append(n) or n for n in range(1000)))
        threading.Timer(0.1, go.set).start()
        assert next(results) == 0
        assert len(taken) <= REACH * engine.window
        assert list(results) == list(range(1, 1000))


def test_results_in_order_use_workers_that_came_later(monkeypatch):
    monkeypatch.setattr("hvae_codec.engine.renewable_executor._SECONDS", 0.0)
    go, taken = threading.Event(), []

    def items():
        for n in range(1000):
            taken.append(n)
            if n == REACH * 2 + 4:  # beyond the reach of one worker
                go.set()
            yield n

    def work(item: int) -> int:
        if item == 0:
            assert go.wait(10)
        return item

    with ThreadPoolExecutor(4) as pool:
        engine = ExecutorEngine(pool, slots=lambda: 1 if len(taken) < 4 else 8)
        assert list(engine.map(work, items())) == list(range(1000))


def test_memory_stays_flat():
    outcomes = ExecutorEngine(AtOnce(), slots=4).run(square, iter(range(6_000)))
    sum(1 for _ in itertools.islice(outcomes, 1_000))
    tracemalloc.start()
    assert sum(1 for _ in outcomes) == 5_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000  # 10 bytes per item


def test_a_new_pool_takes_the_place_of_a_broken_one_and_the_culprit_is_named():
    made: list[DyingPool] = []
    tally = Tally()
    engine = ExecutorEngine(partial(DyingPool, {7}, made))
    outcomes = {o.item: o for o in engine.run(square, range(20), name=lambda n: f"row group {n}", tally=tally)}
    assert [n for n, outcome in outcomes.items() if outcome.error] == [7]
    assert isinstance(outcomes[7].error, EngineError)
    assert "row group 7 ended its worker three times" in str(outcomes[7].error)
    assert {n: outcome.result for n, outcome in outcomes.items() if n != 7} == {n: n * n for n in range(20) if n != 7}
    assert outcomes[7].attempts == 3
    assert max(outcome.attempts for n, outcome in outcomes.items() if n != 7) == 2
    broke = [pool.ran[-1] for pool in made if pool.is_broken]
    assert 7 in broke[0]
    assert broke[1:] == [[7], [7]]  # alone, so that its neighbours are above suspicion
    assert tally.retries == len(broke[0]) + 1


def test_a_broken_executor_cannot_be_made_again():
    engine = ExecutorEngine(DyingPool({2}, []))
    with pytest.raises(EngineError, match=r"one of .*row group 2.*function that makes an executor"):
        list(engine.run(square, range(10), name=lambda n: f"row group {n}"))


def test_workers_that_end_whatever_they_do_stop_the_whole():
    with pytest.raises(EngineError, match="5 items in a row"):
        list(ExecutorEngine(partial(DyingPool, set(range(100)), [])).run(square, range(100)))


@pytest.mark.parametrize("shut_down", ["before", "meanwhile"])
def test_an_executor_that_was_shut_down(shut_down):
    pool = ThreadPoolExecutor(1)
    if shut_down == "before":
        pool.shutdown()

    def work(item: int) -> None:
        if item == 2:
            pool.shutdown(wait=False, cancel_futures=True)

    with pytest.raises(EngineError, match=r"the executor .*(takes no tasks|dropped its tasks)"):
        list(ExecutorEngine(pool, slots=4).run(work, range(10)))


def test_what_is_no_executor():
    with pytest.raises(UsageError, match="17 is no executor"):
        ExecutorEngine(17)


@pytest.mark.slow
def test_a_pool_of_processes():
    make = partial(ProcessPoolExecutor, 2, mp_context=multiprocessing.get_context("spawn"))
    with ExecutorEngine(make) as engine:
        assert sorted(outcome.get() for outcome in engine.run(slow_square, range(10))) == [n * n for n in range(10)]
        items = [(square, n) for n in range(6)]
        items[3] = (always_ends_worker, 3)
        outcomes = {outcome.number: outcome for outcome in engine.run(call, items)}
        assert "three times" in str(outcomes.pop(3).error)
        assert {n: outcome.get() for n, outcome in outcomes.items()} == {n: n * n for n in (0, 1, 2, 4, 5)}
        (broken,) = (o for o in engine.run(square_or_error, [3]))
        assert isinstance(broken.error, DataError)
        assert broken.error.__cause__ is None


def test_the_tally_says_what_happened_and_how_long_the_rest_takes():
    now = iter([10.0, 14.0])
    tally = Tally(clock=lambda: next(now))
    assert tally.seconds_left(4) is None
    tally.start()
    tally.start()
    tally.count(failed=False)
    assert tally.seconds_left(4) == 12.0
    tally.count(failed=True)
    tally.workers, tally.retries = 1, 3
    assert str(tally) == "1 worker, 3 retries, 1 failed"
