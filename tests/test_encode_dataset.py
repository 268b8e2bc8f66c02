"""A store as a torch data set: the store's own latents in any process, each image once an epoch, chunks read once."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

from hvae_codec import LatentDataset, RowGroupSampler, open_store
from hvae_codec.errors import StoreError, UsageError
from hvae_codec.store import shards
from stores import GRANULARITIES, make_spec, make_store

LABELS = ["dog", "cat", "", "ant"]


@pytest.fixture(scope="module", params=GRANULARITIES)
def store(request, tmp_path_factory):
    labels = [LABELS[i % 4] for i in range(30)]
    spec = make_spec(30, granularity=request.param, labels=labels)
    return make_store(tmp_path_factory.mktemp("stores") / "out.zarr", spec)


def assert_latents(actual, expected):
    assert actual.keys() == expected.keys()
    for name, z in actual.items():
        assert z.dtype == torch.float32
        np.testing.assert_array_equal(z.numpy(), expected[name])


@pytest.mark.parametrize("given_as", ["store", "path", "pickled"])
def test_an_item_is_an_images_latents_and_class(store, given_as):
    dataset = LatentDataset(store if given_as == "store" else store.path)
    if given_as == "pickled":
        dataset = pickle.loads(pickle.dumps(dataset))
    assert len(dataset) == 30
    assert dataset.classes == ["ant", "cat", "dog"]
    for index in (0, 7, 29, -1, np.int64(23), np.array(5), torch.tensor(5), torch.tensor(-2)):
        latents, label = dataset[index]
        assert_latents(latents, store.latents(index))
        assert label == {"ant": 0, "cat": 1, "dog": 2, "": -1}[store.labels[index]]
    with pytest.raises(UsageError, match="no image 30"):
        dataset[30]


def test_flat_items_and_transforms(store):
    flat = LatentDataset(store, labels=False, flat=True)
    expected = np.concatenate([z.ravel() for z in store.latents(5).values()])
    assert flat[5].shape == (store.kept_dims,)
    np.testing.assert_array_equal(flat[5], expected)
    doubled = LatentDataset(store, flat=True, transform=lambda z: z * 2)
    np.testing.assert_array_equal(doubled[5][0], expected * 2)
    np.testing.assert_array_equal(doubled[[4, 5]][0][1], expected * 2)
    assert doubled[[4, 5]][1].tolist() == [2, 1]


def test_a_list_of_indices_is_a_batch(store):
    chosen = [20, 3, 21, 3]
    latents, labels = LatentDataset(store)[chosen]
    everything = store.latents(slice(None))
    assert_latents(latents, {name: z[chosen] for name, z in everything.items()})
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 0, 1, 0]
    assert LatentDataset(store, labels=False)[[]]["z4"].shape == (0, *everything["z4"].shape[1:])


@pytest.mark.parametrize("batches_by_sampler", [True, False])
def test_a_loader_gives_every_image_once_an_epoch(store, batches_by_sampler):
    dataset, sampler = LatentDataset(store), RowGroupSampler(store, seed=3, window=2)
    if batches_by_sampler:
        loader = DataLoader(dataset, batch_size=None, sampler=BatchSampler(sampler, 8, drop_last=False))
    else:
        loader = DataLoader(dataset, batch_size=8, sampler=sampler)
    order, first = list(sampler), 0
    for latents, labels in loader:
        mine = order[first : first + len(labels)]
        assert_latents(latents, store.gather_latents(mine))
        assert labels.tolist() == [dataset[i][1] for i in mine]
        first += len(labels)
    assert first == 30
    sampler.set_epoch(1)
    assert list(sampler) != order
    assert sorted(sampler) == list(range(30))
    sampler.set_epoch(0)
    assert list(sampler) == order


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_read_the_same(store, start):
    if start == "spawn" and store.columns.granularity == "position":
        pytest.skip("a spawned process takes seconds to start")
    store.latents(0)  # what zarr has started in this process must not matter
    dataset = LatentDataset(store)
    loader = DataLoader(dataset, batch_size=16, num_workers=1, multiprocessing_context=start, timeout=60)
    latents = [latents for latents, _ in loader]
    for name, z in store.latents(slice(None)).items():
        np.testing.assert_array_equal(torch.cat([batch[name] for batch in latents]), z)


def test_an_epoch_decodes_each_chunk_once(tmp_path, monkeypatch):
    path = make_store(tmp_path / "out.zarr", make_spec(30)).path
    decoded, unpacker = [], shards.unpacker_of

    def counting(*given):
        unpack = unpacker(*given)

        def counted(compressed):
            chunk = unpack(compressed)
            decoded.append(chunk.nbytes)
            return chunk

        return counted

    monkeypatch.setattr(shards, "unpacker_of", counting)
    store = open_store(path)
    store.stored(slice(None))
    once = len(decoded)
    dataset = LatentDataset(open_store(path, cache_bytes=8 * 2 * (2 + 48 + 512) * 3 * 2))
    decoded.clear()
    for index in RowGroupSampler(dataset, window=2):
        dataset[index]
    assert len(decoded) == once


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_processes_share_an_epoch(store, window, replicas, epoch):
    samplers = [RowGroupSampler(store, window=window, rank=rank, replicas=replicas) for rank in range(replicas)]
    shares = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler) == 30 // replicas
    together = [i for share in shares for i in share]
    assert len(set(together)) == len(together)
    whole = RowGroupSampler(store, window=window)
    whole.set_epoch(epoch)
    assert list(whole)[: len(together)] == together


def test_samplers_that_cannot_be(store):
    with pytest.raises(UsageError, match="window is 0"):
        RowGroupSampler(store, window=0)
    with pytest.raises(UsageError, match=r"rank is 2 of 2; .*0 to 1"):
        RowGroupSampler(store, rank=2, replicas=2)
    with pytest.raises(UsageError, match=r"replicas is 31, .* 30 images"):
        RowGroupSampler(store, rank=0, replicas=31)


def test_damage_is_an_error_here_too(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    shard = next(file for file in (store.path / "z16" / "c" / "1").rglob("*") if file.is_file())
    shard.unlink()
    dataset = LatentDataset(store)
    assert dataset[7]
    with pytest.raises(StoreError, match=r"z16 lacks .* 8"):
        dataset[8]
