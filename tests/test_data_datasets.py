"""Python data sets: what torchvision's and Hugging Face's give, and classes of a user's own."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from hvae_codec import ImageSource, LatentMask, encode_images, kl_stats, open_images, open_store
from hvae_codec.data.sources import as_source
from hvae_codec.data.survey import survey
from hvae_codec.encode.append import append
from hvae_codec.errors import DataError
from hvae_codec.train.loop import TrainOptions, train
from photos import save_png


class Photos(Dataset):
    """Gives what `make` makes of a patch and its number, and counts how often."""

    def __init__(self, patches: np.ndarray, make=lambda patch, i: (Image.fromarray(patch.transpose(1, 2, 0)), i % 3)):
        self.patches, self.make, self.asked, self.lock = patches, make, 0, threading.Lock()

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, i: int):
        assert self.lock.acquire(blocking=False), "two threads at once"
        self.asked += 1
        try:
            return self.make(self.patches[i], i)
        finally:
            self.lock.release()


@pytest.fixture
def patches(photo_patches) -> np.ndarray:
    return photo_patches[:8]


def opened(dataset: object, **options: bool) -> ImageSource:
    return open_images(dataset, size=16, channels=3, **options)


def hwc(patch: np.ndarray) -> np.ndarray:
    return patch.transpose(1, 2, 0)


FORMS = {
    "pillow": lambda patch, i: Image.fromarray(hwc(patch)),
    "pillow and label": lambda patch, i: (Image.fromarray(hwc(patch)), i),
    "array": lambda patch, i: hwc(patch),
    "tensor and label": lambda patch, i: (torch.from_numpy(patch.copy()), torch.tensor(i)),
    "dict": lambda patch, i: {"image": Image.fromarray(hwc(patch)), "label": i},
    "palette": lambda patch, i: Image.fromarray(hwc(patch)).convert("RGBA"),
}


@pytest.mark.parametrize("form", [*FORMS])
def test_what_a_data_set_may_give(patches: np.ndarray, form: str):
    source = opened(Photos(patches, FORMS[form]))
    assert source.names == tuple(f"{i:08d}" for i in range(8))
    assert source.labels == tuple(str(i) if "label" in form or form == "dict" else "" for i in range(8))
    np.testing.assert_array_equal(source.read([3, 0, 7]), patches[[3, 0, 7]])
    np.testing.assert_array_equal(np.concatenate([*source.batches(2)]), patches)
    assert source.alpha_dropped == (8 if form == "palette" else 0)


def test_pixels_are_those_of_files(patches: np.ndarray, tmp_path: Path):
    for i, patch in enumerate(patches):
        save_png(tmp_path / f"{i}.png", patch)
    files = open_images(tmp_path, size=12, channels=3)
    source = open_images(Photos(patches), size=12, channels=3)
    np.testing.assert_array_equal(source.read(range(8)), files.read(range(8)))
    assert source.resized == 8


def test_labels_of_torchvision_are_read_without_images(patches: np.ndarray):
    dataset = Photos(patches)
    dataset.targets, dataset.classes = torch.tensor([i % 2 for i in range(8)]), ["cat", "dog"]
    assert opened(dataset).labels == ("cat", "dog") * 4
    assert dataset.asked == 0
    assert opened(Subset(dataset, [1, 3])).labels == ("1", "0")
    assert opened(TensorDataset(torch.from_numpy(patches), torch.arange(8))).labels[7] == "7"


def test_labels_of_hugging_face_are_a_column(patches: np.ndarray):
    class Columns(Photos):
        column_names, features = ("image", "label"), {"label": SimpleNamespace(names=["cat", "dog"])}

        def __getitem__(self, key):
            return [i % 2 for i in range(8)] if key == "label" else super().__getitem__(key)

    dataset = Columns(patches, FORMS["dict"])
    source = opened(dataset)
    assert source.labels == ("cat", "dog") * 4
    assert dataset.asked == 0
    np.testing.assert_array_equal(source.read([5]), patches[5:6])


def test_a_fingerprint_sees_the_pixels(patches: np.ndarray):
    assert opened(Photos(patches)).fingerprint == opened(Photos(patches.copy())).fingerprint
    changed = patches.copy()
    changed[0, 0, 0, 0] ^= 1
    assert opened(Photos(changed)).fingerprint != opened(Photos(patches)).fingerprint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda patch, i: torch.from_numpy(patch / 255), r"Photos/0{8} is a Tensor of float64 \[3, 16, 16\]; give"),
        (lambda patch, i: (hwc(patch).astype(np.float32), 1), r"ndarray of float32 .*uint8"),
        (lambda patch, i: {"pixels": patch}, r"has pixels; call the image 'image'"),
        (lambda patch, i: Image.fromarray(patch[0]), r"is grey \(1 channel\)"),
        (lambda patch, i: Image.fromarray(patch[0].astype(np.uint16)), r"more than 8 bits"),
        (lambda patch, i: {}[i], r"Photos/0{8} is broken, truncated or unreadable \(0\)"),
    ],
)
def test_what_cannot_be_used_is_named(patches: np.ndarray, make, message: str):
    dataset = Photos(patches, make)
    dataset.targets = [0] * 8
    with pytest.raises(DataError, match=message):
        opened(dataset).read([0])
    with pytest.raises(DataError, match="none of the 8 images"):
        opened(dataset, skip_broken=True)


def test_an_empty_data_set_is_refused(patches: np.ndarray):
    with pytest.raises(DataError, match="no images in this Photos"):
        opened(Photos(patches[:0]))


def test_functions_that_take_images_take_data_sets(patches: np.ndarray, tiny_model):
    expected = kl_stats(tiny_model, patches)
    for dataset in (Photos(patches), [(hwc(patch), 0) for patch in patches]):
        np.testing.assert_array_equal(kl_stats(tiny_model, dataset).kl_bits[0], expected.kl_bits[0])
    assert as_source(Photos(patches, FORMS["array"])).size == 16
    with pytest.raises(DataError, match=r"Photos is 16 x 8, not square; .*open_images\(dataset, size"):
        kl_stats(tiny_model, Photos(patches[..., :8]))
    np.testing.assert_array_equal(as_source([*patches]).read([1]), patches[1:2])


@pytest.mark.slow
def test_a_key_of_images_is_chosen(patches: np.ndarray):
    dataset = Photos(patches, lambda patch, i: {"image": hwc(255 - patch), "img": hwc(patch)})
    source = opened(dataset, column="img")
    unread = source.checksums([2])  # before the image is decoded
    assert survey(source).sizes == {(16, 16): 8}
    np.testing.assert_array_equal(source.read([2]), patches[2:3])
    assert source.checksums([2]) == unread == opened(Photos(patches, FORMS["array"])).checksums([2])
    with pytest.raises(DataError, match=r"0{8} has image and img; .*column='image'"):
        opened(dataset).read([0])
    with pytest.raises(DataError, match=r"has image, img, but no 'x'; give one of these as column"):
        opened(dataset, column="x").read([0])
    with pytest.raises(DataError, match=r"is a ndarray, which has no column 'x'"):
        opened(Photos(patches, FORMS["array"]), column="x").read([0])


def test_a_data_set_is_trained_on_and_encoded(patches: np.ndarray, tiny_config, tiny_model, tmp_path: Path):
    config = replace(tiny_config, train=replace(tiny_config.train, steps=1, batch_size=2))
    result = train(tmp_path / "run", config, Photos(patches), Photos(patches[:2]), TrainOptions(tensorboard=False))
    assert result.step == 1
    mask = LatentMask.from_keep(kl_stats(tiny_model, patches), 0.5)
    stores = [
        encode_images(tiny_model, images, tmp_path / f"{i}.zarr", mask=mask)
        for i, images in enumerate((Photos(patches), patches))
    ]
    assert list(stores[0].labels) == [str(i % 3) for i in range(8)]
    np.testing.assert_array_equal(stores[0].decode([5]), stores[1].decode([5]))
    append(tiny_model, Photos(patches[:3]), tmp_path / "0.zarr")
    assert open_store(tmp_path / "0.zarr").names[8:] == ["00000008", "00000009", "00000010"]


def test_what_is_done_to_files_is_done_to_images_of_a_data_set():
    """Grey among colour, alpha, 16 bits and a crop."""
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    rgba = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    images = [Image.fromarray(grey), Image.fromarray(rgba), rgba, grey, deep, np.dstack([grey] * 3)]
    how = {"size": 4, "channels": 3, "crop": "2,3,4,4", "background": "white", "depth": 8}
    source = open_images([(image, 0) for image in images], **how)
    expected = np.broadcast_to(grey[3:7, 2:6], (6, 3, 4, 4)).copy()
    expected[1:3] = 255
    np.testing.assert_array_equal(source.read(range(6)), expected)
    assert (source.recoloured, source.alpha_dropped, source.depth_reduced) == (3, 2, 1)
    for only_grey in ([(Image.fromarray(grey), 0)], [(Image.fromarray(grey), 0), (deep, 0)]):
        with pytest.raises(DataError, match="--colour rgb"):
            open_images(only_grey, size=8, channels=3).read([0])


def test_images_that_cannot_be_read_do_not_stop_the_others(patches: np.ndarray):
    def make(patch: np.ndarray, i: int) -> object:
        return {}[i] if i in (0, 7) else (hwc(patch) if i else hwc(patch)[..., 0], i)

    source = open_images(Photos(patches, make), size=16, channels=3, skip_unusable=True)
    assert source.names == tuple(f"{i:08d}" for i in range(1, 7))
    assert source.labels == tuple(str(i) for i in range(1, 7))
    assert set(source.skipped.values()) == {"broken"}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"train": [], "test": []}, r"dict has train, test; give one of them, as dataset\['train'\]"),
        (None, "NoneType is no data set; give a path, or an object with len"),
        (iter([]), "list_iterator is no data set"),
    ],
)
def test_what_is_no_data_set_is_refused(images: object, message: str):
    with pytest.raises(DataError, match=message):
        open_images(images, size=16, channels=3)
