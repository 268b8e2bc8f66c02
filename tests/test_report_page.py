"""report.html: complete in itself, true to the table, and usable: a headless Chromium moves its slider."""

from __future__ import annotations

import dataclasses
import json
import math
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from browser import brightness, open_page, requested, wait
from hvae_codec.analysis.cutoff_table import Analysis
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.report.groups import kept_group_bits
from hvae_codec.report.page import PAGE_FILE, render_page, save_page, shown_images

pytestmark = pytest.mark.slow

KEEPS = (0.05, 0.1, 0.3, 1.0)
CHANGES = (0.05, 0.01, -0.02, 0.0)
ABOUT = {
    "images": 1234,
    "ranking_images": 24,
    "codec": {"name": "int", "step": 1.0},
    "seed": 7,
    "model_hash": "0123abcd",
    "chosen": 1,
}
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


def analysis_of(stats, images, keeps=KEEPS, granularity="variate", error=0.004) -> Analysis:
    """A table of known figures; the fewer dimensions are kept, the more blurred is what is decoded."""
    masks = [LatentMask.from_keep(stats, keep, granularity=granularity) for keep in keeps]
    decoded = tuple(gaussian_filter(images, (0, 0, 1 - keep, 1 - keep)) for keep in keeps)
    changes = [CHANGES[KEEPS.index(keep)] for keep in keeps]
    table = pd.DataFrame(
        {
            "rule": [f"keep {100 * keep:g}%" for keep in keeps],
            "keep": keeps,
            "cutoff": [mask.cutoff_bits(stats) for mask in masks],
            "kept_variates": [mask.kept_variates for mask in masks],
            "kept_dims": [mask.kept_dims for mask in masks],
            "dims": masks[0].dims,
            "nelbo": [3.5 + change for change in changes],
            "reconstruction": [3.2 + change - 0.1 * keep for change, keep in zip(changes, keeps, strict=True)],
            "kl": [0.3 + 0.1 * keep for keep in keeps],
            "nelbo_change": changes,
            "nelbo_change_se": [error if change else error * 0 for change in changes],
            "psnr": [30 + keep for keep in keeps],
            "ssim": [0.8 + 0.1 * keep for keep in keeps],
            "bytes": [100 + 100 * keep for keep in keeps],
            "bits_per_dim": [(100 + 100 * keep) * 8 / images[0].size for keep in keeps],
            "dense_bytes": 8 * masks[0].dims,
        }
    )
    return Analysis(stats, table, images, decoded, tuple(masks))


@pytest.fixture(scope="module")
def analysis(stats, photo_patches):
    return analysis_of(stats, photo_patches[:10])


class Page(HTMLParser):
    """What is in the page: addresses, text outside scripts, scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.closed = False
        self.scripts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.closed = False
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster")]

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag in ("script", "style") and not self.closed:
            self.scripts[attributes.get("id") or tag] = data
        else:
            self.text += data

    def handle_endtag(self, tag):
        self.closed = True

    @property
    def data(self):
        return json.loads(self.scripts["data"])


@pytest.fixture(scope="module")
def page(analysis):
    return Page(render_page(analysis, ABOUT))


# --- without a browser


def test_one_file_is_written(analysis, tmp_path):
    path = save_page(tmp_path / "new", analysis, ABOUT)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [PAGE_FILE] == [path.name]
    text = path.read_text(encoding="utf-8")
    assert len(text) < 3e6
    assert text == render_page(analysis, ABOUT)


def test_nothing_is_loaded(page):
    assert page.addresses == []
    assert "url(" not in page.scripts["style"]
    assert "@import" not in page.scripts["style"]
    assert "http" not in page.scripts["script"]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert page.data["originals"].startswith("data:image/png;base64,")


def test_figures_of_the_table_are_shown(page, analysis):
    for row in analysis.table.to_dict(orient="records"):
        for cell in (f"{row['kept_dims']:,}", f"{row['nelbo']:.3f}", f"{row['psnr']:.2f}", f"{row['cutoff']:.3g}"):
            assert cell in page.text
    assert f"{analysis.table['dense_bytes'][0]:,} bytes an image" in " ".join(page.text.split())
    assert "+0.01000 ± 0.00400" in page.text
    assert "-0.02000 ± 0.00400" in page.text
    for value in ("0123abcd", "1,234", "int, step 1.0", "bits/dim"):
        assert value in page.text


def test_what_is_said(page, analysis):
    dims = sum(kl.size for kl in analysis.stats.kl_bits)
    kept = analysis.table["kept_dims"].iloc[1]
    assert f"({kept:,} of {dims:,}) suffice" in " ".join(page.text.split())
    words = page.data["cutoffs"][1]["sentences"]
    assert f"{kept:,} of {dims:,} latent dimensions are kept" in words
    assert "3.510 bits/dim, 0.01000 ± 0.00400 (0.29%) above" in words
    assert "All" in page.data["cutoffs"][3]["sentences"]


def test_an_unclear_change_is_called_so(stats, photo_patches):
    page = Page(render_page(analysis_of(stats, photo_patches[:2], error=0.02), ABOUT))
    assert "no clear difference" in page.data["cutoffs"][1]["sentences"]


def test_the_row_shown_first(analysis):
    """The chosen one, else the one nearest to the paper's 3%."""

    def first(chosen):
        page = Page(render_page(analysis, ABOUT | {"chosen": chosen}))
        return next(a["value"] for tag, a in page.tags if a.get("type") == "range")

    assert [first(2), first(0), first(None)] == ["2", "0", "0"]


