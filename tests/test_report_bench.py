"""What bench leaves: table, sentences, CSV and JSON, a plot, and a section of the page, also of one that is there."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from hvae_codec.analysis.bench import Bench
from hvae_codec.errors import DataError, ModelError
from hvae_codec.report.bench import bench_sentences, bench_table, check_bench_folder, save_bench
from hvae_codec.report.bench_page import BEGIN, END, bench_section, put_into_page
from hvae_codec.report.bench_rows import load_bench
from hvae_codec.report.cutoffs import plain_rows
from hvae_codec.report.page import PAGE_FILE
from hvae_codec.report.rate_curves import rate_curves

ABOUT = {
    "images": 24,
    "held_out": True,
    "size": 16,
    "channels": 3,
    "bits": 8,
    "source": "ab",
    "model_hash": "0123",
    "model_bytes": 2_300_000,
    "device": "cpu",
    "stores": {"runs/out.zarr": 7800},
    "missing_codecs": [],
}


def row(kind, method, setting, payload, on_disk, psnr, exact=False):
    return {
        "kind": kind,
        "method": method,
        "setting": setting,
        "payload_bytes": 96 * payload,
        "payload_bits_per_dim": payload,
        "bytes": 96 * on_disk,
        "bits_per_dim": on_disk,
        "psnr": psnr,
        "ssim": psnr / 50,
        "exact": exact,
        "encode_per_second": np.nan if kind == "store" else 1234.5,
        "decode_per_second": 0.25,
    }


@pytest.fixture
def found() -> Bench:
    """Two curves of codecs that are straight lines, a model between and outside of them, a store."""
    rows = [
        row("model", "<b>mine</b>.json", "step 0.5", 0.4, np.nan, 33.0),
        row("model", "<b>mine</b>.json", "step 1", 0.3, np.nan, 32.0),
        row("store", "out.zarr", "step 1", 0.2, 0.25, 31.0),
        row("lossless", "PNG", "lossless", 3.0, 4.0, 88.13, exact=True),
        row("lossy", "JPEG", "quality 10", 0.1, 0.8, 30.0),
        row("lossy", "JPEG", "quality 50", 0.3, 1.0, 34.0),
        row("lossy", "WebP", "quality 10", 0.1, 0.2, 31.5),
        row("lossy", "WebP", "quality 50", 0.3, 0.4, 31.8),
    ]
    return Bench(pd.DataFrame(rows), dict(ABOUT))


def test_the_terminals_table(found):
    console = Console(file=io.StringIO(), width=200)
    console.print(bench_table(found))
    text = console.file.getvalue()
    for words in ("24 held-out images, 16 × 16, RGB, 8 bits", "exact", "33.00", "0.400", "384", "1,234", "0.25", "–"):
        assert words in text
    assert "nan" not in text


def test_what_codecs_take_for_the_same_psnr(found):
    model, store, *others = bench_sentences(plain_rows(found.table), found.about)
    assert model.startswith("<b>mine</b>.json, step 1: 32.00 dB at 0.300 bits/dim")
    assert "JPEG 0.200 (0.900), WebP > 0.300 (0.400)" in model
    assert "JPEG 0.150 (0.850), WebP < 0.100 (0.200)" in store
    assert any("2.3 MB" in sentence for sentence in others)
    assert any("runs/out.zarr" in sentence and "7,800" in sentence for sentence in others)
    less = ABOUT | {"bits": 5, "missing_codecs": ["AVIF"], "device": "cuda:0", "stores": {}}
    said = " ".join(bench_sentences(plain_rows(found.table), less))
    for words in ("5 bits", "32 levels", "AVIF", "cuda:0"):
        assert words in said


@pytest.mark.slow
def test_files_agree(found, tmp_path):
    written = save_bench(found, tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["bench.csv", "bench.json", "bench.png"]
    assert "Page" not in written
    document = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert document["about"] == found.about
    for table in (pd.read_csv(tmp_path / "new" / "bench.csv"), pd.DataFrame(document["rows"])):
        pd.testing.assert_frame_equal(table, found.table, check_dtype=False)
    with Image.open(tmp_path / "new" / "bench.png") as picture:
        assert picture.size > (600, 300)
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    save_bench(found, tmp_path / "new")  # its own files are replaced


def test_curves_have_their_points_by_size(found):
    curves = {curve.name: curve for curve in rate_curves(found.table)}
    assert list(curves) == ["<b>mine</b>.json", "out.zarr", "JPEG", "WebP"]
    assert curves["<b>mine</b>.json"].points["payload_bits_per_dim"].tolist() == [0.3, 0.4]
    assert curves["out.zarr"].is_point
    assert len({curve.colour for curve in curves.values()}) == 4


@pytest.mark.usefixtures("blank_pictures")
def test_the_section_is_put_into_a_page_that_is_there(found, tmp_path):
    save_bench(found, tmp_path)
    content = load_bench(tmp_path, "0123")
    page = tmp_path / PAGE_FILE
    page.write_text(f"<p>before</p>{BEGIN}old{END}<p>after</p>", encoding="utf-8")
    for _ in range(2):
        assert put_into_page(page, content)
        text = page.read_text(encoding="utf-8")
        assert text == f"<p>before</p>{BEGIN}{bench_section(content)}{END}<p>after</p>"
    assert "<b>mine" not in text
    assert "&lt;b&gt;mine" in text
    for words in ("PSNR against payload", "JPEG 0.200 (0.900)", "384"):
        assert words in text.replace("&gt;", ">")
    page.write_text("<p>an old page</p>")
    assert not put_into_page(page, content)
    assert page.read_text() == "<p>an old page</p>"
    assert not put_into_page(tmp_path / "none.html", content)


@pytest.mark.usefixtures("blank_pictures")
def test_a_bench_of_another_model_is_not_shown(found, tmp_path):
    save_bench(found, tmp_path)
    assert load_bench(tmp_path, "4567") is None
    assert load_bench(tmp_path / "none", "0123") is None
    (tmp_path / "bench.json").write_text('{"about": {}}')
    with pytest.raises(ModelError, match=r"bench\.json.*hvae-codec bench"):
        load_bench(tmp_path, "0123")


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "bench.csv").write_text("mine")
    with pytest.raises(DataError, match=r"bench\.csv, which is not of bench; give another --out"):
        check_bench_folder(tmp_path, "data")
    with pytest.raises(DataError, match=r"bench\.csv is a file; give another --out"):
        check_bench_folder(tmp_path / "bench.csv" / "new", "data")
    (tmp_path / "images" / "cats").mkdir(parents=True)
    with pytest.raises(DataError, match="folder of the images"):
        check_bench_folder(tmp_path / "images", str(tmp_path / "images"))
    check_bench_folder(tmp_path / "new", "data")
