from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec.data.sources import as_source
from hvae_codec.errors import DataError, ModelError, UsageError
from hvae_codec.model.checkpoint import model_hash
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.prune.kl_stats import KLStats, kl_stats, load_kl_stats, save_kl_stats


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches) -> KLStats:
    return kl_stats(tiny_model, photo_patches[:7], batch_size=7, sample=False)


def test_a_short_last_batch_weighs_what_it_should(tiny_model, photo_patches, stats):
    short = kl_stats(tiny_model, photo_patches[:7], batch_size=3, sample=False)
    assert short.images == stats.images == 7
    for a, b in zip(short.kl_bits + short.posterior_std, stats.kl_bits + stats.posterior_std, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * b.max())


def test_shapes_and_what_they_add_up_to(tiny_model, photo_patches, stats):
    groups = tiny_model.config.groups
    assert [kl.shape for kl in stats.kl_bits] == [(g.variates, g.resolution, g.resolution) for g in groups]
    assert [std.shape for std in stats.posterior_std] == [(g.variates,) for g in groups]
    assert [kl.shape for kl in stats.per_variate] == [(g.variates,) for g in groups]
    assert all(kl.dtype == np.float64 and (kl >= 0).all() for kl in stats.kl_bits)
    for variate, group, bits in zip(stats.per_variate, groups, stats.per_group, strict=True):
        assert variate.sum() * group.resolution**2 == pytest.approx(bits)


def test_averages_are_over_images(tiny_model, photo_patches, stats):
    one_by_one = [kl_stats(tiny_model, photo_patches[i : i + 1], sample=False) for i in range(7)]
    for i, kl in enumerate(stats.kl_bits):
        np.testing.assert_allclose(kl, np.mean([s.kl_bits[i] for s in one_by_one], axis=0), rtol=1e-5, atol=5e-8)


def test_sampled_statistics_are_the_rate(tiny_model, photo_patches):
    stats = kl_stats(tiny_model, photo_patches[:7], batch_size=3, seed=3)
    last = len(tiny_model.config.groups) - 1
    drawn = keyed_noise(tiny_model.config, [(3, image) for image in range(7)], "cpu", last)

    def noise(group) -> torch.Tensor:  # no KL depends on the last group's z
        return torch.zeros_like(group.prior.mean) if group.index == last else drawn(group)

    with torch.no_grad():
        nats = tiny_model(torch.from_numpy(photo_patches[:7]), noise).kl.sum(dim=0).mean().item()
    assert stats.per_group.sum() * np.log(2.0) == pytest.approx(nats, rel=1e-5)


def test_posterior_std_is_the_models(tiny_model, photo_patches, stats):
    seen = []

    def choose(group) -> torch.Tensor:
        seen.append(group.posterior().std.mean(dim=(0, 2, 3)).numpy())
        return group.posterior().mean

    with torch.no_grad():
        tiny_model.top_down(tiny_model.activations(torch.from_numpy(photo_patches[:7])), choose, 7)
    for a, b in zip(stats.posterior_std, seen, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("codes", [False, True])
def test_the_largest_means_are_the_models(tiny_config, tiny_model, photo_patches, codes):
    """Exactly, and in batches of any size; of a model with learned steps, of its rounded means."""
    model = tiny_model
    if codes:
        model = HVAE(replace(tiny_config.model, learned_steps=True)).eval().requires_grad_(False)
        model.load_state_dict(tiny_model.state_dict(), strict=False)
    images = photo_patches[:7]
    found, seen = kl_stats(model, images, batch_size=7, sample=False).largest_mean, []

    def choose(group) -> torch.Tensor:
        z = group.rounded_posterior()[0] if codes else group.posterior().mean
        seen.append(z.abs().amax(dim=(0, 2, 3)).double().numpy())
        return z

    with torch.no_grad():
        model.top_down(model.activations(torch.from_numpy(images)), choose, 7)
    assert found is not None
    for a, b in zip(found, seen, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a > 0).all() or codes
    one_by_one = [kl_stats(model, images[i : i + 1], sample=False).largest_mean for i in range(7)]
    for group, largest in enumerate(found):
        np.testing.assert_allclose(np.max([each[group] for each in one_by_one], axis=0), largest, rtol=1e-4, atol=1e-6)


def test_sources_arrays_and_tensors_give_the_same(tiny_model, photo_patches):
    images = photo_patches[:4]
    all_stats = [kl_stats(tiny_model, x) for x in (images, torch.from_numpy(images), as_source(images))]
    for stats in all_stats[1:]:
        for a, b in zip(stats.kl_bits, all_stats[0].kl_bits, strict=True):
            np.testing.assert_array_equal(a, b)
        assert stats.source == all_stats[0].source
    assert all_stats[0].model_hash == model_hash(tiny_model)


@pytest.mark.slow
def test_the_seed_decides(tiny_model, photo_patches):
    first, again, other = (kl_stats(tiny_model, photo_patches[:4], seed=s).per_group for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first[1:] != other[1:]).any()


def test_progress_counts_images(tiny_model, photo_patches):
    seen: list[tuple[int, int]] = []
    kl_stats(tiny_model, photo_patches[:7], batch_size=3, progress=lambda *args: seen.append(args))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_images_that_do_not_fit(tiny_model, photo_patches, cut_patches):
    with pytest.raises(DataError, match=r"this model takes \[3, 16, 16\]"):
        kl_stats(tiny_model, cut_patches(2, 32))
    with pytest.raises(DataError):
        kl_stats(tiny_model, photo_patches[:0])
    with pytest.raises(DataError, match="no images to measure"):
        kl_stats(tiny_model, as_source(photo_patches).subset([]))
    with pytest.raises(DataError, match="give uint8"):
        kl_stats(tiny_model, photo_patches.astype(np.float32))
    with pytest.raises(UsageError, match="batch size is 0"):
        kl_stats(tiny_model, photo_patches, batch_size=0)


def test_a_broken_model_is_told(tiny_config, tiny_model, photo_patches):
    model = HVAE(tiny_config.model)
    model.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        model.top_down.blocks[1].posterior_conv.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="latent group 1 is not finite"):
        kl_stats(model, photo_patches[:2])


