"""A store as an xarray tree: the store's own latents under every kind of index, read when they are asked for."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import xarray
import zarr

from hvae_codec import open_store
from hvae_codec.errors import StoreError, UsageError
from hvae_codec.store.quantiser import FloatCodec, IntCodec
from stores import GRANULARITIES, make_spec, make_store


@pytest.fixture(params=GRANULARITIES)
def store(request, tmp_path):
    return make_store(tmp_path / "out.zarr", make_spec(granularity=request.param))


@pytest.mark.parametrize("codec", [IntCodec(), FloatCodec("float16")])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_same_latents_with_their_places(tmp_path, codec, granularity):
    store = make_store(tmp_path / "out.zarr", make_spec(codec=codec, granularity=granularity))
    tree, latents = store.to_xarray(), store.latents(slice(None))
    assert isinstance(tree, xarray.DataTree)
    assert list(tree.children) == ["z1", "z4", "z16"]
    assert tree["name"].values.tolist() == store.names
    assert tree.attrs["codec"] == codec.name
    for name, z in latents.items():
        node = tree[name]
        assert node["z"].dtype == np.float32
        assert node["z"].dims == ("image", *(("channel", "y", "x") if granularity == "variate" else ("dimension",)))
        np.testing.assert_array_equal(node["z"], z)
        assert node["label"].values.tolist() == store.labels
        places = store.columns.coordinates[int(name[1:])]
        for axis, place in zip(("group", "variate", "y", "x"), places.T, strict=False):
            np.testing.assert_array_equal(node[axis], place)


def test_figures_that_a_user_added_may_be_nan(store):
    added = {"image": np.arange(20) / 4, "aesthetic": np.arange(20.0), "rank": np.arange(20)}
    added["image"][7] = added["aesthetic"][3] = np.nan
    group = zarr.open_group(store.path, mode="r+")
    for name, values in added.items():
        group.create_array(name, data=values, dimension_names=["image"])
    store = open_store(store.path)
    assert store.frame.columns.tolist() == ["name", "label", "aesthetic", "image", "rank"]
    tree = store.to_xarray()
    for name, values in added.items():
        np.testing.assert_array_equal(store.frame[name], values)
        np.testing.assert_array_equal(tree[name], values)
    np.testing.assert_array_equal(tree["z4/z"].sel(image=1.25), store.latents(5)["z4"])


def test_any_index(store):
    z, expected = store.to_xarray()["z16/z"], store.latents(slice(None))["z16"]
    axis = z.dims[1]
    few = [1, 0]
    np.testing.assert_array_equal(z[7], expected[7])
    np.testing.assert_array_equal(z[-3:, 0], expected[-3:, 0])
    np.testing.assert_array_equal(z[::-6], expected[::-6])
    np.testing.assert_array_equal(z.isel(image=[8, 3, 8], **{axis: few}), expected[[8, 3, 8]][:, few])
    np.testing.assert_array_equal(z[4].isel({axis: 1}), expected[4, 1])
    pairs = xarray.DataArray([2, 19, 2], dims="pair")
    np.testing.assert_array_equal(
        z.isel({"image": pairs, axis: xarray.DataArray([1, 0, 0], dims="pair")}), expected[[2, 19, 2], [1, 0, 0]]
    )
    if z.ndim == 4:
        np.testing.assert_array_equal(z[5:9, 1, 2::5, [3, 1]], expected[5:9, 1, 2::5][..., [3, 1]])
    cats = z[z["label"] == "cat"]
    np.testing.assert_array_equal(cats, expected[1::2])
    np.testing.assert_allclose(z.mean("image"), expected.mean(axis=0), rtol=1e-5, atol=1e-5)


def test_latents_are_read_when_they_are_asked_for(store):
    shard = next(file for file in (store.path / "z4" / "c" / "1").rglob("*") if file.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    tree = open_store(store.path).to_xarray()
    assert tree["z4/z"][:8].shape[0] == 8
    with pytest.raises(StoreError, match="z4 is damaged at image 9"):
        _ = tree["z4/z"][9].values


def test_without_xarray_one_sentence_says_so(store, monkeypatch):
    monkeypatch.delitem(sys.modules, "hvae_codec.encode.xarray_view", raising=False)
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(UsageError, match=r"xarray, .*; pip install xarray"):
        store.to_xarray()
