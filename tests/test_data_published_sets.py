"""MNIST, CIFAR, ImageNet 32, MedMNIST, Keras and CelebA in files like those that are published, of photographs."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hvae_codec.data.plain_pickle import load_plain
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
from hvae_codec.errors import DataError
from hvae_codec.report.splits import splits_sentence
from photos import save_png

TRAIN, TEST = 6, 3
CLASSES = ["airplane", "automobile", "bird"]
LABELS = [i % 3 for i in range(TRAIN + TEST)]


@pytest.fixture(scope="module")
def colour(cut_patches) -> np.ndarray:
    """uint8 [N, 3, 32, 32]: first those for training, then those for testing."""
    return cut_patches(TRAIN + TEST, 32)


@pytest.fixture(scope="module")
def grey(cut_patches) -> np.ndarray:
    return cut_patches(TRAIN + TEST, 28, channels=1)[:, 0]


def assert_is(source: ImageSource, pixels: np.ndarray, labels: list[str], held_out: str = "test") -> None:
    """The first `TRAIN` images are for training, the others held out; names say which."""
    train, test = source.split("train"), source.split("val")
    assert train.names == tuple(f"train/{i:08d}" for i in range(TRAIN))
    assert test.names == tuple(f"{held_out}/{i:08d}" for i in range(len(pixels) - TRAIN))
    np.testing.assert_array_equal(train.read(range(len(train))), pixels[:TRAIN])
    np.testing.assert_array_equal(test.read([1, 0, 2]), pixels[TRAIN:][[1, 0, 2]])
    assert train.labels + test.labels == tuple(labels)
    assert list(source.names) == sorted(source.names)


def digits(labels: list[int]) -> list[str]:
    return [str(label) for label in labels]


# --- MNIST


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


@pytest.fixture(params=["", ".gz"])
def mnist(request: pytest.FixtureRequest, tmp_path: Path, grey: np.ndarray) -> Path:
    (tmp_path / "mnist").mkdir()
    for name, rows in (("train", slice(0, TRAIN)), ("t10k", slice(TRAIN, None))):
        for kind, values in (("images-idx3", grey[rows]), ("labels-idx1", np.array(LABELS)[rows])):
            content = gzip.compress(idx(values)) if request.param else idx(values)
            (tmp_path / "mnist" / f"{name}-{kind}-ubyte{request.param}").write_bytes(content)
    return tmp_path / "mnist"


def test_mnist(mnist: Path, grey: np.ndarray):
    source = open_images(mnist, size=28, channels=1)
    assert_is(source, grey[:, None], digits(LABELS))
    gz = ".gz" if (mnist / "t10k-images-idx3-ubyte.gz").exists() else ""
    held_out = f"held out 3 (t10k-images-idx3-ubyte{gz})"
    assert splits_sentence(TrainingAndHeldOut(source)) == f"train 6 (train-images-idx3-ubyte{gz}), {held_out}"
    torchvision = mnist.rename(mnist.parent / "raw").parent
    assert open_images(torchvision, size=28, channels=1).names == source.names
    mnist = (torchvision / "raw").rename(mnist)
    alone = open_images(mnist / f"train-images-idx3-ubyte{gz}", size=28, channels=1)
    assert (len(alone), alone.labels) == (TRAIN, tuple(digits(LABELS[:TRAIN])))
    (mnist / f"train-labels-idx1-ubyte{gz}").unlink()
    assert set(open_images(mnist, size=28, channels=1).split("train").labels) == {""}


def test_a_file_and_its_gz_are_one(mnist: Path, grey: np.ndarray):
    file = next(mnist.glob("train-images*"))
    content = gzip.decompress(file.read_bytes()) if file.suffix else file.read_bytes()
    (mnist / "train-images-idx3-ubyte").write_bytes(content)
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    assert_is(open_images(mnist, size=28, channels=1), grey[:, None], digits(LABELS))
    (mnist / "x-train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=r"has several sets, train-images-idx3-ubyte and x-train"):
        open_images(mnist, size=28, channels=1)


def test_damaged_idx(mnist: Path):
    file = next(mnist.glob("train-images*"))
    content = file.read_bytes()
    for damaged in (content[:-5], content[:10], b""):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{file.name} .*download it again"):
            open_images(mnist, size=28, channels=1)
    huge = bytes([0, 0, 8, 3]) + np.array([2**31, 2**10, 2**10], ">u4").tobytes()
    file.write_bytes(gzip.compress(huge) if file.suffix else huge)
    with pytest.raises(DataError, match=rf"{file.name} .*(unpack it with gunzip|download it again)"):
        open_images(mnist, size=28, channels=1)


# --- CIFAR


def write_cifar(folder: Path, colour: np.ndarray, protocol: int = 2) -> Path:
    """Write CIFAR-10's Python files, with two batches for training."""
    folder.mkdir(parents=True)
    rows = colour.reshape(len(colour), -1)
    for name, part in (
        ("data_batch_1", slice(0, 4)),
        ("data_batch_2", slice(4, TRAIN)),
        ("test_batch", slice(TRAIN, None)),
    ):
        batch = {b"batch_label": name.encode(), b"labels": LABELS[part], b"data": rows[part], b"filenames": [b"x.png"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [name.encode() for name in CLASSES]}, protocol))
    return folder