# --- files


def test_file_round_trip(tmp_path: Path, stats: KLStats):
    path = tmp_path / "new" / "kl.npz"
    save_kl_stats(path, stats)
    loaded = load_kl_stats(path)
    assert (loaded.images, loaded.model_hash, loaded.source) == (7, stats.model_hash, stats.source)
    for name in ("kl_bits", "posterior_std", "largest_mean"):
        for a, b in zip(getattr(loaded, name), getattr(stats, name), strict=True):
            np.testing.assert_array_equal(a, b)
    assert [p.name for p in path.parent.iterdir()] == ["kl.npz"]
    with np.load(path, allow_pickle=False) as plain:
        assert "kl_bits_0" in plain.files


def test_a_file_without_maxima_is_read(tmp_path: Path, stats: KLStats):
    """As rankings of older versions are."""
    save_kl_stats(tmp_path / "kl.npz", replace(stats, largest_mean=None))
    with np.load(tmp_path / "kl.npz", allow_pickle=False) as plain:
        assert len(plain.files) == 1 + 2 * len(stats.kl_bits)
    loaded = load_kl_stats(tmp_path / "kl.npz")
    assert loaded.largest_mean is None
    np.testing.assert_array_equal(loaded.kl_bits[0], stats.kl_bits[0])


def test_more_than_ten_groups_keep_their_order(tmp_path: Path):
    kl = tuple(np.full((1, 1, 1), float(i)) for i in range(23))
    save_kl_stats(tmp_path / "kl.npz", KLStats(kl, tuple(k[:, 0, 0] for k in kl), 1, ""))
    assert load_kl_stats(tmp_path / "kl.npz").per_group.tolist() == list(range(23))


def test_missing_files(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no ranking at .*kl.npz; make"):
        load_kl_stats(tmp_path / "kl.npz")


def damaged(raw: bytes, damage: str) -> bytes:
    if damage == "flipped":
        middle = len(raw) // 2
        return raw[:middle] + bytes(b ^ 0xFF for b in raw[middle : middle + 40]) + raw[middle + 40 :]
    return {"empty": b"", "cut": raw[: len(raw) // 2], "text": b"not an archive"}[damage]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped"])
def test_damaged_files(tmp_path: Path, stats: KLStats, damage: str):
    path = tmp_path / "kl.npz"
    save_kl_stats(path, stats)
    path.write_bytes(damaged(path.read_bytes(), damage))
    with pytest.raises(ModelError, match="cannot read the ranking"):
        load_kl_stats(path)


def test_every_flipped_byte_is_found(tmp_path: Path):
    """Flips anywhere give the same statistics (in unused header fields) or an error of this package."""
    path = tmp_path / "kl.npz"
    values = np.random.default_rng(0).random((2, 3, 3))
    save_kl_stats(path, KLStats((values,), (values[:, 0, 0],), 4, "hash"))
    raw = path.read_bytes()
    for i in range(0, len(raw), max(1, len(raw) // 150)):
        path.write_bytes(raw[:i] + bytes([raw[i] ^ 0x10]) + raw[i + 1 :])
        try:
            loaded = load_kl_stats(path)
        except ModelError:
            continue
        assert zlib.crc32(loaded.kl_bits[0].tobytes()) == zlib.crc32(values.tobytes())


def test_other_arrays_are_no_ranking(tmp_path: Path):
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    np.savez(tmp_path / "list.npz", header=np.array("[1]"))
    with open(tmp_path / "one.npz", "wb") as file:
        np.save(file, np.zeros(3))
    for name in ("other", "list", "one"):
        with pytest.raises(ModelError, match="cannot read the ranking"):
            load_kl_stats(tmp_path / f"{name}.npz")


def test_a_sampled_average_does_not_depend_on_the_batches(tiny_model, photo_patches):
    """An image's noise is its own, whatever the batch it is in."""
    one, two = (kl_stats(tiny_model, photo_patches[:5], batch_size=size) for size in (2, 5))
    for a, b in zip(one.kl_bits, two.kl_bits, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * b.max())
