"""The order of packed texts is that of `sorted`."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.texts.order import sorted_order
from hvae_codec.texts.packed import PackedTexts


@given(st.lists(st.text(st.characters(exclude_characters="\0")) | st.text("ab/", min_size=7, max_size=18)))
def test_texts_are_in_the_order_of_sorted(texts):
    packed = PackedTexts.of(texts)
    assert packed.take(sorted_order(packed)) == sorted(texts)


def test_equal_texts_stay_in_their_order():
    texts = [f"shard/{i % 7}" for i in range(1000)]
    expected = sorted(range(1000), key=texts.__getitem__)
    np.testing.assert_array_equal(sorted_order(PackedTexts.of(texts)), expected)
