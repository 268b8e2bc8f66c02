"""Images of a store to look at: of each label, and with the largest and smallest figures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import zarr

from hvae_codec import open_store
from hvae_codec.analysis import store_samples
from hvae_codec.analysis.store_samples import find_extremes, sample_labels
from stores import make_spec, make_store


def with_figure(store, name, values):
    """The store with a per-image array that a user has added."""
    group = zarr.open_group(str(store.path), mode="r+")
    array = group.create_array(name, shape=(len(store),), dtype=values.dtype, dimension_names=["image"], fill_value=0)
    array[:] = values
    return open_store(store.path)


def test_some_of_each_label(tmp_path):
    spec = dataclasses.replace(make_spec(30), labels=["dog" if i % 3 else "cat" for i in range(30)])
    store = make_store(tmp_path / "a.zarr", spec)
    samples = sample_labels(store, seed=0)
    assert [(sample.label, sample.count, len(sample.images)) for sample in samples] == [
        ("cat", 10, 10),
        ("dog", 20, 12),
    ]
    for sample in samples:
        assert {store.labels[image] for image in sample.images} == {sample.label}
        assert len(set(sample.images)) == len(sample.images)
    assert sample_labels(store, seed=0) == samples
    assert sample_labels(store, seed=1) != samples


def test_without_labels_and_with_very_many(tmp_path, monkeypatch):
    monkeypatch.setattr(store_samples, "SAMPLED", 16)
    plain = make_store(tmp_path / "a.zarr", dataclasses.replace(make_spec(20), labels=[""] * 20))
    (sample,) = sample_labels(plain, seed=0)
    assert (sample.label, sample.count, len(sample.images)) == ("", 20, 16)
    labels = [f"{i:02d}" for i in range(20)]
    many = make_store(tmp_path / "b.zarr", dataclasses.replace(make_spec(20), labels=labels))
    samples = sample_labels(many, seed=0)
    assert len(samples) == 16
    assert [sample.label for sample in samples] == sorted(sample.label for sample in samples)
    assert all(sample.images == (labels.index(sample.label),) for sample in samples)


def test_the_largest_and_the_smallest(tmp_path):
    values = np.array([(7 * i) % 20 for i in range(20)], np.float32)
    store = with_figure(make_store(tmp_path / "a.zarr"), "distortion", values)
    found = find_extremes(store, "distortion", 3)
    assert [values[image] for image in found.highest] == [19, 18, 17]
    assert [values[image] for image in found.lowest] == [0, 1, 2]
    assert (found.known, found.median) == (20, 9.5)
    assert found.values == {image: values[image] for image in (*found.highest, *found.lowest)}
    whole = find_extremes(store, "distortion", 1000)
    assert sorted((*whole.highest, *whole.lowest)) == [*range(20)]


def test_only_some_have_the_figure(tmp_path):
    values = np.full(20, np.nan, np.float32)
    values[[4, 8, 11]] = 2.0, 3.0, 1.0
    store = with_figure(make_store(tmp_path / "a.zarr"), "rate", values)
    found = find_extremes(store, "rate", 64)
    assert (found.known, found.highest, found.lowest) == (3, (8, 4), (11,))


@pytest.mark.parametrize("values", [np.full(20, np.nan, np.float32), np.zeros(20, np.bool_)])
def test_nothing_to_order(tmp_path, values):
    store = make_store(tmp_path / "a.zarr")
    assert find_extremes(store, "rate", 5) is None
    assert find_extremes(with_figure(store, "rate", values), "rate", 5) is None
