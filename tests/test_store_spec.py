"""A specification is the same, byte for byte, however its names and labels are held."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hvae_codec import verify
from hvae_codec.errors import StoreError
from hvae_codec.store.create import objects_of
from hvae_codec.store.quantiser import IntCodec
from hvae_codec.store.schema import NO_TEXT
from hvae_codec.store.spec import spec_fingerprint
from hvae_codec.texts.classes import ClassTexts
from hvae_codec.texts.numbered import NumberedTexts
from hvae_codec.texts.packed import PackedTexts
from stores import make_spec, make_store


def test_a_store_is_the_same_however_its_names_are_held():
    spec = make_spec()
    held = dataclasses.replace(spec, names=PackedTexts.of(spec.names), labels=ClassTexts.of(spec.labels))
    assert spec_fingerprint(held) == spec_fingerprint(spec)
    assert objects_of(held) == objects_of(spec)
    numbered = dataclasses.replace(spec, names=NumberedTexts("", 20), labels=ClassTexts.same("", 20))
    listed = dataclasses.replace(spec, names=[f"{i:08d}" for i in range(20)], labels=[""] * 20)
    assert objects_of(numbered) == objects_of(listed)


def test_names_in_several_chunks_have_the_same_fingerprint(monkeypatch):
    spec = make_spec()
    expected = spec_fingerprint(spec)
    monkeypatch.setattr("hvae_codec.store.spec.TABLE_CHUNK", 3)
    assert spec_fingerprint(spec) == expected
    assert spec_fingerprint(dataclasses.replace(spec, names=PackedTexts.of(spec.names))) == expected


@pytest.mark.parametrize("text", ["\ud83d.png", NO_TEXT])
@pytest.mark.parametrize("kind", [list, PackedTexts.of, ClassTexts.of])
def test_texts_that_no_store_can_hold_are_refused_in_every_kind(text, kind):
    texts = kind([*"abc", text, *"abcdefghijklmnop"])
    for table in ("names", "labels"):
        with pytest.raises(StoreError, match=r"name or label .* rename the file"):
            make_spec(**{table: texts})
    assert make_spec(labels=ClassTexts.of([text, *[""] * 20]).take(np.arange(1, 21)))  # a class of no image


@pytest.mark.parametrize("step", [2, 2.0])
def test_a_step_that_is_a_whole_number_is_the_same_when_it_is_read(tmp_path, step):
    spec = make_spec(codec=IntCodec(step))
    store = make_store(tmp_path / "out.zarr", spec)
    assert spec_fingerprint(store.spec()) == spec_fingerprint(spec) == store.metadata.fingerprint
    assert verify(store.path).ok
