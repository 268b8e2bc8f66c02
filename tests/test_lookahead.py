"""Row groups are written while others are made: in order, few waiting, and errors are raised where they can be seen."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from hvae_codec.lookahead import fetched_behind, map_ahead, write_behind


def test_all_are_written_in_order_by_one_other_thread():
    written, threads = [], set()

    def write(item: int) -> None:
        threads.add(threading.current_thread())
        written.append(item)

    assert list(write_behind(write, range(20))) == [None] * 20
    assert written == list(range(20))
    assert len(threads) == 1
    assert threading.main_thread() not in threads
    assert not next(iter(threads)).is_alive()


def test_making_waits_for_writing():
    made, written, most = [], [], 0

    def items():
        for item in range(8):
            made.append(item)
            yield item

    def write(item: int) -> None:
        nonlocal most
        time.sleep(0.01)
        most = max(most, len(made) - len(written))
        written.append(item)

    for _ in write_behind(write, items()):
        pass
    assert written == list(range(8))
    assert 2 <= most <= 4  # one that is written, two that wait, one that is made


def test_an_error_of_writing_ends_making():
    made = []

    def items():
        for item in range(100):
            made.append(item)
            yield item

    def write(item: int) -> None:
        if item == 3:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        list(write_behind(write, items()))
    assert len(made) <= 7


def test_what_is_being_written_is_finished_and_what_waits_is_dropped():
    begun, written = [], []

    def write(item: int) -> None:
        begun.append(item)
        time.sleep(0.02)
        written.append(item)

    with closing(write_behind(write, range(100))) as items:
        next(items)
    assert begun == written
    assert len(written) < 5


def test_results_come_in_order_whichever_thread_is_first():
    def work(item: int) -> int:
        time.sleep(0.01 * (item % 3 == 0))
        return item * item

    results = map_ahead(work, range(20), threads=4, waiting=4, name="square")
    assert list(results) == [item * item for item in range(20)]


def test_as_many_items_wait_as_may_and_no_more():
    begun = []
    results = map_ahead(begun.append, iter(range(100)), threads=3, waiting=4, name="begin")
    next(results)
    time.sleep(0.02)
    assert len(begun) == 5
    results.close()
    assert len(begun) == 5


def test_an_error_comes_in_the_place_of_its_result():
    results = map_ahead(lambda item: 1 // item, [1, 1, 0, 1], threads=2, waiting=3, name="divide")
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("waiting", [0, 1, 3])
def test_results_are_fetched_when_the_next_ones_have_been_started(waiting: int):
    started, fetched = [], []

    def start(item: int):
        started.append(item)

        def fetch() -> int:
            fetched.append((item, len(started)))
            return -item

        return fetch

    assert list(fetched_behind(map(start, range(5)), waiting)) == [0, -1, -2, -3, -4]
    assert fetched == [(item, min(item + 1 + waiting, 5)) for item in range(5)]
