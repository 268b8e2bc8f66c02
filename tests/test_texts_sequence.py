"""Texts of every kind are like a tuple of the same texts."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvae_codec.texts.classes import ClassTexts
from hvae_codec.texts.numbered import NumberedTexts
from hvae_codec.texts.packed import PackedTexts, as_texts
from hvae_codec.texts.sequence import JoinedTexts, Texts, blocks_of

WORDS = ("cats/1.png", "", "Käse/猫.png", "cats/2.png", "\ud83d", "a\0b", "cats/1.png")
NUMBERS = tuple(f"train/{i:08d}" for i in range(7, 12))


def kinds() -> dict[str, tuple[Texts, Sequence[str]]]:
    """Texts of each kind, and what they must be."""
    packed, classes, numbered = PackedTexts.of(WORDS), ClassTexts.of(iter(WORDS)), NumberedTexts("train/", 5, first=7)
    some = np.array([5, 0, 5, 3])
    return {
        "packed": (packed, WORDS),
        "classes": (classes, WORDS),
        "numbered": (numbered, NUMBERS),
        "long numbers": (NumberedTexts("", 4, 99_999_998), ("99999998", "99999999", "100000000", "100000001")),
        "chosen": (packed.take(some), tuple(WORDS[i] for i in some)),
        "chosen twice": (numbered.take(np.array([4, 0, 2])).take(np.array([2, 0])), (NUMBERS[2], NUMBERS[4])),
        "chosen classes": (classes.take(some), tuple(WORDS[i] for i in some)),
        "joined": (JoinedTexts([packed, PackedTexts.of([]), numbered, classes]), (*WORDS, *NUMBERS, *WORDS)),
        "none": (PackedTexts.of([]), ()),
    }


@pytest.mark.parametrize("kind", kinds())
def test_texts_are_like_a_tuple(kind):
    texts, expected = kinds()[kind]
    assert len(texts) == len(expected)
    assert tuple(texts) == expected
    assert [texts[i] for i in range(-len(expected), len(expected))] == [*expected, *expected]
    assert texts[1:-1] == expected[1:-1]
    assert texts[::-2] == expected[::-2]
    assert [*texts.blocks(3)] == [list(expected[i : i + 3]) for i in range(0, len(expected), 3)]
    assert texts.at(np.arange(len(expected))[::-1]) == list(expected[::-1])
    assert list(texts.distinct()) == list(dict.fromkeys(expected))
    assert all(texts.index(text) == expected.index(text) for text in expected)
    assert pickle.loads(pickle.dumps(texts)) == expected
    assert repr(texts) == repr(expected)
    with pytest.raises(IndexError):
        texts[len(expected)]
    with pytest.raises(ValueError, match="another"):
        texts.index("another")


def test_texts_are_equal_to_any_sequence_of_the_same_texts():
    texts = PackedTexts.of(["a", "b"])
    assert texts == ("a", "b")
    assert texts == ["a", "b"]
    assert texts == ClassTexts.of(["a", "b"])
    assert (texts, 1) == (("a", "b"), 1)
    for other in (["a"], ["a", "c"], ["a", "b", "c"], "ab", {"a", "b"}, None):
        assert texts != other
    assert (texts + texts) + ClassTexts.of(["c"]) == ["a", "b", "a", "b", "c"]
    with pytest.raises(TypeError):
        hash(texts)


def test_many_texts_are_shown_in_short():
    assert repr(NumberedTexts("", 10**9)) == "('00000000', '00000001', '00000002', ..., '999999999')"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text()), st.data())
def test_any_text_is_packed_and_given_back(texts, data):
    packed, classes = PackedTexts.of(texts), ClassTexts.of(texts)
    indices = data.draw(st.lists(st.integers(0, len(texts) - 1)) if texts else st.just([]))
    expected = [texts[i] for i in indices]
    assert packed == texts
    assert packed.at(np.array(indices, int)) == classes.at(np.array(indices, int)) == expected
    assert PackedTexts.joined([packed, packed]) == ClassTexts.joined([classes, classes]) == [*texts, *texts]


def test_few_bytes_are_held_per_text():
    names = [f"train/{i:08d}-{'x' * 21}.jpg" for i in range(100_000)]
    packed = PackedTexts.of(names)
    assert (len(packed.buffer) + packed.offsets.nbytes) / len(names) < 48.1
    classes = ClassTexts.of(name[6:9] for name in names)
    assert (len(classes.classes), classes.codes.dtype) == (1, np.uint8)
    assert [ClassTexts.of(map(str, range(n))).codes.itemsize for n in (256, 257, 65_536, 65_537)] == [1, 2, 2, 4]


@pytest.mark.parametrize("offsets", [[], [0, 2], [0, 1], [1, 3], [0, 2, 1, 3]])
def test_packed_texts_must_fit_their_buffer(offsets):
    with pytest.raises(ValueError, match="3 bytes"):
        PackedTexts(b"abc", np.array(offsets, np.int64))


def test_codes_must_be_of_a_class():
    for codes in ([0, 2], [-1]):
        with pytest.raises(ValueError, match="2 classes"):
            ClassTexts(["a", "b"], np.array(codes))


def test_other_sequences_are_taken_too():
    texts = PackedTexts.of(["a"])
    assert as_texts(texts) is texts
    assert as_texts(("a", "b")) == ["a", "b"]
    assert [*blocks_of(("a", "b", "c"), 2)] == [*blocks_of(PackedTexts.of(["a", "b", "c"]), 2)] == [["a", "b"], ["c"]]