@pytest.mark.parametrize("granularity", ["variate", "position"])
def test_bars_of_a_cutoff_are_what_its_mask_keeps(stats, photo_patches, granularity):
    analysis = analysis_of(stats, photo_patches[:2], granularity=granularity)
    figures = {f["name"]: f for f in Page(render_page(analysis, ABOUT | {"granularity": granularity})).data["figures"]}
    for index, keep in enumerate(KEEPS):
        mask = LatentMask.from_keep(stats, keep, granularity=granularity)
        kept = kept_group_bits(stats, mask).sum()
        for name in ("groups", "resolutions"):
            assert np.concatenate(figures[name]["kept"][index]).sum() == pytest.approx(kept / (3 * 16 * 16))
    whole = [y for trace in figures["groups"]["figure"]["data"][:3] for y in trace["y"]]
    assert sum(whole) == pytest.approx(stats.per_group.sum() / (3 * 16 * 16))


def test_hostile_text_is_only_text(analysis):
    evil = f"</script><script>alert(1)</script>{EVIL}{{{{ 7 * 7 }}}}"
    about = ABOUT | {"model_hash": evil, "codec": {"name": evil, "step": evil}, "seed": evil, "granularity": "variate"}
    page = Page(render_page(_with_rules(analysis, evil), about, [evil]))
    assert not any(tag == "img" for tag, _ in page.tags)
    assert page.text.count("alert(1)") == page.text.count("{{ 7 * 7 }}") * 2 > 0
    assert len(page.scripts) == 4


def _with_rules(analysis, rule) -> Analysis:
    """With what was asked for: the last row's is `rule`."""
    rules = ["cutoff 0.1 bits", "tolerance 0.5%", "keep 30%", rule]
    return dataclasses.replace(analysis, table=analysis.table.assign(rule=rules))


def test_rules_are_named(analysis):
    page = Page(render_page(_with_rules(analysis, "mine.json"), ABOUT, ["Tolerance 0.5%: found."]))
    assert [cutoff["rule"] for cutoff in page.data["cutoffs"]][1::2] == ["tolerance 0.5%", "mine.json"]
    for text in ("cutoff 0.1 bits", "mine.json", "Tolerance 0.5%: found."):
        assert text in page.text


def test_one_image_one_row(stats, photo_patches):
    """No standard error, and a slider with nowhere to go."""
    page = Page(render_page(analysis_of(stats, photo_patches[:1], (0.1,), error=math.nan), ABOUT | {"chosen": None}))
    assert "NaN" not in page.scripts["data"]
    assert "nan" not in page.text
    assert "one image: no standard error" in page.data["cutoffs"][0]["sentences"]
    slider = next(a for tag, a in page.tags if a.get("type") == "range")
    assert "disabled" in slider
    assert slider["max"] == "0"


def test_what_is_unknown_is_left_out(analysis):
    table = analysis.table.assign(other="more", nelbo_nats=[123.456, 2.0, 1.0, 0.0])
    text = Page(render_page(dataclasses.replace(analysis, table=table), {})).text
    assert "123.46" in text
    assert "seed" not in text
    assert "more" not in text.split("How it was measured")[0].split("All figures")[1]


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (16, 2), (16, 4)])
def test_other_images(stats, cut_patches, size, channels):
    images = cut_patches(3, size, channels)
    page = Page(render_page(analysis_of(stats, images), ABOUT))
    assert sum(tag == "canvas" and a["class"] == "decoded" for tag, a in page.tags if "class" in a) == 3


