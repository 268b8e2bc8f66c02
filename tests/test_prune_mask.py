from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.errors import ModelError, UsageError
from hvae_codec.prune.kl_stats import KLStats
from hvae_codec.prune.mask import LatentMask, load_mask, save_mask
from hvae_codec_cli.cutoffs import parse_keep

FRACTIONS = st.floats(1e-6, 1.0)


def make_stats(shapes: list[tuple[int, int]], kl: list[float]) -> KLStats:
    """Statistics of groups (variates, resolution) whose variates have the average KL `kl`."""
    values = iter(kl)
    kl_bits = tuple(np.array([np.full((r, r), next(values)) for _ in range(v)]) for v, r in shapes)
    return KLStats(kl_bits, tuple(np.ones(v) for v, _ in shapes), 10, "hash")


@st.composite
def any_stats(draw: st.DrawFn, *, unique: bool = False) -> KLStats:
    shapes = draw(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 4, 8])), min_size=1, max_size=5))
    count = sum(v for v, _ in shapes)
    # Eighths are exact in float64, so averages over positions keep ties and order.
    values = st.integers(0, 10_000) if unique else st.integers(0, 6)
    kl = draw(st.lists(values.map(lambda n: n / 8), min_size=count, max_size=count, unique=unique))
    return make_stats(shapes, kl)


def flat(mask: LatentMask) -> np.ndarray:
    return np.concatenate(mask.keep)


@given(any_stats(), FRACTIONS)
def test_at_most_the_fraction_of_dimensions_or_one_variate(stats: KLStats, fraction: float):
    mask = LatentMask.from_keep(stats, fraction)
    assert mask.dims == sum(kl.size for kl in stats.kl_bits)
    assert mask.kept_variates >= 1
    assert mask.kept_dims <= fraction * mask.dims + 1e-6 or mask.kept_variates == 1


@given(any_stats(), FRACTIONS)
def test_kept_variates_are_ranked_above_the_others(stats: KLStats, fraction: float):
    keep, kl = flat(LatentMask.from_keep(stats, fraction)), np.concatenate(stats.per_variate)
    assert kl[keep].min() >= kl[~keep].max(initial=-1)


@given(any_stats(), st.lists(FRACTIONS, min_size=2, max_size=5))
def test_masks_nest(stats: KLStats, fractions: list[float]):
    masks = [flat(LatentMask.from_keep(stats, fraction)) for fraction in sorted(fractions)]
    for smaller, larger in pairwise(masks):
        assert (smaller <= larger).all()


@given(any_stats())
def test_100_percent_keeps_all(stats: KLStats):
    """The published strict comparison could not."""
    mask = LatentMask.from_keep(stats, 1.0)
    assert flat(mask).all()
    assert mask.kept_dims == mask.dims


@given(any_stats(unique=True), FRACTIONS)
def test_every_keep_fraction_is_a_cutoff(stats: KLStats, fraction: float):
    mask, kl = LatentMask.from_keep(stats, fraction), np.concatenate(stats.per_variate)
    below = kl[~flat(mask)].max(initial=-1.0)
    np.testing.assert_array_equal(flat(LatentMask.from_cutoff(stats, below)), flat(mask))


def test_dimensions_are_counted_not_variates():
    """Half of the variates hold 4 of 260 dimensions; 3% is 7.8."""
    stats = make_stats([(4, 1), (4, 8)], [5, 4, 3, 2, 1, 1, 1, 1])
    mask = LatentMask.from_keep(stats, 0.03)
    assert mask.kept_dims == 4
    assert [k.tolist() for k in mask.keep] == [[True] * 4, [False] * 4]
    assert LatentMask.from_keep(stats, 68 / 260).kept_dims == 68


def test_the_first_variate_that_does_not_fit_ends_the_list():
    stats = make_stats([(1, 1), (1, 8), (1, 1)], [3, 2, 1])
    assert [k.tolist() for k in LatentMask.from_keep(stats, 0.1).keep] == [[True], [False], [False]]


def test_ties_go_to_the_earlier_one():
    mask = LatentMask.from_keep(make_stats([(4, 1)], [1, 1, 1, 1]), 0.5)
    assert mask.keep[0].tolist() == [True, True, False, False]


def test_a_whole_number_of_dimensions_is_not_lost_to_rounding():
    stats = make_stats([(100, 1)], list(range(100)))
    for percent in range(1, 101):
        assert LatentMask.from_keep(stats, percent / 100).kept_dims == percent
        assert LatentMask.from_keep(stats, parse_keep(f"{percent}%")).kept_dims == percent


def test_at_least_one_variate_is_kept():
    mask = LatentMask.from_keep(make_stats([(2, 8)], [1, 2]), 1e-9)
    assert mask.keep[0].tolist() == [False, True]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_fractions_that_cannot_be(fraction: float):
    with pytest.raises(UsageError, match="above 0% and at most 100%"):
        LatentMask.from_keep(make_stats([(2, 1)], [1, 2]), fraction)


