"""The programs in docs/examples do what their pages say: run at a small size, their numbers worked out once more."""

from __future__ import annotations

import functools
import json
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hvae_codec import (
    LatentDataset,
    LatentMask,
    encode_images,
    kl_stats,
    load_mask,
    load_model,
    open_images,
    open_store,
    sweep,
)
from photos import save_png
from stores import tree

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
IMAGES = 120
KEEP = 0.3
NPM = ("zarrita@0.7.5", "numcodecs@0.3.2", "@zarrita/storage@0.2.0")
MODULES = {
    "zarrita": "zarrita/dist/src/index.js",
    "@zarrita/storage/": "@zarrita/storage/dist/src/",
    "@zarrita/storage/fetch": "@zarrita/storage/dist/src/fetch.js",
    "numcodecs/zstd": "numcodecs/dist/zstd.js",
    "numcodecs/blosc": "numcodecs/dist/blosc.js",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_run, cut_patches) -> Path:
    """A folder like the quickstart's: data/, runs/photos and out.zarr, of two photographs' patches."""
    place = tmp_path_factory.mktemp("quickstart")
    for i, image in enumerate(cut_patches(IMAGES)):
        split, photograph = "val" if i % 6 < 2 else "train", ("astronaut", "coffee")[i % 2]
        save_png(place / "data" / split / photograph / f"{i:03d}.png", image)
    shutil.copytree(tiny_run, place / "runs" / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)  # a store says where its run is
        model, images = load_model("runs/photos"), open_images("data", size=16, channels=3)
        stats = kl_stats(model, images.split("train"))
        encode_images(model, images, "out.zarr", mask=LatentMask.from_keep(stats, KEEP), stats=stats)
    return place


