"""Batches through a model beside each other give what they give one after the other, in order, and end with it."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
import torch

from hvae_codec.model.lanes import in_lanes, lane_count
from hvae_codec.presets import load_preset

CPU = torch.device("cpu")


def test_results_come_in_order_from_several_threads_and_few_are_ahead():
    taken, threads = [], set()

    def items():
        for item in range(30):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        time.sleep(0.01 if item % 2 else 0.0)
        threads.add(threading.current_thread())
        return item * item

    for place, result in enumerate(in_lanes(work, items(), 3)):
        assert result == place * place
        assert len(taken) <= place + 4
    assert place == 29
    assert len(threads) == 3
    assert not any(thread.is_alive() for thread in threads)


def test_one_lane_is_the_callers_thread():
    assert set(in_lanes(lambda _: threading.current_thread(), range(3), 1)) == {threading.current_thread()}


def test_cores_are_shared_among_lanes_and_the_caller_has_its_own_again():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert list(in_lanes(lambda _: torch.get_num_threads(), range(6), 2)) == [2] * 6
        assert torch.get_num_threads() == 4
        seen: list[int] = []
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen == [4]
    finally:
        torch.set_num_threads(threads)


def test_a_lane_that_starts_late_has_its_share_of_the_cores_too():
    """A slow source leaves lanes idle, so that one starts when the caller has its own number again."""
    threads, image = torch.get_num_threads(), torch.zeros(1, 8, 32, 32)

    def items():
        for item in range(8):
            time.sleep(0.03 if item in (1, 4) else 0.0)
            yield item

    def cores(_: int) -> int:
        torch.nn.functional.conv2d(image, torch.zeros(8, 8, 3, 3))
        return torch.get_num_threads()

    try:
        torch.set_num_threads(2)
        for _ in range(20):
            assert list(in_lanes(cores, items(), 2)) == [1] * 8
    finally:
        torch.set_num_threads(threads)


def test_an_error_is_raised_in_its_place_and_nothing_runs_on():
    def work(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        return item

    done = []
    with closing(in_lanes(work, range(100), 2)) as results, pytest.raises(ValueError, match="five"):  # noqa: PT012
        for result in results:
            done.append(result)
    assert done == [0, 1, 2, 3, 4]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_leaving_early_ends_the_threads():
    with closing(in_lanes(lambda item: item, range(1000), 2)) as results:
        assert next(results) == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_lanes_are_for_small_models_on_a_cpu():
    tiny, large = load_preset("tiny32").model, load_preset("cifar10_baseline").model
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert lane_count(tiny, 64, CPU) == 2
        assert lane_count(tiny, 256, CPU) == 1  # large batches keep all cores busy
        assert lane_count(large, 64, CPU) == 1
        assert lane_count(tiny, 64, torch.device("cuda")) == 1
    finally:
        torch.set_num_threads(threads)