@pytest.mark.parametrize("bits", [2.0, 99.0, float("nan"), float("inf")])
def test_cutoffs_that_keep_nothing(bits: float):
    with pytest.raises(UsageError, match="no variate has more than"):
        LatentMask.from_cutoff(make_stats([(2, 1)], [1, 2]), bits)


def test_cutoff_is_strict_and_in_bits_per_dimension():
    mask = LatentMask.from_cutoff(make_stats([(2, 1), (2, 8)], [1, 2, 3, 0.5]), 1.0)
    assert [k.tolist() for k in mask.keep] == [[False, True], [True, False]]
    assert (mask.kept_dims, mask.kept_variates, mask.groups_needed) == (65, 2, 2)


def test_groups_after_the_last_kept_one_are_not_needed():
    mask = LatentMask.from_cutoff(make_stats([(2, 1), (2, 2), (3, 8)], [0, 9, 0, 0, 0, 0, 0]), 1.0)
    assert mask.groups_needed == 1
    assert LatentMask((np.zeros(2, bool),), (1,)).groups_needed == 0


def test_tensors_broadcast_against_z():
    mask = LatentMask.from_cutoff(make_stats([(2, 1), (3, 2)], [0, 9, 1, 0, 2]), 0.5)
    tensors = mask.tensors("cpu")
    assert [t.shape for t in tensors] == [(2, 1, 1), (3, 1, 1)]
    assert [t.dtype for t in tensors] == [torch.bool] * 2
    assert torch.where(tensors[1], 1, 0).expand(5, 3, 2, 2)[0, :, 0, 0].tolist() == [1, 0, 1]
    tensors[0].fill_(True)
    assert mask.keep[0].tolist() == [False, True]


# --- JSON


@given(any_stats(), FRACTIONS)
def test_json_round_trip(stats: KLStats, fraction: float):
    mask = LatentMask.from_keep(stats, fraction)
    loaded = LatentMask.from_dict(json.loads(json.dumps(mask.to_dict())))
    assert loaded.resolutions == mask.resolutions
    assert loaded.model_hash == mask.model_hash == "hash"
    assert [k.tolist() for k in loaded.keep] == [k.tolist() for k in mask.keep]


def group(**changes: object) -> dict:
    return {"model_hash": "", "groups": [{"resolution": 2, "variates": 3, "keep": [0, 2], **changes}]}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"groups": 3, "model_hash": ""},
        {"groups": [3], "model_hash": ""},
        {"groups": []},
        group(keep=[3]),
        group(keep="all"),
        group(keep=[0.5]),
        group(keep=None),
        group(variates="many"),
        group(variates=-1),
        group(keep=[-1]),
    ],
)
def test_damaged_masks(data: object):
    with pytest.raises(ModelError, match="the mask is damaged"):
        LatentMask.from_dict(data)


@pytest.mark.parametrize("data", [[], 3, None, "mask"])
def test_a_mask_that_is_no_table_is_said_so(data: object):
    with pytest.raises(ModelError, match="it is no table of keys"):
        LatentMask.from_dict(data)


def test_an_undamaged_mask():
    assert LatentMask.from_dict(group()).keep[0].tolist() == [True, False, True]


# --- single positions, the published count, files