def test_large_images_are_fewer():
    shapes = ((24, 32), (10, 64), (10, 128), (10, 256), (4, 1024), (1, 28))
    shown = [shown_images(np.zeros((count, 3, size, size), np.uint8)) for count, size in shapes]
    assert shown == [10, 10, 6, 3, 1, 1]


def test_nothing_learnt_can_be_shown(stats, photo_patches):
    """No KL anywhere: no ranking to draw, no share to divide."""
    silent = type(stats)(tuple(np.zeros_like(kl) for kl in stats.kl_bits), stats.posterior_std, 24, "0123")
    page = Page(render_page(analysis_of(silent, photo_patches[:2]), ABOUT))
    assert "they hold 0.0% of the KL" in page.data["cutoffs"][0]["sentences"]


# --- in a browser


@pytest.fixture(scope="module")
def address(analysis, tmp_path_factory):
    return save_page(tmp_path_factory.mktemp("page"), analysis, ABOUT).as_uri()


@pytest.fixture
def opened(chromium, address):
    """The page in a window of 1280 × 900, drawn; afterwards the browser must have had nothing to complain of."""
    return _opened(chromium, address)


def _opened(chromium, address, width=1280, height=900, scheme="light"):
    open_page(chromium, address, width, height, scheme)
    wait(chromium, "return document.body.dataset.drawn")
    return chromium


def _pixels(window, name, place):
    """The canvas of image `place`, uint8 [H, W, 3]."""
    flat = window.execute_script(
        "const c = document.querySelectorAll(arguments[0])[arguments[1]];"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]",
        f".pictures .{name}",
        place,
    )
    return np.array(flat, dtype=np.uint8).reshape(16, 16, 4)[..., :3]


def _assert_shown(window, analysis, index):
    """Everything on the page is of cutoff `index`."""
    keep = f"{100 * KEEPS[index]:g}%"
    wait(window, "return document.getElementById('rule').textContent", f"keep {keep}")
    row = analysis.table.iloc[index]
    share = 100 * row["kept_dims"] / sum(kl.size for kl in analysis.stats.kl_bits)
    kept = f"{share:.3g}%"
    words = window.execute_script("return document.getElementById('sentences').textContent")
    assert f"{row['nelbo']:.3f} bits/dim" in words
    assert f"{row['psnr']:.2f} dB" in words
    slider = window.find_element("id", "cutoff")
    assert slider.get_attribute("aria-valuetext") == f"keep {keep}: {kept} of the latent dimensions"
    assert window.execute_script("return document.querySelector('tr[aria-current] th').textContent") == f"keep {keep}"
    places = window.execute_script(
        "return ['nelbo', 'reconstruction', 'kl', 'quality', 'sorted'].map((name) => {"
        "  const line = document.getElementById('plot-' + name).layout.shapes[0]; return [line.x0, line.x1]; })"
    )
    expected = [share, share, share, row["bits_per_dim"], row["kept_dims"]]
    np.testing.assert_allclose(places, np.repeat(expected, 2).reshape(5, 2))
    level = window.execute_script("return document.getElementById('plot-sorted').layout.shapes[1].y0")
    assert level == pytest.approx(row["cutoff"]) or row["cutoff"] == 0
    for place in (0, 9):
        _wait_for_pixels(window, "decoded", place, analysis.decoded[index][place])
        assert (_pixels(window, "original", place) == analysis.originals[place].transpose(1, 2, 0)).all()


def _wait_for_pixels(window, name, place, image):
    from selenium.webdriver.support.ui import WebDriverWait

    wanted = image.transpose(1, 2, 0)
    WebDriverWait(window, 10).until(lambda _: (_pixels(window, name, place) == wanted).all())


def test_the_slider_moves_by_keyboard(opened, analysis):
    from selenium.webdriver.common.keys import Keys

    slider = opened.find_element("id", "cutoff")
    _assert_shown(opened, analysis, 1)
    before = opened.find_element("id", "plot-nelbo").screenshot_as_png
    for key, index in (
        (Keys.ARROW_RIGHT, 2),
        (Keys.ARROW_RIGHT, 3),
        (Keys.ARROW_LEFT, 2),
        (Keys.HOME, 0),
        (Keys.END, 3),
    ):
        slider.send_keys(key)
        _assert_shown(opened, analysis, index)
    assert opened.find_element("id", "plot-nelbo").screenshot_as_png != before


