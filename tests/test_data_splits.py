from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.data.splits import find_splits, is_held_out, label_of
from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
from hvae_codec.errors import DataError
from hvae_codec.report.splits import splits_sentence

NAMES = st.lists(st.text("abc/", min_size=1), unique=True, min_size=1)
FOLDERS = st.sampled_from(["train", "Training", "val", "valid", "DEV", "Test", "eval2012", "cats", "dogs"])
PATHS = st.lists(st.lists(FOLDERS, max_size=3), min_size=1).map(
    lambda paths: ["/".join([*folders, f"{i}.png"]) for i, folders in enumerate(paths)]
)
HELD_OUT_FOLDERS = ("val", "valid", "dev", "test", "eval2012")


def chosen(names: list[str]) -> tuple[list[str], list[str], list[str]]:
    splits = find_splits(names)
    train, val, test = ([names[i] for i in indices] for indices in (splits.train, splits.val, splits.test))
    return train, val, test


def source_of(folder: Path, names: list[str]) -> ImageSource:
    """Of files that only have names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return open_images(folder, size=8, channels=3)


# --- without split folders


@given(NAMES)
def test_splits_cover_everything_once_or_are_all(names: list[str]):
    splits = find_splits(names)
    train, val = splits.train.tolist(), splits.val.tolist()
    everything = list(range(len(names)))
    assert sorted(train + val) == everything if splits.is_held_out else train == val == everything
    assert len(splits.test) == 0


def test_a_tenth_is_held_out_and_stays_so():
    names = [f"cats/{i}.png" for i in range(5000)]
    held_out = chosen(names)[1]
    assert 400 < len(held_out) < 600
    assert held_out[:3] == [name for name in names if is_held_out(name)][:3]
    fewer = names[::2]
    assert set(chosen(fewer)[1]) == set(held_out) & set(fewer)


@pytest.mark.parametrize("others", [[], ["other/x.png"], ["x.png"]])
def test_without_val_some_of_all_is_held_out(others: list[str]):
    """Also where train is one class folder among others: none of those may be lost."""
    names = [f"train/{i}.png" for i in range(100)] + others
    train, val, _ = chosen(names)
    assert val
    assert sorted(train + val) == sorted(names)


def test_where_no_image_can_be_held_out_that_is_known(tmp_path: Path):
    names = [name for name in (f"{i}.png" for i in range(40)) if not is_held_out(name)]
    source = source_of(tmp_path, names)
    assert source.split("train").names == source.split("val").names == source.names
    assert source.split("val").evenly(5).held_out is False
    assert "no image is held out" in splits_sentence(TrainingAndHeldOut(source))
    (tmp_path / next(name for name in (f"{i}.png" for i in range(40)) if is_held_out(name))).write_bytes(b"")
    more = open_images(tmp_path, size=8, channels=3)
    assert (more.split("train").held_out, more.split("val").held_out, more.held_out) == (False, True, None)
    assert f"train {len(names)}, held out 1 (a tenth" in splits_sentence(TrainingAndHeldOut(more))


# --- split folders


@pytest.mark.parametrize("train", ["train", "Training", "train_64x64", "train2017"])
@pytest.mark.parametrize("val", ["val", "VALID", "validation", "dev", "valid_64x64", "val2017"])
@pytest.mark.parametrize("test", ["test", "Testing", "eval", "evaluation"])
@pytest.mark.parametrize("path", ["{}/cats/1.png", "cats/{}/1.png", "mydata/{}/cats/1.png", "{}/1.png"])
def test_split_folders_by_all_names_at_the_top_and_one_level_down(train: str, val: str, test: str, path: str):
    names = [path.format(folder) for folder in (train, val, test)]
    assert chosen(names) == ([names[0]], [names[1]], [names[2]])
    assert chosen([names[0], names[2]]) == ([names[0]], [names[2]], [names[2]])
    assert len({label_of(name) for name in names}) == 1


def test_what_is_in_no_split_folder():
    names = ["cats/1.png", "val/2.png", "x.png"]
    assert chosen(names) == (["cats/1.png", "x.png"], ["val/2.png"], [])
    assert chosen([*names, "train/3.png"]) == (["train/3.png"], ["val/2.png"], [])
    assert chosen(["val/2.png", "test/3.png", "x.png"]) == (["x.png"], ["val/2.png"], ["test/3.png"])


@pytest.mark.parametrize("folder", ["test", "dev", "Eval"])
def test_a_class_folder_that_is_called_so_is_not_trained_on(folder: str, tmp_path: Path):
    source = source_of(tmp_path, ["cats/1.png", f"{folder}/2.png"])
    assert source.split("train").names == ("cats/1.png",)
    assert f"train 1 (outside {folder}/), held out 1 ({folder}/)" in splits_sentence(TrainingAndHeldOut(source))


def test_the_upper_of_two_split_folders_counts():
    assert chosen(["train/test/1.png", "val/train/2.png"])[:2] == (["train/test/1.png"], ["val/train/2.png"])
    assert label_of("train/test/1.png") == "test"
    inner = ["train/train/1.png", "train/test/2.png", "cars/train/3.png", "cars/test/4.png"]  # a class called train
    assert chosen(inner)[0] == ["train/train/1.png", "cars/train/3.png"]


@given(PATHS)
def test_nothing_held_out_is_trained_on(names: list[str]):
    train, val, test = chosen(names)
    assert not set(train) & {*val, *test} or not find_splits(names).is_held_out
    if any(name.lower().startswith(tuple(f"{folder}/" for folder in HELD_OUT_FOLDERS)) for name in names):
        for name in train:
            folders = name.lower().split("/")[:-1]
            assert folders[:1] in (["train"], ["training"]) or not {*folders[:2]} & {*HELD_OUT_FOLDERS}


def test_the_sentence_says_what_is_used_for_nothing(tmp_path: Path):
    names = ["train/a/1.png", "train/b/1.png", "val/a/2.png", "test/a/3.png", "test/a/4.png", "5.png"]
    source = source_of(tmp_path, names)
    sentence = splits_sentence(TrainingAndHeldOut(source))
    assert sentence == "train 2 (train/), held out 1 (val/); neither: 2 (test/), 1 (other folders)"
    assert source.split("test").names == ("test/a/3.png", "test/a/4.png")
    assert source.split("test").held_out is True
    assert source.split("all") is source
    assert set(source.labels) == {"a", "b", ""}


def test_splits_without_images_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no image in .*a is in a folder test/"):
        source_of(tmp_path / "a", ["train/1.png", "val/2.png"]).split("test")
    source = source_of(tmp_path / "b", ["x/val/1.png", "x/test/2.png"])
    with pytest.raises(DataError, match=r"all images in .*b are held out \(in \*/val/ and \*/test/\)"):
        source.split("train")
    assert source.split("val").names == ("x/val/1.png",)
    assert "train none, held out 1 (*/val/); neither: 1 (*/test/)" in splits_sentence(TrainingAndHeldOut(source))


def test_a_folder_above_all_may_be_called_training():
    names = ["training/train/cats/1.png", "training/val/cats/2.png", "training/val/cats/3.png"]
    splits = find_splits(names)
    assert (splits.train.tolist(), splits.val.tolist()) == ([0], [1, 2])
    assert splits.folders["val"] == ["*/val/"]


@pytest.mark.parametrize(
    "pair", ["trainA testA", "train test1", "train_set test_set", "trainset TestSet", "train_images val_images"]
)
def test_names_of_public_data_sets(pair: str):
    train, held_out = pair.split()
    splits = find_splits([f"{train}/1.png", f"{train}/2.png", f"{held_out}/3.png"])
    assert (splits.train.tolist(), splits.val.tolist()) == ([0, 1], [2])


@pytest.mark.parametrize("name", ["trains", "testate", "devices", "validated", "evaluations", "testa", "trainspotting"])
def test_words_that_only_begin_like_a_split_are_classes(name: str):
    assert not find_splits([f"{name}/{i}.png" for i in range(40)] + ["cats/1.png"]).folders
