"""Near duplicates by stored numbers: the nearest of all, exact distances, whatever the size of a block."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hvae_codec import open_store
from hvae_codec.analysis import near_duplicates
from hvae_codec.analysis.near_duplicates import Pair, nearest_neighbours, sample_images
from hvae_codec.errors import UsageError
from stores import GRANULARITIES, make_spec, make_store, photo_latents, write_all


def silent(name):
    return lambda done, total: None


def store_with_copies(path, granularity="variate", images=20, **changes):
    """Images 3 and 17 have the same latents, as have 5, 6 and 7."""
    spec = make_spec(images, granularity=granularity, **changes)
    latents = photo_latents(spec)
    for numbers in latents.values():
        numbers[17], numbers[6:8] = numbers[3], numbers[5]
    write_all(path, spec, latents).publish()
    return open_store(path)


def numbers_of(store):
    stored = store.gather(range(len(store)))
    return np.concatenate([stored[r].reshape(len(store), -1) for r in store.resolutions], axis=1).astype(np.float64)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("block", [7, 256])
def test_the_nearest_of_all(tmp_path, monkeypatch, granularity, block):
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    store = store_with_copies(tmp_path / "a.zarr", granularity)
    found = nearest_neighbours(store, range(20), silent)
    rows = numbers_of(store)
    distances = np.sqrt(np.square(rows[:, None] - rows[None]).mean(axis=2))
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_allclose(found.distances, distances.min(axis=1), rtol=1e-12)
    assert (found.nearest != found.images).all()
    assert found.same == 5
    same = {frozenset((pair.first, pair.second)) for pair in found.pairs() if pair.distance == 0}
    assert frozenset((3, 17)) in same
    assert same <= {frozenset(both) for both in ((3, 17), (5, 6), (5, 7), (6, 7))}


def test_pairs_are_in_order_and_separate(tmp_path):
    found = nearest_neighbours(store_with_copies(tmp_path / "a.zarr"), range(20), silent)
    pairs = found.pairs()
    assert pairs == sorted(pairs, key=lambda pair: pair.distance)
    assert len({(pair.first, pair.second) for pair in pairs}) == len(pairs)
    assert all(pair.first < pair.second for pair in pairs)
    chosen = found.separate_pairs(4)
    shown = [image for pair in chosen for image in (pair.first, pair.second)]
    assert len(chosen) == 4
    assert len(set(shown)) == 8
    assert [pair.distance for pair in chosen[:2]] == [0, 0]
    assert Pair(3, 17, 0.0) in chosen


def test_equal_images_of_two_splits_are_counted_whatever_their_pairs(tmp_path):
    """Four equal images, of two splits, may be nearest to each other in two pairs within the splits."""
    spec = make_spec(12)
    latents = photo_latents(spec)
    for numbers in latents.values():
        numbers[1:4], numbers[5] = numbers[0], numbers[4]
    write_all(tmp_path / "a.zarr", spec, latents).publish()
    found = nearest_neighbours(open_store(tmp_path / "a.zarr"), range(12), silent)
    assert found.equal.tolist() == [0, 0, 0, 0, 4, 4, *range(6, 12)]
    paired = dataclasses.replace(found, nearest=np.array([1, 0, 3, 2, 5, 4, *found.nearest[6:]]))
    for one in (found, paired):
        assert one.same_across(["train"] * 2 + ["val"] * 2 + ["train"] * 8) == 4
        assert one.same_across(["train"] * 5 + ["val"] * 7) == 2
        assert one.same_across(["train"] * 5 + [""] + ["val"] * 6) == 0, "in no split is not in another one"
        assert one.same_across(["train"] * 12) == 0


def test_floats_are_compared_in_units_of_z(tmp_path):
    from hvae_codec.store.quantiser import FloatCodec

    store = store_with_copies(tmp_path / "a.zarr", codec=FloatCodec("float16"))
    found = nearest_neighbours(store, range(20), silent)
    rows = numbers_of(store)
    place = int(np.argmax(found.distances))
    apart = rows[place] - rows[found.nearest[place]]
    assert found.distances[place] == pytest.approx(np.sqrt(np.mean(np.square(apart))))
    assert found.same == 5


def test_a_sample_of_a_larger_store(tmp_path, monkeypatch):
    store = make_store(tmp_path / "a.zarr")
    np.testing.assert_array_equal(sample_images(store, 20, seed=0), np.arange(20))
    first, again, other = (sample_images(store, 6, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(set(first.tolist())) == 6
    assert first.tolist() == sorted(first.tolist()) != other.tolist()
    found = nearest_neighbours(store, first, silent)
    assert set(found.nearest.tolist()) <= set(first.tolist())
    monkeypatch.setattr(near_duplicates, "HELD_BYTES", 4 * store.kept_dims * 9)
    assert len(sample_images(store, 20, seed=0)) == 9


def test_one_image_has_no_pair(tmp_path):
    with pytest.raises(UsageError, match="1 image"):
        nearest_neighbours(make_store(tmp_path / "a.zarr"), [3], silent)
