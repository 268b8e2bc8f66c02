"""`look`: a page that is true to its store, complete in itself, and usable: a headless Chromium goes through it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from browser import brightness, open_page, requested, wait
from hvae_codec import encode_images, kl_stats, open_images, open_store
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.errors import DataError, StoreError, UsageError
from hvae_codec.prune.mask import LatentMask
from hvae_codec.report import look_images
from hvae_codec.report.look import check_page, default_page, look
from hvae_codec.report.look_pictures import strip, thumbnail, thumbnail_size
from hvae_codec.report.look_steps import group_steps
from hvae_codec_cli.app import main
from photos import cut, save_png

EVIL = "<b onclick=alert(1)>&'"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model, photo_patches) -> Path:
    """A folder with out.zarr, evaluated, and plain.zarr, not: 24 images, of which two are the same file again."""
    folder = tmp_path_factory.mktemp("look")
    for number, pixels in enumerate(photo_patches[:22]):
        save_png(folder / f"data/train/{'cats' if number % 2 else EVIL}/{number:02d}.png", pixels)
    for number, original in ((22, 3), (23, 8)):
        save_png(folder / f"data/val/cats/{number}.png", photo_patches[original])
    images, stats = open_images(folder / "data", size=16, channels=3), kl_stats(tiny_model, photo_patches)
    mask = LatentMask.from_keep(stats, 0.5)
    for name, evaluate in (("out.zarr", True), ("plain.zarr", False)):
        options = EncodeOptions(evaluate=evaluate)
        encode_images(tiny_model, images, folder / name, mask=mask, stats=stats, options=options)
    return folder


@pytest.fixture(scope="module")
def store(made: Path):
    return open_store(made / "out.zarr")


@pytest.fixture(scope="module")
def found(made: Path, store):
    """The look at out.zarr; the page is look.html."""
    return look(store, made / "look.html", worst=5, pairs=3)


class Page(HTMLParser):
    """Text outside scripts, tags, addresses, and the script's data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside, self.data = "", "", {}
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script" and self.tags[-1][1].get("id") == "data":
            self.data = json.loads(data)
        elif self.inside not in ("script", "style"):
            self.text += data + " "


@pytest.fixture(scope="module")
def page(found) -> Page:
    return Page(found.page)