def test_pages_show_the_programs_as_they_are():
    build = runpy.run_path(str(EXAMPLES.parent / "build_examples.py"))
    shown = []
    for page in EXAMPLES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert build["with_programs"](text) == text, "run python docs/build_examples.py"
        shown += re.findall(r"<!-- program (\S+) -->", text)
    assert sorted(shown) == sorted(file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".html"))


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Runs a program in that folder, as `python NAME ARGUMENTS`; gives what it prints."""
    monkeypatch.chdir(place)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_classifier_on_latents_and_on_pixels(run, place):
    printed = run("classifier.py")
    data = LatentDataset(place / "out.zarr", flat=True)
    z, labels = data[list(range(IMAGES))]
    training = np.array([*data.store.splits]) == "train"
    pixels = np.concatenate(list(open_images("data", size=16, channels=3).batches(IMAGES))).reshape(IMAGES, -1)
    assert f"{training.sum()} training images, {(~training).sum()} held-out ones, of 2 photographs" in printed
    for what, x in (("latents", z.numpy()), ("pixels", pixels.astype(np.float32))):
        classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1000)).fit(x[training], labels[training])
        right = classifier.score(x[~training], labels[~training])
        found = re.search(rf"{what} +([\d,]+) numbers per image: +([\d.]+)%", printed)
        assert int(found[1].replace(",", "")) == x.shape[1]
        assert float(found[2]) == pytest.approx(100 * right, abs=100 / (~training).sum() + 0.06)  # one at a margin


def test_plain_zarr_and_tensorstore_read_what_is_stored(run, place):
    store = open_store(place / "out.zarr")
    codes = store.stored(slice(None))
    total = sum(int(numbers.astype(np.int64).sum()) for numbers in codes.values())
    printed = run("plain_zarr.py")
    assert f"{IMAGES} images; the first is {store.names[0]}, of class {store.labels[0]}" in printed
    assert f"sum of all codes: {total}\n" in printed
    for resolution, numbers in codes.items():
        assert re.search(rf"^z{resolution} .*: {np.count_nonzero(numbers[0])} of", printed, flags=re.MULTILINE)
    pytest.importorskip("tensorstore")
    printed = run("with_tensorstore.py")
    assert f"sum of all codes: {total}\n" in printed
    z = store.latents(slice(None))[f"z{store.resolutions[-1]}"][::100]
    assert f"{z.shape}, standard deviation {z.std():.4f}" in printed


def test_a_flow_learns_and_its_latents_are_decoded(run, place):
    printed = run("flow.py", "--epochs", "12")
    losses = [float(found) for found in re.findall(r"loss of held-out images ([\d.]+)", printed)]
    assert losses[-1] < losses[0]
    with Image.open(place / "flow.png") as picture:
        pixels = np.asarray(picture)
    store = open_store(place / "out.zarr")
    assert pixels.shape == (2 * store.image_size, 3 * (8 * store.image_size + 8), 3)
    training = np.flatnonzero(np.array([*store.splits]) == "train")
    labels, rows = np.array([*store.labels]), []
    for name in ("astronaut", "coffee"):
        of_class = training[labels[training] == name]
        images = store.decode(of_class[np.linspace(0, len(of_class) - 1, 8).astype(int)])
        rows.append(np.concatenate([*images.transpose(0, 2, 3, 1)], axis=1))
    known = np.concatenate(rows)
    np.testing.assert_allclose(pixels[:, : known.shape[1]].astype(int), known, atol=1)
    flow, prior = (pixels[:, k * (known.shape[1] + 8) :][:, : known.shape[1]].astype(int) for k in (1, 2))
    assert np.abs(flow - known).mean() > 2
    assert np.abs(flow - prior).mean() > 2


def test_pruning_in_a_loop(run, place):
    printed = run("prune_in_a_loop.py", "--keep", "0.5", "0.2", "0.02", "--tolerance", "0.05", "--images", "40")
    model, images = load_model("runs/photos"), open_images("data", size=16, channels=3)
    stats = kl_stats(model, images.split("train").evenly(40))
    masks = [LatentMask.from_keep(stats, keep) for keep in (1.0, 0.5, 0.2, 0.02)]
    everything, *rows = sweep(model, images.split("val").evenly(40), masks)
    table = re.findall(
        r"^ *(\d+)% +([\d,]+) +([\d.]+) +([-+][\d.]+) ± ([\d.]+) +([\d.]+) +([\d.]+) +(\d+)$", printed, re.MULTILINE
    )
    assert [line[0] for line in table] == ["50", "20", "2"]
    for line, row in zip(table, rows, strict=True):
        change, error = row.change_from(everything)
        assert int(line[1].replace(",", "")) == row.mask.kept_dims
        measured = [float(figure) for figure in line[2:5]]
        assert measured == pytest.approx([row.nelbo.mean(), change, error], abs=6e-4)
    sizes = [int(line[7]) for line in table]
    assert sizes == sorted(sizes, reverse=True)
    within = [row for row in rows if row.change_from(everything)[0] <= 0.05 * everything.nelbo.mean()]
    assert load_mask("mask.json").kept_dims == within[-1].mask.kept_dims
    assert "none is within -50.0%" in run("prune_in_a_loop.py", "--keep", "0.2", "--tolerance", "-0.5", "--images", "8")


@pytest.mark.slow
def test_dask_writes_the_store_of_a_single_process(run, place):
    printed = run("dask_encode.py", "--keep", str(KEEP))
    store = open_store("dask.zarr")
    assert f"{IMAGES} images, {store.kept_dims:,} latents each, {store.nbytes_on_disk():,} bytes" in printed
    assert tree(place / "dask.zarr") == tree(place / "out.zarr")


@pytest.mark.slow
def test_a_page_reads_a_store_in_a_browser(place, site, tmp_path):
    shutil.copytree(place / "out.zarr", site.folder / "out.zarr")
    printed = _shown(f"{site.address}/browser.html?store=out.zarr&image=7", tmp_path)
    store = zarr.open_group(place / "out.zarr", mode="r")
    size = max(int(name[1:]) for name in store if name[0] == "z")
    codes, steps = store[f"z{size}"], store[f"step{size}"][:]
    assert codes.dtype == np.int8  # which older versions of zarrita refused
    largest = (codes[7] * steps[:, None, None]).max()
    assert f"{IMAGES} images, z{size} [{','.join(map(str, codes.shape))}] int8" in printed
    total, label = codes[7].sum(dtype=int), store["label"][7]
    assert f"image 7, class {label}: sum of its z{size} codes {total}, largest latent {largest:.4f}" in printed


class Site:
    """A folder on a server of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        handler = functools.partial(_Quiet, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path_factory) -> Iterator[Site]:
    """The page, with zarrita from a folder in place of its URL."""
    folder = tmp_path_factory.mktemp("site")
    _install_zarrita(folder)
    page = (EXAMPLES / "browser.html").read_text(encoding="utf-8")
    local = {"imports": {name: f"/node_modules/{path}" for name, path in MODULES.items()}}
    changed, maps = re.subn(r'(<script type="importmap">).*?(</script>)', rf"\1{json.dumps(local)}\2", page, flags=re.S)
    assert maps == 1
    assert f"esm.sh/{NPM[0]}" in page  # the version that is tested
    (folder / "browser.html").write_text(changed, encoding="utf-8")
    site = Site(folder)
    yield site
    site.close()


def _install_zarrita(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, which installs zarrita (Debian: apt-get install npm)")
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=20000"]
    try:
        subprocess.run(
            [npm, "install", "--prefix", str(folder), *quiet, *NPM],
            check=True,
            capture_output=True,
            text=True,
            timeout=90,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm could not install zarrita, perhaps without a network: {str(error.stderr)[-200:]}")


def _shown(address: str, profile: Path) -> str:
    """What the page at `address` says when it has read its store."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        window.get(address)
        WebDriverWait(window, 60).until(lambda window: window.title in ("read", "failed"))
        return window.find_element("id", "output").text
    finally:
        window.quit()
