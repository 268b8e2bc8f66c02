"""The table of latent groups: sums to the KL of the model, in the units it says."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.report.groups import (
    GROUP_COLUMNS,
    group_rich_table,
    group_table,
    kept_group_bits,
    kl_histogram,
    resolution_table,
    save_groups,
)

IMAGE_DIMS = 3 * 16 * 16
ABOUT = {"images": 24, "model_hash": "0123"}


def stats_of(*kl_bits) -> KLStats:
    arrays = tuple(np.asarray(kl, dtype=np.float64) for kl in kl_bits)
    return KLStats(arrays, tuple(np.ones(len(kl)) for kl in arrays), 24, "0123")


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


def shown(table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def test_groups_add_up_to_the_model(stats, tiny_model, photo_patches):
    """The KL of all groups is the rate of the same images."""
    table = group_table(stats, IMAGE_DIMS)
    assert list(table.columns) == list(GROUP_COLUMNS)
    shapes = [(g.variates, g.resolution) for g in tiny_model.config.groups]
    assert list(zip(table["variates"], table["resolution"], strict=True)) == shapes
    assert table["dims"].sum() == tiny_model.config.latent_dims
    assert table["share"].sum() == pytest.approx(1.0)
    rate = tiny_model.elbo(torch.from_numpy(photo_patches)).rate
    assert table["kl"].sum() == pytest.approx(rate.mean().item(), rel=0.05), "up to the noise"


def test_known_values():
    """A quiet group beside one of two variates, of which one is active at 0.01 bits on average."""
    loud = np.zeros((2, 2, 2))
    loud[0] = [[0.04, 0.0], [0.0, 0.004]]
    loud[1] = 0.01
    table = group_table(stats_of(np.full((3, 1, 1), 0.02), loud), image_dims=10)
    assert table["kl"].tolist() == pytest.approx([0.006, 0.0084])
    assert table["share"].tolist() == pytest.approx([0.06 / 0.144, 0.084 / 0.144])
    assert table["active_variates"].tolist() == [3, 1], "exactly at the threshold is not above it"
    assert group_table(stats_of(loud), 10, threshold_bits=0.005)["active_variates"].tolist() == [2]


@pytest.mark.parametrize("granularity", ["variate", "position"])
def test_what_a_mask_keeps(stats, granularity):
    """All of it, or what is left when the pruned dimensions' KL is set to zero."""
    mask = LatentMask.from_keep(stats, 0.2, granularity=granularity)
    planes = zip(mask.keep, stats.kl_bits, strict=True)
    left = [np.where(keep if keep.ndim == 3 else keep[:, None, None], kl, 0.0).sum() for keep, kl in planes]
    np.testing.assert_allclose(kept_group_bits(stats, mask), left)
    np.testing.assert_allclose(kept_group_bits(stats, LatentMask.everything(stats)), stats.per_group)


def test_nothing_learnt_has_no_share():
    table = group_table(stats_of(np.zeros((2, 4, 4))), 48)
    assert table["kl"].tolist() == table["share"].tolist() == [0.0]


def test_histogram_counts_each_dimension_once(stats):
    histogram = kl_histogram(stats)
    assert histogram.sum(axis=1).tolist() == [kl.size for kl in stats.kl_bits]
    assert histogram.columns[0] == "dims_below_1e-05"
    assert histogram.columns[-1] == "dims_from_10"


def test_histogram_bounds():
    """A bound is in the bin above it; rounding below zero and hundreds of bits are in the outer bins."""
    kl = np.array([-1e-12, 9e-6, 1e-5, 5e-4, 1e-3, 0.5, 1.0, 10.0, 300.0]).reshape(9, 1, 1)
    assert kl_histogram(stats_of(kl)).iloc[0].tolist() == [2, 1, 1, 1, 0, 1, 1, 2]


def test_files_agree(stats, tmp_path):
    save_groups(tmp_path / "new", stats, IMAGE_DIMS, ABOUT)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["groups.csv", "groups.json"]
    document = json.loads((tmp_path / "new" / "groups.json").read_text())
    assert document["about"] == ABOUT
    assert document["active_above_bits"] == 0.01
    assert len(document["histogram_edges_bits"]) == 7
    table = group_table(stats, IMAGE_DIMS)
    from_csv = pd.read_csv(tmp_path / "new" / "groups.csv")
    for frame in (from_csv, pd.DataFrame(document["groups"])):
        pd.testing.assert_frame_equal(frame[table.columns], table)
    histogram = np.array([row["histogram"] for row in document["groups"]])
    assert (from_csv.filter(like="dims_").to_numpy() == histogram).all()


def test_terminal(stats):
    """Few groups one by one; those of a deep model by resolution, with the same sums."""
    text = shown(group_rich_table(group_table(stats, IMAGE_DIMS)))
    assert "KL by latent group" in text
    assert "2 × 2" in text
    deep = stats_of(*[np.full((4, r, r), 0.02) for r in (1, 4, 8) for _ in range(22)])
    table = group_table(deep, IMAGE_DIMS)
    text = shown(group_rich_table(table))
    assert "66 latent groups" in text
    assert text.count("88 of 88") == 3
    assert len(text.splitlines()) < 15
    by_resolution = resolution_table(table)
    assert by_resolution["resolution"].tolist() == [1, 4, 8]
    assert by_resolution["groups"].tolist() == [22, 22, 22]
    assert by_resolution["kl"].sum() == pytest.approx(table["kl"].sum())