def tarred(folder: Path, name: str) -> Path:
    with tarfile.open(folder.parent / name, "w:gz") as archive:
        archive.add(folder, folder.name)
    return folder.parent / name


@pytest.mark.parametrize("kind", ["folder", "above", "tar"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_10(tmp_path: Path, colour: np.ndarray, kind: str, protocol: int):
    folder = write_cifar(tmp_path / "cifar-10-batches-py", colour, protocol)
    path = {"folder": folder, "above": tmp_path, "tar": tarred(folder, "cifar-10-python.tar.gz")}[kind]
    source = open_images(path, size=32, channels=3)
    assert_is(source, colour, [CLASSES[i] for i in LABELS])
    assert "6 (data_batch_1 and data_batch_2), held out 3 (test_batch)" in splits_sentence(TrainingAndHeldOut(source))


PYTHON_2 = (
    b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03(K\x01K\x02eU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\n"
    b"K\x00\x85U\x01b\x87R(K\x01K\x02K\x02\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x01\x02\xff\x00tbu."
)


def test_pickles_of_python_2():
    """The published files are of this kind: texts are bytes, also those of the pixels."""
    found = load_plain(PYTHON_2)
    assert found[b"labels"] == [1, 2]
    np.testing.assert_array_equal(found[b"data"], [[1, 2], [255, 0]])


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


def test_nothing_of_a_pickle_runs(tmp_path: Path, colour: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = write_cifar(tmp_path / "cifar-10-batches-py", colour)
    for name in ("data_batch_1", "batches.meta"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps({b"labels": [0], b"data": Hostile()}))
        with pytest.raises(DataError, match=rf"{name} cannot be read .*names posix\.mkdir, and only arrays"):
            open_images(folder, size=32, channels=3)
        (folder / name).write_bytes(good)
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02r\xff\xff\xff\xff.",  # numbers an object 4,294,967,295
        pickle.dumps({b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]}),
        pickle.dumps({b"data": np.array([{}], object), b"labels": [0]}),
        pickle.dumps({b"data": np.zeros((2, 3000), np.uint8), b"labels": [0, 1]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 7]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": ["a", "b"]}),
        pickle.dumps([1, 2]),
        pickle.dumps({b"labels": [0]})[:-3],
        b"",
    ],
)
def test_damaged_batches(tmp_path: Path, colour: np.ndarray, content: bytes):
    folder = write_cifar(tmp_path / "cifar-10-batches-py", colour)
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_1 cannot be read as a batch of CIFAR .*download it again"):
        open_images(folder, size=32, channels=3)


def test_a_missing_batch_and_a_truncated_tar(tmp_path: Path, colour: np.ndarray):
    folder = write_cifar(tmp_path / "cifar-10-batches-py", colour)
    path = tarred(folder, "cifar-10-python.tar.gz")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz .*truncated"):
        open_images(path, size=32, channels=3)
    (folder / "data_batch_2").rename(folder / "data_batch_3")
    with pytest.raises(DataError, match=r"has data_batch_3 but not batch 2"):
        open_images(folder, size=32, channels=3)


def test_two_sets_in_one_folder_are_refused(tmp_path: Path):
    for name in ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-bin/data_batch_1.bin"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="several sets, cifar-10-batches-py and cifar-10-batches-bin; give one"):
        open_images(tmp_path, size=32, channels=3)


def test_more_than_cifar_has_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hvae_codec.data.cifar.LARGEST_SET", 1000)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name in ("data_batch_1.bin", "data_batch_2.bin"):
            member = tarfile.TarInfo(name)
            member.size = 600
            archive.addfile(member, io.BytesIO(bytes(600)))
    with pytest.raises(DataError, match=r"data_batch_2.* with those before it, more than CIFAR has"):
        open_images(tmp_path / "cifar-10-binary.tar.gz", size=32, channels=3)


def test_cifar_10_in_binary(tmp_path: Path, colour: np.ndarray):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rows = np.concatenate([np.array(LABELS, np.uint8)[:, None], colour.reshape(len(colour), -1)], 1)
    for name, part in (("data_batch_1", slice(0, TRAIN)), ("test_batch", slice(TRAIN, None))):
        (folder / f"{name}.bin").write_bytes(rows[part].tobytes())
    assert_is(open_images(folder, size=32, channels=3), colour, digits(LABELS))
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    path = tarred(folder, "cifar-10-binary.tar.gz")
    assert_is(open_images(path, size=32, channels=3), colour, [CLASSES[i] for i in LABELS])
    (folder / "test_batch.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(DataError, match=r"test_batch\.bin .*no multiple of 3,073"):
        open_images(folder, size=32, channels=3)


def test_cifar_100(tmp_path: Path, colour: np.ndarray):
    python, binary = tmp_path / "cifar-100-python", tmp_path / "cifar-100-binary"
    python.mkdir()
    binary.mkdir()
    coarse, rows = [0] * len(LABELS), colour.reshape(len(colour), -1)
    for name, part in (("train", slice(0, TRAIN)), ("test", slice(TRAIN, None))):
        batch = {b"coarse_labels": coarse[part], b"fine_labels": LABELS[part], b"data": rows[part]}
        (python / name).write_bytes(pickle.dumps(batch))
        both = np.array([coarse[part], LABELS[part]], np.uint8).T
        (binary / f"{name}.bin").write_bytes(np.concatenate([both, rows[part]], 1).tobytes())
    (python / "meta").write_bytes(pickle.dumps({b"fine_label_names": CLASSES, b"coarse_label_names": ["x"]}))
    assert_is(open_images(python, size=32, channels=3), colour, [CLASSES[i] for i in LABELS])
    assert_is(open_images(binary, size=32, channels=3), colour, digits(LABELS))


# --- archives of arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("style", ["{}_images {}_labels", "x_{} y_{}"])
def test_medmnist_and_keras(tmp_path: Path, colour: np.ndarray, save, style: str):
    images, labels = style.split()
    pixels, classes = colour.transpose(0, 2, 3, 1), np.array(LABELS)[:, None]
    parts = {"train": slice(0, TRAIN), "test": slice(TRAIN, None)}
    arrays = {images.format(part): pixels[rows] for part, rows in parts.items()}
    arrays |= {labels.format(part): classes[rows] for part, rows in parts.items()}
    save(tmp_path / "x.npz", **arrays)
    source = open_images(tmp_path / "x.npz", size=32, channels=3)
    assert_is(source, colour, digits(LABELS))
    assert images.format("test") in splits_sentence(TrainingAndHeldOut(source))
    save(tmp_path / "x.npz", **arrays, **{images.format("val"): pixels[:2]})
    three = open_images(tmp_path / "x.npz", size=32, channels=3)
    assert [len(three.split(part)) for part in ("train", "val", "test")] == [TRAIN, 2, TEST]
    save(tmp_path / "x.npz", **arrays | {labels.format("train"): classes[:2]})
    with pytest.raises(DataError, match=r"6 images but 2 labels"):
        open_images(tmp_path / "x.npz", size=32, channels=3)
    save(tmp_path / "x.npz", **arrays | {images.format("test"): pixels[TRAIN:, :16]})
    with pytest.raises(DataError, match=r"not alike"):
        open_images(tmp_path / "x.npz", size=32, channels=3)


def test_several_labels_per_image(tmp_path: Path, grey: np.ndarray):
    np.savez(tmp_path / "x.npz", train_images=grey[:2], train_labels=np.array([[0, 1], [1, 1]]), test_images=grey[2:])
    assert open_images(tmp_path / "x.npz", size=28, channels=1).labels[-2:] == ("0 1", "1 1")


def test_labels_in_one_row(tmp_path: Path, grey: np.ndarray):
    np.savez(tmp_path / "x.npz", images=grey[:3], labels=np.array([[5, 6, 7]]))
    assert open_images(tmp_path / "x.npz", size=28, channels=1).labels == ("5", "6", "7")


def test_one_array_is_all_images_unless_it_is_held_out(tmp_path: Path, grey: np.ndarray):
    np.savez(tmp_path / "a.npz", train=grey)
    assert open_images(tmp_path / "a.npz", size=28, channels=1).names[0] == "00000000"
    np.savez(tmp_path / "b.npz", images=grey, test=grey[:2])
    assert len(open_images(tmp_path / "b.npz", size=28, channels=1)) == len(grey)
    np.savez(tmp_path / "c.npz", x_test=grey)
    with pytest.raises(DataError, match=r"held out \(in x_test\)"):
        open_images(tmp_path / "c.npz", size=28, channels=1).split("train")


def test_arrays_that_were_read_before_keep_their_names_and_labels(tmp_path: Path, grey: np.ndarray):
    for name, key in (("a", "x_train"), ("train_data", "images"), ("val_data", "images"), ("test_data", "data")):
        np.savez(tmp_path / f"{name}.npz", **{key: grey, "labels": np.array(LABELS)})
        source = open_images(tmp_path / f"{name}.npz", size=28, channels=1)
        assert (source.names[0], [*source.labels]) == ("00000000", digits(LABELS)), name
    np.savez(tmp_path / "b.npz", x_test=grey, labels=np.array(LABELS))
    assert [*open_images(tmp_path / "b.npz", size=28, channels=1).labels] == digits(LABELS)


def test_batches_in_one_npz(tmp_path: Path, grey: np.ndarray):
    arrays = {"train_data_batch_2": grey[1:3], "train_data_batch_1": grey[:1], "test_data": grey[3:]}
    labels = {"train_labels_batch_2": [1, 2], "train_labels_batch_1": [0]}
    np.savez(tmp_path / "a.npz", **arrays, **labels)
    source = open_images(tmp_path / "a.npz", size=28, channels=1).split("train")
    np.testing.assert_array_equal(source.read(range(3))[:, 0], grey[:3])
    assert [*source.labels] == ["0", "1", "2"]
    np.savez(tmp_path / "b.npz", train_data_batch_2=grey[:1], test_data=grey[1:])
    with pytest.raises(DataError, match="has train_data_batch_2 but not batch 1"):
        open_images(tmp_path / "b.npz", size=28, channels=1)
    np.savez(tmp_path / "c.npz", x_train=grey, train_images=grey, x_test=grey)
    with pytest.raises(DataError, match="has both x_train and train_images"):
        open_images(tmp_path / "c.npz", size=28, channels=1)


def test_imagenet_32(tmp_path: Path, colour: np.ndarray):
    rows, labels = colour.reshape(len(colour), -1), np.array(LABELS) + 1
    batches = {
        "train_data_batch_1": [*range(2)],
        "train_data_batch_2": [*range(2, TRAIN)],
        "val_data": [*range(TRAIN, 9)],
    }
    for name, part in batches.items():
        np.savez(tmp_path / f"{name}.npz", data=rows[part], labels=labels[part], mean=rows.mean(0))
    source = open_images(tmp_path, size=32, channels=3)
    assert_is(source, colour, digits([label + 1 for label in LABELS]), "val")
    assert "6 (train_data_batch_1.npz and train_data_batch_2.npz)" in splits_sentence(TrainingAndHeldOut(source))
    alone = open_images(tmp_path / "train_data_batch_1.npz", size=32, channels=3)
    np.testing.assert_array_equal(alone.read([1]), colour[1:2])
    (tmp_path / "train_data_batch_1.npz").unlink()
    with pytest.raises(DataError, match=r"has train_data_batch_2\.npz but not batch 1"):
        open_images(tmp_path, size=32, channels=3)


def test_rows_of_other_numbers_are_refused(tmp_path: Path, colour: np.ndarray):
    np.savez(tmp_path / "train_data_batch_1.npz", data=colour.reshape(len(colour), -1) / 255, labels=np.array(LABELS))
    with pytest.raises(DataError, match=r"holds float64; convert the images to uint8"):
        open_images(tmp_path / "train_data_batch_1.npz", size=32, channels=3)


def test_large_stored_arrays_stay_in_the_file(tmp_path: Path, colour: np.ndarray):
    images = np.repeat(colour.transpose(0, 2, 3, 1), 50, 0)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(len(images)))
    source = open_images(tmp_path / "x.npz", size=32, channels=3)
    assert isinstance(source.container.array, np.memmap)
    np.testing.assert_array_equal(source.read([449, 0]), colour[[-1, 0]])
    np.savez(tmp_path / "y.npz", images=np.asfortranarray(images))
    np.testing.assert_array_equal(open_images(tmp_path / "y.npz", size=32, channels=3).read([449]), colour[-1:])


# --- CelebA


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("name", ["list_eval_partition.txt", "list_eval_partition.csv"])
def test_celeba(tmp_path: Path, photo_patches, kind: str, name: str):
    folder = tmp_path / "img_align_celeba"
    for i in range(6):
        save_png(folder / f"{i:06d}.png", photo_patches[i])
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"img_align_celeba/{file.name}")
    mark, first = (",", "image_id,partition\n") if name.endswith("csv") else (" ", "")
    (tmp_path / name).write_text(first + "".join(f"{i:06d}.png{mark}{i // 2}\n" for i in range(5)))
    path = folder if kind == "folder" else tmp_path / "img_align_celeba.zip"
    source = open_images(path, size=16, channels=3)
    found = [[Path(n).stem[-1] for n in source.split(part).names] for part in ("train", "val", "test")]
    assert found == [["0", "1"], ["2", "3"], ["4"]]
    assert f"2 ({name}); neither: 1 ({name}), 1 (others)" in splits_sentence(TrainingAndHeldOut(source))
    (tmp_path / name).write_text("000001.jpg 7\n")
    with pytest.raises(DataError, match=rf"{name} has other lines"):
        open_images(path, size=16, channels=3)


def test_the_folder_one_is_in_is_read_as_any_other(tmp_path: Path, photo_patches, monkeypatch: pytest.MonkeyPatch):
    for i, patch in enumerate(photo_patches[:3]):
        save_png(tmp_path / f"images/{i}.png", patch)
    monkeypatch.chdir(tmp_path / "images")
    assert open_images(".", size=16, channels=3).split("all").names == ["0.png", "1.png", "2.png"]
    (tmp_path / "list_eval_partition.txt").write_text("0.png 0\n1.png 1\n2.png 0\n")  # beside it
    assert open_images(".", size=16, channels=3).split("val").names == ["1.png"]


def test_a_test_folder_counts_more_than_the_partition_of_celeba(tmp_path: Path, photo_patches):
    for i, folder in enumerate(("train", "train", "test")):
        save_png(tmp_path / folder / f"{i:06d}.png", photo_patches[i])
    (tmp_path / "list_eval_partition.txt").write_text("000000.png 0\n000001.png 1\n000002.png 0\n")
    source = open_images(tmp_path, size=16, channels=3)
    assert source.split("train").names == ("train/000000.png", "train/000001.png")
    assert splits_sentence(TrainingAndHeldOut(source)) == "train 2 (train/), held out 1 (test/)"


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "train_data_batch_1.npz", "train-images-idx3-ubyte"])
def test_a_mapped_file_that_was_cut_is_an_error(tmp_path: Path, name: str):
    path, images = tmp_path / name, np.zeros((400, 32, 32, 3), np.uint8)
    if name == "a.npy":
        np.save(path, images)
    elif name.endswith("npz"):
        rows = {"data": images.reshape(400, -1)} if name.startswith("train") else {"images": images}
        np.savez(path, **rows, labels=np.arange(400))
    else:
        path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 1, 0x90, 0, 0, 0, 32, 0, 0, 0, 96]) + images.tobytes())
    source = open_images(path, size=32, channels=1 if "idx" in name else 3)
    assert source.read([399]).max() == 0
    os.truncate(path, 1000)
    with pytest.raises(DataError, match=r"was changed while it was read"):
        source.read([399])
