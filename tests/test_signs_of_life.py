"""Long work is waited for as long as it gives signs of life, and silence is told."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from hvae_codec.signs_of_life import SilentError, shown_alive, wait_for_end


class Counters:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def add(self, key: str, amount: int, /) -> int:
        with self.lock:
            self.counts[key] += amount
            return self.counts[key]


def test_work_that_shows_itself_is_waited_for_longer_than_silence():
    store, ended = Counters(), []

    def work() -> None:
        with shown_alive(store, "0", beat=0.02):
            time.sleep(0.6)
            ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    wait_for_end(store, "0", patience=0.3, beat=0.02)
    assert ended
    thread.join()
    wait_for_end(store, "0", patience=0.0)  # at once, however often


def test_silence_is_told():
    store, begun = Counters(), time.monotonic()
    with pytest.raises(SilentError):
        wait_for_end(store, "0", patience=0.1, beat=0.02)
    assert time.monotonic() - begun >= 0.1
    store.add("0 alive", 5)  # those of long ago are one sign
    with pytest.raises(SilentError):
        wait_for_end(store, "0", patience=0.1, beat=0.02)


def test_work_that_fails_has_ended():
    store = Counters()
    with pytest.raises(ZeroDivisionError), shown_alive(store, "0"):
        _ = 1 / 0
    wait_for_end(store, "0", patience=0.0)
    assert not [thread for thread in threading.enumerate() if thread.name == "signs of life"]
