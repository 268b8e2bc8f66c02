"""Images that are read in groups: the order in windows, and the cache of groups."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.data.row_groups import RowGroupCache, RowGroups, shuffled_in_windows, windows


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def groups(count: int, rows: int, nbytes: int = 10) -> RowGroups:
    return RowGroups(np.repeat(np.arange(count), rows), np.full(count, nbytes))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(1, 200))
def test_windows_are_small_and_alike(sizes: list[int], limit: int):
    numbers = windows(np.array(sizes), limit)
    assert (np.diff(numbers) >= 0).all()
    of_each = np.bincount(numbers, sizes)
    assert of_each.max() <= limit + max(sizes)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 120), st.integers(0, 3))
def test_every_image_once(count: int, rows: int, window: int, seed: int):
    order = shuffled_in_windows(groups(count, rows), window, generator(seed))
    assert sorted(order) == list(range(count * rows))


def test_a_window_has_few_groups_and_shuffles_all_of_them():
    order = shuffled_in_windows(groups(12, 50), 40, generator())
    of = order // 50
    pieces = of.reshape(3, 200)
    assert [len(set(piece)) for piece in pieces] == [4, 4, 4]
    assert len(set(pieces[0][:20])) == 4
    assert sorted({*pieces[0]}) != [0, 1, 2, 3]
    assert not np.array_equal(order, shuffled_in_windows(groups(12, 50), 40, generator(1)))
    np.testing.assert_array_equal(order, shuffled_in_windows(groups(12, 50), 40, generator()))


def test_groups_without_a_wanted_image_take_no_room():
    chosen = groups(10, 5).select(np.array([0, 1, 49, 48]))
    assert sorted(shuffled_in_windows(chosen, 20, generator())) == [0, 1, 2, 3]


class Group:
    def __init__(self, number: int) -> None:
        self.number, self.nbytes = number, 10

    def __getitem__(self, row: int) -> bytes:
        return bytes([self.number, row])


def test_the_cache_has_what_was_used_last():
    read = []
    cache = RowGroupCache(lambda group: read.append(group) or Group(group))
    for group in (0, 1, 2, 0, 3, 0, 1):
        assert cache.get(group, 30)[7] == bytes([group, 7])
    assert read == [0, 1, 2, 3, 1]
    read.clear()
    for group in (5, 6, 5, 6):  # two stay, whatever their size
        cache.get(group, 0)
    assert read == [5, 6]


def test_one_thread_reads_a_group_and_the_others_wait_for_it():
    read = []

    def slow(group: int) -> Group:
        read.append(group)
        time.sleep(0.05)
        return Group(group)

    cache, found = RowGroupCache(slow), []
    threads = [threading.Thread(target=lambda: found.append(cache.get(4, 100)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (read, found) == ([4], [bytes([4, 0])] * 4)


def test_a_read_that_fails_is_tried_again():
    answers = [OSError("no disk"), Group(1)]

    def read(group: int) -> Group:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    cache = RowGroupCache(read)
    with pytest.raises(OSError, match="no disk"):
        cache.get(1, 100)
    assert cache.get(1, 100)[0] == bytes([1, 0])
