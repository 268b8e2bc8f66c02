"""Encoding and measuring Parquet files reads each row group once, and gives what the images in a folder do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hvae_codec import LatentMask, encode_images, kl_stats, open_images
from hvae_codec.data import parquet_groups
from hvae_codec.encode.pipeline import EncodeOptions
from photos import save_png

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read, original = [], parquet_groups.ParquetGroups.read
    monkeypatch.setattr(
        parquet_groups.ParquetGroups, "read", lambda self, group: read.append(group) or original(self, group)
    )
    return read


def test_each_row_group_is_read_once(tmp_path: Path, cut_patches, tiny_model, read: list[int]):
    for i, patch in enumerate(cut_patches(23)):
        save_png(tmp_path / "x" / f"{i:02d}.png", patch)
    files = [path.read_bytes() for path in sorted((tmp_path / "x").iterdir())]
    pq.write_table(pa.table({"image": files}), tmp_path / "x.parquet", row_group_size=3)
    folder, source = (open_images(tmp_path / name, size=16, channels=3) for name in ("x", "x.parquet"))
    stats = kl_stats(tiny_model, folder)
    options = EncodeOptions(batch_size=4, row_group_size=8)
    mask = LatentMask.from_keep(stats, 0.5)
    stores = [
        encode_images(tiny_model, images, tmp_path / f"{i}.zarr", mask=mask, stats=stats, options=options)
        for i, images in enumerate((folder, source))
    ]
    assert sorted(read) == list(range(8))
    for latents, expected in zip(
        stores[1].latents(slice(23)).values(), stores[0].latents(slice(23)).values(), strict=True
    ):
        np.testing.assert_array_equal(latents, expected)
    read.clear()
    sample = open_images(tmp_path / "x.parquet", size=16, channels=3).evenly(6)
    kl_stats(tiny_model, sample, batch_size=2)
    assert sorted(read) == sorted(set(read))
    assert len(read) <= 6
