"""What the bytes of a store are: every file is counted once, as what it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from hvae_codec import LatentMask, encode_images, kl_stats, open_store
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.report.about import describe
from hvae_codec.store.disk_use import DiskUse, disk_use
from stores import make_spec, make_store, records_of, tree


def sizes_of(store, *arrays: str) -> int:
    """Bytes of all chunks and shards of arrays."""
    files = tree(store.path)
    return sum(len(content) for name, content in files.items() if name.startswith(tuple(f"{a}/c/" for a in arrays)))


def test_every_file_is_counted_as_what_it_is(tiny_model, photo_patches, tmp_path):
    stats = kl_stats(tiny_model, photo_patches)
    how = {"mask": LatentMask.from_keep(stats, 0.3), "stats": stats}
    how |= {"options": EncodeOptions(evaluate=True, embed="whole")}
    store = encode_images(tiny_model, photo_patches, tmp_path / "out.zarr", **how)
    use = disk_use(store)
    assert use.latents == sizes_of(store, *(f"z{r}" for r in store.resolutions))
    assert use.names_and_labels == sizes_of(store, "name", "label")
    assert use.records == sizes_of(store, "split", "file_bytes", "checksum")
    assert use.figures == sizes_of(store, "rate", "distortion")
    assert use.model == sizes_of(store, "model")
    assert min(use.parts().values()) > 0
    assert use.total == store.nbytes_on_disk()
    assert (facts := describe(store.path)).data["bytes_by_part"] == use.parts()
    assert json.loads(json.dumps(facts.data)) == facts.data


@pytest.mark.parametrize("records", [{}, records_of(20)], ids=["version 1", "version 4"])
def test_stores_of_all_versions(tmp_path, records):
    store = make_store(tmp_path / "out.zarr", make_spec(20, **records))
    use = disk_use(store)
    assert (use.records > 0) == bool(records)
    assert (use.figures, use.model) == (0, 0)
    assert use.total == sum(map(len, tree(store.path).values()))


def test_figures_that_a_user_adds_are_figures(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    before = disk_use(store)
    group = zarr.open_group(store.path, mode="r+")
    group.create_array("score", data=np.arange(len(store), dtype=np.float32), dimension_names=["image"])
    after = disk_use(open_store(store.path))
    assert after.figures == sizes_of(store, "score") > 0
    assert (after.latents, after.names_and_labels) == (before.latents, before.names_and_labels)


def test_an_empty_use_has_no_bytes():
    assert DiskUse().total == 0