def test_buttons_rows_and_points_move_it_too(opened, analysis):
    from selenium.webdriver import ActionChains

    opened.find_element("id", "fewer").click()
    _assert_shown(opened, analysis, 0)
    assert not opened.find_element("id", "fewer").is_enabled()
    opened.find_element("id", "more").click()
    _assert_shown(opened, analysis, 1)
    opened.execute_script("document.querySelectorAll('#cutoffs-table tbody tr')[2].click()")
    _assert_shown(opened, analysis, 2)
    point = opened.find_elements("css selector", "#plot-kl .point")[3]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(opened).move_to_element(point).click().perform()
    _assert_shown(opened, analysis, 3)


def test_hovering_gives_figures(opened):
    from selenium.webdriver import ActionChains

    point = opened.find_elements("css selector", "#plot-nelbo .point")[1]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(opened).move_to_element(point).perform()
    wait(opened, "return document.querySelector('#plot-nelbo .hovertext') !== null", True)
    text = opened.find_element("css selector", "#plot-nelbo .hovertext").text
    assert "keep 10%" in text
    assert "3.5100 bits/dim" in text
    assert "+0.01000 ± 0.00400 from all latents" in text


def test_a_hostile_file_name_is_hovered(chromium, analysis, tmp_path):
    from selenium.webdriver import ActionChains

    window = _opened(chromium, save_page(tmp_path, _with_rules(analysis, EVIL), ABOUT).as_uri())
    point = window.find_elements("css selector", "#plot-nelbo .point")[3]
    window.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(window).move_to_element(point).perform()
    wait(window, "return document.querySelector('#plot-nelbo .hovertext') !== null", True)
    assert EVIL in window.find_element("css selector", "#plot-nelbo .hovertext").text
    assert window.find_elements("css selector", "img") == []


def test_the_bars_follow(opened, analysis):
    script = "return document.getElementById('plot-groups').data.slice(3).flatMap((trace) => [...trace.y])"
    opened.find_element("id", "more").click()
    _assert_shown(opened, analysis, 2)
    some = sum(opened.execute_script(script))
    opened.find_element("id", "more").click()
    _assert_shown(opened, analysis, 3)
    everything = sum(opened.execute_script(script))
    assert 0 < some < everything
    assert everything == pytest.approx(analysis.stats.per_group.sum() / (3 * 16 * 16))


def test_differences_can_be_seen(opened, analysis):
    canvas = opened.find_element("css selector", ".difference canvas")
    assert not canvas.is_displayed()
    opened.find_element("id", "differences").click()
    assert canvas.is_displayed()
    difference = np.abs(analysis.originals[0].astype(int) - analysis.decoded[1][0]).transpose(1, 2, 0)
    assert (_pixels(opened, "difference canvas", 0) == difference).all()


def test_nothing_is_said_or_asked_for(chromium, address, analysis):
    for kind in ("browser", "performance"):
        chromium.get_log(kind)  # what earlier tests left
    window = _opened(chromium, address)
    window.find_element("id", "more").click()
    _assert_shown(window, analysis, 2)
    assert window.get_log("browser") == []
    asked = requested(window)
    assert address in asked, "the log works"
    assert [url for url in asked if url != address and not url.startswith(("data:", "blob:"))] == []
    assert window.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone(chromium, address, width):
    """No sideways scrolling of the page, and targets that a finger hits."""
    window = _opened(chromium, address, width, 844)
    assert window.execute_script("return document.documentElement.scrollWidth") == width
    window.find_element("id", "differences").click()
    assert window.execute_script("return document.documentElement.scrollWidth") == width
    for name in ("fewer", "more"):
        size = window.find_element("id", name).size
        assert min(size["width"], size["height"]) >= 44
    widest = (
        "return Math.max(...[...document.querySelectorAll('.plot svg')].map((s) => s.getBoundingClientRect().right))"
    )
    assert window.execute_script(widest) <= width


def test_the_dark_scheme(chromium, address):
    """Text is light on dark, in the plots too, also where the scheme changes while the page is open."""
    window = _opened(chromium, address, scheme="dark")
    script = (
        "const body = getComputedStyle(document.body), plot = document.querySelector('#plot-nelbo .xtick text');"
        "return [body.backgroundColor, body.color, getComputedStyle(plot).fill]"
    )
    paper, text, tick = map(brightness, window.execute_script(script))
    assert paper < 60
    assert min(text, tick) > 180
    light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", light)
    wait(window, "return document.querySelector('#plot-nelbo').layout.font.color", "#1c1f24")
    paper, text, tick = map(brightness, window.execute_script(script))
    assert paper > 240
    assert max(text, tick) < 80
