"""Row groups are written while others are made: in order, few waiting, and errors are raised where they can be seen."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from hvae_codec.lookahead import written_behind


def test_all_are_written_in_order_by_one_other_thread():
    written, threads = [], set()

    def write(item: int) -> None:
        threads.add(threading.current_thread())
        written.append(item)

    assert list(written_behind(range(20), write)) == list(range(20)) == written
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

    for _ in written_behind(items(), write, waiting=2):
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
        list(written_behind(items(), write))
    assert len(made) <= 7


def test_what_is_being_written_is_finished_and_what_waits_is_dropped():
    begun, written = [], []

    def write(item: int) -> None:
        begun.append(item)
        time.sleep(0.02)
        written.append(item)

    with closing(written_behind(range(100), write)) as items:
        next(items)
    assert begun == written
    assert len(written) < 5
