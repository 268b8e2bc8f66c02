"""Texts are found among others, also if different ones have the same hash."""

from __future__ import annotations

import pytest

from hvae_codec.texts import index
from hvae_codec.texts.index import TextIndex
from hvae_codec.texts.numbered import NumberedTexts

TEXTS = ["b", "a", "", "Käse", "c", "a"]


@pytest.mark.parametrize("hash_of", [hash, len, lambda text: 0, lambda text: -len(text)])
def test_each_text_is_found_at_its_first_place(hash_of, monkeypatch):
    monkeypatch.setattr(index, "hash", hash_of, raising=False)
    wanted = ["x", *TEXTS, "Käs", "aa", "b"]
    expected = [TEXTS.index(text) if text in TEXTS else -1 for text in wanted]
    assert TextIndex(TEXTS).find(wanted).tolist() == expected


def test_nothing_is_found_among_no_texts():
    assert TextIndex([]).find(["a"]).tolist() == [-1]
    assert TextIndex(["a"]).find([]).tolist() == []


def test_a_text_is_found_among_many():
    found = TextIndex(NumberedTexts("train/", 200_000)).find(["train/00150000", "train/00200000", "train/00000000"])
    assert found.tolist() == [150_000, -1, 0]