@st.composite
def uneven_stats(draw: st.DrawFn) -> KLStats:
    """Statistics whose KL differs from position to position, with ties."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 4])), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    kl = tuple(generator.integers(0, 40, (v, r, r)) / 8 for v, r in shapes)
    return KLStats(kl, tuple(np.ones(v) for v, _ in shapes), 10, "hash")


def positions(mask: LatentMask) -> np.ndarray:
    return np.concatenate([keep.ravel() for keep in mask.keep])


@given(uneven_stats(), FRACTIONS)
def test_positions_are_counted_and_ranked_by_their_own_kl(stats: KLStats, fraction: float):
    mask = LatentMask.from_keep(stats, fraction, granularity="position")
    assert mask.granularity == "position"
    assert mask.kept_dims == max(1, int(fraction * mask.dims + 1e-6)) == positions(mask).sum()
    kl = np.concatenate([kl.ravel() for kl in stats.kl_bits])
    assert kl[positions(mask)].min() >= kl[~positions(mask)].max(initial=-1)
    assert mask.kept_variates == sum(keep.any(axis=(1, 2)).sum() for keep in mask.keep)
    shapes = [(len(kl), kl.shape[1], kl.shape[2]) for kl in stats.kl_bits]
    assert [tensor.shape for tensor in mask.tensors("cpu")] == shapes


@given(uneven_stats(), FRACTIONS, st.sampled_from(["variate", "position"]))
def test_a_cutoff_is_where_the_pruned_begin(stats: KLStats, fraction: float, granularity):
    mask = LatentMask.from_keep(stats, fraction, granularity=granularity)
    bits = mask.cutoff_bits(stats)
    if mask.kept_dims == mask.dims:
        assert bits == 0.0
        return
    best = max(kl.max() for kl in (stats.kl_bits if granularity == "position" else stats.per_variate))
    if bits < best:  # else what is kept ties with what is not
        again = LatentMask.from_cutoff(stats, bits, granularity=granularity)
        assert again.kept_dims <= mask.kept_dims
        assert all((a <= b).all() for a, b in zip(again.keep, mask.keep, strict=True))


@given(uneven_stats(), st.sampled_from(["variate", "position"]))
def test_ranks_count_what_is_kept(stats: KLStats, granularity):
    units = sum(kl.size if granularity == "position" else len(kl) for kl in stats.kl_bits)
    masks = [LatentMask.from_rank(stats, kept, granularity=granularity) for kept in range(1, units + 1)]
    assert [positions(mask).sum() for mask in masks] == list(range(1, units + 1))
    for smaller, larger in pairwise(masks):
        assert (positions(smaller) <= positions(larger)).all()


@given(uneven_stats(), FRACTIONS, st.sampled_from(["variate", "position"]))
def test_json_of_either_granularity(stats: KLStats, fraction: float, granularity):
    mask = LatentMask.from_keep(stats, fraction, granularity=granularity)
    loaded = LatentMask.from_dict(json.loads(json.dumps(mask.to_dict())))
    assert (loaded.granularity, loaded.resolutions, loaded.model_hash) == (granularity, mask.resolutions, "hash")
    for a, b in zip(loaded.keep, mask.keep, strict=True):
        np.testing.assert_array_equal(a, b)


def test_kept_positions_are_ranges_that_a_person_can_read():
    keep = np.zeros((3, 4, 4), bool)
    keep[1, 0, :3] = keep[1, 2, 2] = keep[2] = True
    data = LatentMask((keep,), (4,)).to_dict()
    assert data["granularity"] == "position"
    assert data["groups"] == [{"resolution": 4, "variates": 3, "keep": {"1": "0-2 10", "2": "0-15"}}]


def test_masks_that_prune_the_first_groups_alike():
    first, second = (
        LatentMask((np.array([True, False]), np.array([kept, True])), (1, 2), "hash") for kept in (False, True)
    )
    assert (first.same_groups(second), first.same_groups(first)) == (1, 2)
    single = LatentMask(tuple(np.ones((2, r, r), bool) for r in (1, 2)), (1, 2), "hash")
    whole = LatentMask(tuple(np.ones(2, bool) for r in (1, 2)), (1, 2), "hash")
    assert whole.same_groups(single) == 0  # what is stored of them has other shapes


@pytest.mark.parametrize(("fraction", "kept"), [(0.5, 2), (0.25, 1), (0.26, 1), (0.75, 3), (0.01, 1), (1.0, 4)])
def test_the_published_count_is_of_variates(fraction: float, kept: int):
    """Strictly above the quantile, whatever the resolution."""
    stats = make_stats([(2, 1), (2, 8)], [1, 3, 4, 2])
    mask = LatentMask.from_keep(stats, fraction, count="variates")
    assert mask.kept_variates == kept
    kl = np.concatenate(stats.per_variate)
    if fraction < 1:
        np.testing.assert_array_equal(flat(mask), kl > np.quantile(kl, 1 - fraction))


def test_the_published_count_at_ties():
    assert flat(LatentMask.from_keep(make_stats([(4, 1)], [2, 2, 1, 1]), 0.5, count="variates")).sum() == 2
    assert flat(LatentMask.from_keep(make_stats([(4, 1)], [2, 2, 2, 1]), 0.5, count="variates")).tolist() == [
        True,
        False,
        False,
        False,
    ]
    with pytest.raises(UsageError, match="--count variates counts whole variates"):
        LatentMask.from_keep(make_stats([(2, 1)], [1, 2]), 0.5, granularity="position", count="variates")


def test_masks_in_files(tmp_path):
    mask = LatentMask.from_keep(make_stats([(2, 1), (3, 4)], [5, 1, 4, 3, 2]), 0.5)
    save_mask(tmp_path / "new" / "mask.json", mask)
    loaded = load_mask(str(tmp_path / "new" / "mask.json"))
    assert [k.tolist() for k in loaded.keep] == [k.tolist() for k in mask.keep]
    with pytest.raises(ModelError, match=r"cannot read .*nowhere.json \(No such"):
        load_mask(tmp_path / "nowhere.json")
    with pytest.raises(ModelError, match="cannot read the mask"):
        load_mask(tmp_path)
    for text in ("", "[", "[1]", "3", '{"groups": []}', "\0"):
        (tmp_path / "torn.json").write_text(text)
        with pytest.raises(ModelError, match=r"torn.json: the mask is"):
            load_mask(tmp_path / "torn.json")
    (tmp_path / "torn.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"torn.json: the mask is"):
        load_mask(tmp_path / "torn.json")


@pytest.mark.parametrize(
    "keep", [{"3": "0"}, {"0": "4"}, {"0": "0-4"}, {"0": "-1"}, {"0": "a"}, {"0": 3}, {"x": "0"}, [0], {}]
)
def test_damaged_position_masks(keep: object):
    data = {"granularity": "position"} | group(keep=keep)
    with pytest.raises(ModelError, match="the mask is damaged"):
        LatentMask.from_dict(data)
    with pytest.raises(ModelError, match="the mask is damaged"):
        LatentMask.from_dict(group() | {"granularity": "pixel"})