def pixels_of(uri: str) -> np.ndarray:
    """The picture in a data URI, uint8 [H, W, 3]."""
    content = base64.b64decode(uri.partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def frames_of(uri: str, size: int = 16) -> np.ndarray:
    """The frames of a strip, uint8 [n, 3, H, W]."""
    pixels = pixels_of(uri)
    return pixels.reshape(size, -1, size, 3).transpose(1, 3, 0, 2)


# --- what it finds


def test_the_worst_really_are(found, store):
    assert [extremes.name for extremes in found.extremes] == ["distortion", "rate"]
    for extremes in found.extremes:
        values = store.per_image(extremes.name)
        order = sorted(range(24), key=lambda image: (values[image], image))
        assert [values[image] for image in extremes.highest] == [values[image] for image in order[:-6:-1]]
        assert [values[image] for image in extremes.lowest] == [values[image] for image in order[:5]]


def test_the_same_file_again_is_found_at_distance_zero(found, store, page):
    same = [{store.names[pair.first], store.names[pair.second]} for pair in found.pairs if pair.distance == 0]
    assert sorted(sorted(names) for names in same) == [
        [f"train/{EVIL}/08.png", "val/cats/23.png"],
        ["train/cats/03.png", "val/cats/22.png"],
    ]
    assert len(found.pairs) == 3
    assert found.pairs[2].distance > 0
    assert "4 images have the same kept latents as another" in page.text
    assert "4 of them share these with an image of another split" in page.text


def test_small_pictures_and_last_frames_are_what_the_store_decodes(found, store):
    numbers = list(found.images)
    decoded = store.decode(numbers)
    for image, expected in zip(found.images.values(), decoded, strict=True):
        np.testing.assert_array_equal(pixels_of(image.thumbnail), expected.transpose(1, 2, 0))
        np.testing.assert_array_equal(frames_of(image.strip)[-1], expected)
        assert image.errors[-1] == 0


def test_a_frame_is_of_the_groups_before(found, store, tiny_model):
    """Decoded by the model's own loop: stored z in the groups before, the prior's mean after."""
    numbers = list(found.images)
    dense = store.dense(slice(0, 24))

    def choose(group, end):
        return torch.from_numpy(dense[group.index][numbers]) if group.index < end else group.prior_mean

    for place, step in enumerate(found.steps[:-1]):
        with torch.no_grad():
            output = tiny_model.top_down(None, partial(choose, end=step.end), len(numbers))
            expected = tiny_model.likelihood.to_pixels(tiny_model.likelihood.mean(output)).numpy()
        frames = np.stack([frames_of(image.strip)[place] for image in found.images.values()])
        assert np.abs(frames.astype(int) - expected).max() <= 1
        assert (frames == expected).mean() > 0.999


def test_steps_are_the_groups_that_are_kept(found, store):
    kept = {r: len(table) * r * r for r, table in store.columns.coordinates.items()}
    assert found.steps[0].kept == 0
    assert found.steps[-1].kept == store.kept_dims == sum(kept.values())
    groups = sorted({int(group) for table in store.columns.coordinates.values() for group in table[:, 0]})
    assert [step.name for step in found.steps[1:]] == [f"group {group}" for group in groups]
    assert [step.end for step in found.steps] == [0, *(group + 1 for group in groups)]
    errors = np.array([image.errors for image in found.images.values()]).mean(axis=0)
    assert errors[0] > errors[-2] > errors[-1] == 0


def test_deep_models_take_several_groups_in_a_step(found, store, monkeypatch):
    monkeypatch.setattr("hvae_codec.report.look_steps.MOST_STEPS", 2)
    few, all_of_them = group_steps(store), found.steps
    assert len(few) == 3
    assert (few[-1].kept, few[-1].end) == (all_of_them[-1].kept, all_of_them[-1].end)
    assert re.fullmatch(r"groups \d to \d", few[1].name)


def test_a_page_without_room_has_no_strips(store, tmp_path, monkeypatch):
    monkeypatch.setattr(look_images, "STRIP_BYTES", 1)
    some = look(store, tmp_path / "a.html", batch_size=4)
    stripped = [image.strip is not None for image in some.images.values()]
    assert stripped == [True] * 4 + [False] * (len(stripped) - 4)
    data = Page(some.page).data["images"]
    assert all(image["strip"] or image["thumbnail"] for image in data.values())


def test_large_pictures_are_shrunk(cut_patches):
    (large,) = cut_patches(1, 300)
    assert pixels_of(thumbnail(large)).shape == (thumbnail_size(300),) * 2 + (3,) == (96, 96, 3)
    assert pixels_of(strip([large, large])).shape == (300, 600, 3)
    for channels in (1, 2, 4):
        (image,) = cut_patches(1, 16, channels)
        assert pixels_of(thumbnail(image)).shape == (16, 16, 3)


# --- what the page says


def test_nothing_is_loaded(page):
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    text = "".join(Path(look_images.__file__).with_name(f"look.{kind}").read_text() for kind in ("css", "js"))
    assert "http" not in text
    assert "url(" not in text


def test_names_are_only_text(page, store):
    assert not any(tag == "b" and "onclick" in attributes for tag, attributes in page.tags)
    assert EVIL in page.text
    assert {image["label"] for image in page.data["images"].values()} == {EVIL, "cats"}


def test_figures_are_shown(page, store, found):
    assert f"{store.kept_dims:,} latent dimensions kept" in page.text
    for extremes in found.extremes:
        assert f"The median is {np.median(store.per_image(extremes.name)):.3f}" in page.text
        for image in extremes.highest:
            assert f"{store.per_image(extremes.name)[image]:.3f}" in page.text
    assert found.page.stat().st_size == found.page_bytes


def test_a_store_without_figures_says_so(made, tmp_path):
    plain = look(open_store(made / "plain.zarr"), tmp_path / "a.html")
    assert plain.extremes == []
    assert "encode --evaluate all" in Page(plain.page).text


def test_a_store_of_one_image(made, tmp_path, tiny_model, photo_patches):
    stats = kl_stats(tiny_model, photo_patches)
    mask = LatentMask.from_keep(stats, 0.1)
    one = encode_images(tiny_model, photo_patches[:1], tmp_path / "one.zarr", mask=mask, stats=stats)
    only = look(one, tmp_path / "one.html", tiny_model)
    assert (only.neighbours, only.pairs, list(only.images)) == (None, [], [0])
    assert "none to compare it with" in Page(only.page).text


@pytest.mark.slow
def test_the_decoder_alone_has_no_slider(made, tmp_path, tiny_model, photo_patches, store):
    stats = kl_stats(tiny_model, photo_patches)
    options = EncodeOptions(embed="decoder")
    mask = LatentMask.from_dict(store.mask)
    carried = encode_images(tiny_model, photo_patches, tmp_path / "a.zarr", mask=mask, stats=stats, options=options)
    alone = look(carried, tmp_path / "a.html")
    assert alone.steps == []
    assert "--model RUN" in Page(alone.page).text
    assert not any(attributes.get("type") == "range" for _, attributes in Page(alone.page).tags)
    assert look(carried, tmp_path / "b.html", tiny_model).steps


# --- the command


def hvae(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of the stores to work in."""
    for name in ("out.zarr", "plain.zarr"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_the_command(work, capsys):
    assert hvae("look", "out.zarr", "--worst", "3", "--pairs", "2") == 0
    out = capsys.readouterr().out
    assert re.search(r"out-look\.html: \d+ images of 24, 0\.\d MB", out)
    assert "4 images have the same kept latents" in out
    assert (work / "out-look.html").stat().st_size < 1_000_000
    assert hvae("look", "out.zarr", "--json", "--worst", "3", "--pairs", "2") == 0, "its own page is replaced"
    data = json.loads(capsys.readouterr().out)
    assert data["bytes"] == (work / "out-look.html").stat().st_size
    assert [len(data["figures"]["rate"][end]) for end in ("highest", "lowest")] == [3, 3]
    assert data["pairs"][0]["distance"] == 0
    assert data["images_with_the_latents_of_another"] == 4
    assert hvae("look", "plain.zarr") == 0
    assert "--evaluate all" in capsys.readouterr().out


def test_the_same_page_again(work):
    assert hvae("look", "out.zarr", "--out", "a.html", "--seed", "5") == 0
    first = (work / "a.html").read_bytes()
    assert hvae("look", "out.zarr", "--out", "a.html", "--seed", "5") == 0
    assert (work / "a.html").read_bytes() == first


def test_missing_folders_are_made_as_by_other_commands(work):
    assert hvae("look", "out.zarr", "--out", "new/folder/a.html") == 0
    assert "A look at out.zarr" in Path("new/folder/a.html").read_text()


def test_a_folder_whose_name_is_not_unicode(work):
    named = (work / "plain.zarr").rename(work / "caf\udce9.zarr")
    assert hvae("look", str(named), "--out", "a.html") == 0
    assert "A look at caf?.zarr" in (work / "a.html").read_text()


def test_files_of_others_are_left_alone(work, capsys):
    mine = work / "mine.html"
    mine.write_text("<p>mine: notes on hvae-codec look</p>")
    assert hvae("look", "out.zarr", "--out", "mine.html") == 1
    assert "mine.html exists" in capsys.readouterr().err
    assert "mine:" in mine.read_text()
    assert hvae("look", "out.zarr", "--out", "mine.html", "--overwrite") == 0
    assert "A look at out.zarr" in mine.read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("nothing.zarr", "nothing.zarr"),
        ("data", "data"),
        ("out.zarr --worst 0", "--worst"),
        ("out.zarr --pairs 0", "--pairs"),
        ("out.zarr --images 0", "--images"),
        ("out.zarr --out data", "data is a folder"),
        ("out.zarr --out out.zarr/a.html", "in the store"),
        ("out.zarr --out taken/a.html", "taken is a file"),
        ("out.zarr --out s3://bucket/a.html", "in a bucket"),
        ("out.zarr --model nowhere", "nowhere"),
    ],
)
def test_what_cannot_be(work, capsys, arguments, sentence):
    (work / "data").mkdir()
    (work / "taken").touch()
    assert hvae("look", *arguments.split()) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("hvae-codec: ")
    assert sentence in said[-1]
    assert [path.name for path in work.rglob("*.html")] == []


@pytest.mark.slow
def test_an_unfinished_store_and_one_without_its_model(work, capsys, tiny_run, tmp_path_factory):
    (work / "data").mkdir()
    for number, pixels in enumerate(cut(4)):
        save_png(work / f"data/{number}.png", pixels)
    run = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(tiny_run, run)
    arguments = ["encode", "data", "half.zarr", "--model", str(run), "--keep", "50%", "--evaluate", "none"]
    assert hvae(*arguments, "--shard", "2", "--worker", "0/2") == 0
    assert hvae("look", "half.zarr") == 1
    assert "half.zarr" in capsys.readouterr().err
    assert hvae(*arguments[:2], "whole.zarr", *arguments[3:]) == 0
    shutil.rmtree(run)
    assert hvae("look", "whole.zarr") == 1
    assert "--model" in capsys.readouterr().err.splitlines()[-1]
    assert hvae("look", "whole.zarr", "--model", str(tiny_run)) == 0


def test_from_python(store, tmp_path):
    with pytest.raises(UsageError, match="worst is 0"):
        look(store, tmp_path / "a.html", worst=0)
    with pytest.raises(UsageError, match="batch_size is 0"):
        look(store, tmp_path / "a.html", batch_size=0)
    (tmp_path / "a.html").write_text("mine")
    with pytest.raises(DataError, match=r"a\.html exists"):
        check_page(tmp_path / "a.html", store.path)
    assert default_page(store.path).name == "out-look.html"
    assert default_page(store.path).parent == store.path.parent


def test_a_damaged_store(work):
    for shard in (work / "out.zarr").glob("z*/c/**/*"):
        if shard.is_file():
            content = bytearray(shard.read_bytes())
            content[len(content) // 3] ^= 255
            shard.write_bytes(content)
    with pytest.raises(StoreError):
        look(open_store(work / "out.zarr"), work / "a.html")
    assert not (work / "a.html").exists()


@pytest.mark.slow
def test_a_store_in_a_bucket(made, bucket, tmp_path, monkeypatch, tiny_run):
    monkeypatch.chdir(tmp_path)
    from hvae_codec.storage.location import location_of

    remote = location_of(f"{bucket}/out.zarr")
    for path in (made / "out.zarr").rglob("*"):
        if path.is_file():
            remote.write(path.relative_to(made / "out.zarr").as_posix(), path.read_bytes())
    assert hvae("look", f"{bucket}/out.zarr", "--model", str(tiny_run)) == 0
    assert "A look at out.zarr" in (tmp_path / "out-look.html").read_text()


# --- in a browser


@pytest.fixture
def opened(chromium, found):
    """The page in a window of 1280 × 900, drawn."""
    return _opened(chromium, found)


def _opened(chromium, found, width=1280, height=900, scheme="light"):
    for kind in ("browser", "performance"):
        chromium.get_log(kind)  # what earlier tests left
    open_page(chromium, found.page.as_uri(), width, height, scheme)
    wait(chromium, "return document.body.dataset.shown !== undefined", True)
    return chromium


def _shown(window):
    """The large picture, uint8 [3, H, W]."""
    flat = window.execute_script(
        "const c = document.getElementById('picture');"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    return np.array(flat, np.uint8).reshape(16, 16, 4)[..., :3].transpose(2, 0, 1)


def _assert_shown(window, found, number, step):
    wait(window, "return document.body.dataset.shown", f"{number} {step}")
    np.testing.assert_array_equal(_shown(window), frames_of(found.images[number].strip)[step])


@pytest.mark.slow
def test_the_slider_moves_by_keyboard(opened, found, store):
    from selenium.webdriver.common.keys import Keys

    number, last = found.samples[0].images[0], len(found.steps) - 1
    _assert_shown(opened, found, number, last)
    slider = opened.find_element("id", "step")
    for key, step in ((Keys.ARROW_LEFT, last - 1), (Keys.HOME, 0), (Keys.ARROW_RIGHT, 1), (Keys.END, last)):
        slider.send_keys(key)
        _assert_shown(opened, found, number, step)
        said = opened.find_element("id", "said").text
        assert f"{found.steps[step].kept:,} of" in said or step == 0
        assert slider.get_attribute("aria-valuetext").startswith(said.split(":")[0])
    opened.find_element("id", "fewer").click()
    _assert_shown(opened, found, number, last - 1)
    decibels = 10 * np.log10(255**2 / found.images[number].errors[last - 1])
    assert f"{decibels:.2f} dB" in opened.find_element("id", "said").text


@pytest.mark.slow
def test_images_are_chosen_by_keyboard_and_mouse(opened, found, store):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys):
        ActionChains(opened).send_keys(*keys).perform()

    images, last = found.samples[0].images, len(found.steps) - 1
    opened.find_element("css selector", "[data-image]").click()
    press(Keys.ARROW_RIGHT)
    _assert_shown(opened, found, images[1], last)
    press(Keys.END)
    _assert_shown(opened, found, images[-1], last)
    press(Keys.ENTER, Keys.HOME)
    _assert_shown(opened, found, images[-1], 0)
    press(Keys.ESCAPE, Keys.ARROW_LEFT)
    _assert_shown(opened, found, images[-2], 0)
    press(Keys.TAB)
    active = "return Number(document.activeElement.dataset.image)"
    assert opened.execute_script(active) == found.samples[1].images[0], "a grid is one stop of the Tab key"
    opened.find_elements("css selector", ".pair [data-image]")[1].click()
    _assert_shown(opened, found, found.pairs[0].second, 0)
    assert opened.find_element("id", "name").text == store.names[found.pairs[0].second]


@pytest.mark.slow
def test_nothing_is_said_or_asked_for(opened, found):
    address = found.page.as_uri()
    opened.find_element("id", "fewer").click()
    wait(opened, "return document.body.dataset.shown.endsWith(' ' + document.getElementById('step').value)", True)
    assert opened.get_log("browser") == []
    asked = requested(opened)
    assert address in asked, "the log works"
    assert [url for url in asked if url != address and not url.startswith("data:")] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 320])
def test_a_phone(chromium, found, width):
    """No sideways scrolling, the slider always in view, and targets that a finger hits."""
    window = _opened(chromium, found, width, 844)
    assert window.execute_script("return document.documentElement.scrollWidth") == width
    script = "const box = document.querySelector(arguments[0]).getBoundingClientRect(); return [box.top, box.bottom]"
    for place in (0, 400, 800):
        window.execute_script("scrollTo(0, arguments[0])", place)
        top, bottom = window.execute_script(script, "aside")
        assert 844 / 2 < top < bottom <= 844
    for selector in ("#fewer", "#more", "[data-image]"):
        size = window.find_element("css selector", selector).size
        assert min(size["width"], size["height"]) >= 44


@pytest.mark.slow
def test_the_dark_scheme(chromium, found):
    script = "const body = getComputedStyle(document.body); return [body.backgroundColor, body.color]"
    for scheme, is_dark in (("dark", True), ("light", False)):
        paper, text = map(brightness, _opened(chromium, found, scheme=scheme).execute_script(script))
        assert (paper < 60 < 180 < text) if is_dark else (text < 80 < 240 < paper)
