"""What is announced before it is read: whole windows, one ahead, everything once."""

from __future__ import annotations

import numpy as np
import pytest

from hvae_codec.data import announced as module
from hvae_codec.data.announced import announced


def events(positions: list[int], size: int, file_bytes: list[int]) -> list[tuple[str, list[int]]]:
    """What is announced ("A") and given ("G"), in that order."""
    happened: list[tuple[str, list[int]]] = []
    wanted = np.array(positions, np.int64)
    parts = announced(wanted, size, lambda next_: happened.append(("A", next_.tolist())), np.array(file_bytes))
    for part in parts:
        happened.append(("G", part.tolist()))
    return happened


def test_each_window_is_announced_one_window_early(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WINDOW_BYTES", 100)
    found = events([6, 5, 4, 3, 2, 1, 0], 2, [60] * 7)
    first = [("A", [6, 5]), ("A", [4, 3]), ("G", [6, 5])]
    assert found == [*first, ("A", [2, 1]), ("G", [4, 3]), ("A", [0]), ("G", [2, 1]), ("G", [0])]


def test_small_images_share_a_window(monkeypatch: pytest.MonkeyPatch):
    assert events([0, 1, 2, 3, 4], 2, [10] * 5) == [("A", [0, 1, 2, 3, 4]), ("G", [0, 1]), ("G", [2, 3]), ("G", [4])]
    monkeypatch.setattr(module, "WINDOW_IMAGES", 3)
    assert [what for what, _ in events([0, 1, 2, 3, 4], 1, [0] * 5)] == [*"AAGGGGG"]


@pytest.mark.parametrize("size", [1, 3, 2**62])
def test_all_images_are_announced_and_given_once_in_order(size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WINDOW_BYTES", 1000)
    sizes = np.random.default_rng(0).integers(0, 400, 100)
    positions = np.random.default_rng(1).permutation(100)[:80].tolist()
    found = events(positions, size, sizes.tolist())
    for kind in "AG":
        assert [i for what, part in found if what == kind for i in part] == positions
    assert events([], size, sizes.tolist()) == []
