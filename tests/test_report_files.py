"""What reports leave on disk and in the terminal: CSV, JSON, pictures, tables."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from hvae_codec.analysis.cutoff_cost import ChosenCutoff, choose_and_measure, cutoff_cost
from hvae_codec.analysis.cutoff_table import analyze
from hvae_codec.analysis.ranking_file import FOLDER, find_ranking, keep_ranking, ranking_path
from hvae_codec.analysis.step_choice import AutoStep
from hvae_codec.config import Config
from hvae_codec.data.sources import as_source
from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
from hvae_codec.encode.pipeline import encode_images
from hvae_codec.errors import DataError, ModelError, StoreError
from hvae_codec.model.checkpoint import keep_weights, load_model, load_weights, model_hash, save_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.presets import load_preset, preset_names
from hvae_codec.prune.cutoffs import CutoffSpec
from hvae_codec.prune.kl_stats import kl_stats, load_kl_stats, save_kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.report import plots
from hvae_codec.report.about import count_parameters, describe, store_sizes
from hvae_codec.report.analysis_files import check_folder
from hvae_codec.report.cutoff_sentences import (
    best_sentence,
    choice_sentences,
    cost_sentence,
    kept_ranking_sentence,
    ranking_sentence,
)
from hvae_codec.report.cutoffs import cutoff_table, load_table, save_table
from hvae_codec.report.plots import save_cutoff_curve, save_reconstruction_sheet
from hvae_codec.report.presets import preset_rows, preset_table
from hvae_codec.store.disk_use import disk_use
from hvae_codec.store.quantiser import IntCodec

KEEPS = (0.05, 0.3, 1.0)
LABELS = ("keep 5%", "keep 30%", "keep 100%")
ABOUT = {"images": 24, "ranking_images": 24, "codec": {"name": "int"}, "seed": 0}


def silent(name):
    return lambda done, total: None


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


@pytest.fixture(scope="module")
def analysis(tiny_model, stats, photo_patches):
    source = as_source(photo_patches)
    cutoffs = [CutoffSpec(keep=keep).cutoff(tiny_model, stats) for keep in KEEPS]
    return analyze(tiny_model, stats, source, cutoffs, IntCodec(), batch_size=64, seed=0)


@pytest.fixture
def run(tiny_run, tiny_config, tmp_path):
    """A copy of the tiny run that a test may add to."""
    save_model(tmp_path / "runs" / "tiny", tiny_config, load_weights(tiny_run / "model.safetensors"))
    return tmp_path / "runs" / "tiny"


def shown(*tables) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(*tables)
    return console.file.getvalue()


def test_csv_and_json_agree(analysis, tmp_path):
    save_table(tmp_path / "new" / "folder", analysis.table, ABOUT)
    folder = tmp_path / "new" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == ["cutoffs.csv", "cutoffs.json"]
    document = json.loads((folder / "cutoffs.json").read_text())
    assert document["about"] == ABOUT
    from_csv, from_json = pd.read_csv(folder / "cutoffs.csv"), pd.DataFrame(document["cutoffs"])
    for table in (from_csv, from_json, load_table(folder)[0]):
        pd.testing.assert_frame_equal(table, analysis.table, check_exact=False, rtol=1e-9)
    assert load_table(tmp_path) is None


def test_a_table_of_one_image(analysis, tmp_path, run):
    """Its changes have no standard error: NaN in the table, null in JSON, and both can be shown."""
    table = analysis.table.assign(nelbo_change_se=math.nan)
    save_table(run / FOLDER, table, ABOUT)
    text = (run / FOLDER / "cutoffs.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["cutoffs"][0]["nelbo_change_se"] is None
    facts = describe(run)
    assert "30%" in shown(*facts.render())
    assert "NaN" not in json.dumps(facts.data)


def test_the_terminals_table(analysis):
    text = shown(cutoff_table(analysis.table, ABOUT))
    for row in analysis.table.to_dict(orient="records"):
        assert f"{row['kept_dims']:,}" in text
        assert f"{row['nelbo']:.3f}" in text
        assert f"{row['psnr']:.2f}" in text
    assert "24 held-out images, variates ranked on 24" in text
    nats = analysis.table.assign(nelbo_nats=123.456)
    assert "123.46" in shown(cutoff_table(nats, ABOUT))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
def test_the_curve_is_a_picture(analysis, tmp_path, rows):
    path = save_cutoff_curve(tmp_path, analysis.table.tail(rows))
    assert_drawn(path, (600, 300))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kept", [(705, 1523, 3079, 5184, 6752, 15024, 76304), (9, 10, 11, 12), (7, 76304), (5,)])
def test_labels_of_the_curve_do_not_run_into_each_other(analysis, tmp_path, monkeypatch, kept):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    row = analysis.table.iloc[[0]]
    save_cutoff_curve(tmp_path, pd.concat([row.assign(kept_dims=dims, dims=76304) for dims in kept]))
    (figure,) = drawn
    figure.draw_without_rendering()
    for axes in figure.axes[:3]:
        labels = [label for label in axes.get_xticklabels() if label.get_text()]
        assert {labels[0].get_text(), labels[-1].get_text()} == {
            f"{dims / 763.04:.3g}%" for dims in (kept[0], kept[-1])
        }
        boxes = [label.get_window_extent() for label in labels]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.slow
def test_the_sheet_shows_the_images(analysis, tmp_path, cut_patches):
    path = save_reconstruction_sheet(tmp_path, analysis.originals, analysis.decoded, LABELS)
    assert_drawn(path, (500, 200))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    white = np.full_like(analysis.originals, 255)
    other = save_reconstruction_sheet(tmp_path, white, [white] * 3, LABELS)
    with Image.open(other) as blank:
        assert np.asarray(blank.convert("L")).mean() > 240
    for channels in (1, 2, 4):
        images = cut_patches(2, 16, channels)
        assert_drawn(save_reconstruction_sheet(tmp_path, images, [images], ["10%"]), (100, 50))


def assert_drawn(path, at_least) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= at_least[0]
        assert image.height >= at_least[1]
        pixels = np.asarray(image.convert("L"), dtype=float)
    assert pixels.std() > 10
    assert (pixels < 128).mean() > 0.002


# --- runs and stores


def test_facts_of_a_run(run, analysis, tiny_config):
    text = shown(*describe(run).render())
    assert "3 × 16 × 16, 8 bits" in text
    facts = describe(run)
    assert facts.data["parameters"] == sum(w.numel() for w in load_weights(run / "model.safetensors").values())
    assert facts.data["cutoffs"] is None
    assert facts.data["trained"]
    save_table(run / FOLDER, analysis.table, ABOUT)
    facts = describe(run)
    assert [row["keep"] for row in facts.data["cutoffs"]] == list(KEEPS)
    assert json.loads(json.dumps(facts.data)) == facts.data
    assert "30%" in shown(*facts.render())
    assert (facts.data["steps"], facts.data["kept_weights"]) == (None, [])
    model = load_model(run)
    keep_weights(model)
    (run / "state").mkdir()
    for ending in ("safetensors", "json"):
        (run / "state" / f"step-000000003.{ending}").touch()
    facts = describe(run)
    assert facts.data["model_hash"] == model_hash(model)
    assert (facts.data["steps"], facts.data["kept_weights"]) == (3, [model_hash(model)])
    assert "3 of 8" in shown(*facts.render())
    assert f"1, of stores: {model_hash(model)[:12]}" in shown(*facts.render())
    (run / "model.safetensors").write_bytes(b"torn")
    assert "cannot read the weights" in shown(*describe(run).render())
    (run / "model.safetensors").unlink()
    assert "not yet" in shown(*describe(run).render())
    assert not describe(run).data["trained"]


def test_facts_of_a_store(tiny_model, stats, photo_patches, tmp_path):
    mask = LatentMask.from_keep(stats, 0.3)
    store = encode_images(tiny_model, photo_patches, tmp_path / "out.zarr", mask=mask, stats=stats)
    facts = describe(tmp_path / "out.zarr")
    assert json.loads(json.dumps(facts.data)) == facts.data
    assert (facts.data["images"], facts.data["kept_dims"]) == (24, mask.kept_dims)
    sizes = store_sizes(store, disk_use(store))
    assert list(sizes.values())[-1] == store.nbytes_on_disk() == list(facts.data["bytes"].values())[-1]
    assert sizes["pixels"] == 24 * 3 * 16 * 16
    assert sizes["dense latents (mean and std, float32)"] == 24 * 8 * tiny_model.config.latent_dims
    text = shown(*facts.render())
    assert f"{store.nbytes_on_disk():,}" in text
    assert "24" in text


@pytest.mark.parametrize(
    ("changes", "name", "bits"), [({"output": "bernoulli"}, "pixels (1 bit)", 1), ({"bits": 5}, "pixels (5 bits)", 5)]
)
def test_pixels_count_the_bits_they_have(tiny_config, cut_patches, tmp_path, changes, name, bits):
    config = dataclasses.replace(tiny_config.model, channels=1, **changes)
    model, images = HVAE(config).eval(), cut_patches(3, config.image_size, 1)
    stats = kl_stats(model, images)
    store = encode_images(model, images, tmp_path / "out.zarr", mask=LatentMask.from_keep(stats, 0.3), stats=stats)
    assert store_sizes(store, disk_use(store))[name] == -(-3 * config.image_size**2 * bits // 8)


def test_what_is_neither_a_run_nor_a_store(tmp_path):
    with pytest.raises(DataError, match=r"is neither .* nor a run"):
        describe(tmp_path)
    with pytest.raises(StoreError, match="there is no store"):
        describe(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="train one first"):
        describe(tmp_path / "latest")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny32", "cifar10_C1"])
def test_parameters_are_counted(name):
    config = load_preset(name)
    assert count_parameters(config) == sum(p.numel() for p in HVAE(config.model).parameters())


def test_the_table_of_presets(monkeypatch):
    names = [name for name in preset_names() if name in ("cifar10_C1", "binarized_mnist_baseline", "tiny32")]
    monkeypatch.setattr("hvae_codec.report.presets.preset_names", lambda: names)
    rows = preset_rows()
    assert [row["name"] for row in rows] == names
    assert json.loads(json.dumps(rows)) == rows
    text = shown(preset_table(rows))
    assert all(row["name"] in text and f"{row['parameters']:,}" in text for row in rows)


# --- what encode says


def test_the_ranking_is_kept_with_the_run(run, photo_patches, tiny_config):
    source = as_source(photo_patches)
    model = load_model(run)
    found = find_ranking(model, TrainingAndHeldOut(source), 64, 0, silent)
    assert "made one of" in ranking_sentence(found)
    assert ranking_path(run).exists()
    again = find_ranking(model, TrainingAndHeldOut(source), 64, 0, silent)
    assert "of these training images" in ranking_sentence(again)
    others = find_ranking(model, TrainingAndHeldOut(as_source(photo_patches[:5])), 64, 0, silent)
    assert " images that are not these training images" in ranking_sentence(others)
    assert "analyze-kl ranks on these" in ranking_sentence(others)
    for a, b in zip(found.stats.kl_bits, again.stats.kl_bits, strict=True):
        np.testing.assert_array_equal(a, b)
    weights = {name: weight + 0.01 for name, weight in load_weights(run / "model.safetensors").items()}
    save_model(run, Config(tiny_config.model), weights)  # trained on: the ranking is of an older model
    newer = find_ranking(load_model(run), TrainingAndHeldOut(source), 64, 0, silent)
    assert "made one of" in ranking_sentence(newer)
    assert newer.stats.model_hash != found.stats.model_hash
    assert load_kl_stats(ranking_path(run)).model_hash == newer.stats.model_hash


def test_a_ranking_stays_if_another_one_is_of_fewer_images(run, photo_patches, tmp_path):
    model, path = load_model(run), tmp_path / "analysis" / "kl_stats.npz"
    few, more, others = (kl_stats(model, photo_patches[part]) for part in (slice(6), slice(12), slice(12, 24)))

    def kept(stats, overwrite=False):
        return kept_ranking_sentence(keep_ranking(path, stats, overwrite=overwrite))

    assert kept(few) == kept(few) == str(path)
    assert kept(more) == f"{path}, in place of one of 6 images"
    content = path.read_bytes()
    assert "of 12 images, and this one of 6 images; --overwrite" in kept(few)
    assert path.read_bytes() == content
    assert kept(others) == f"{path}, in place of one of 12 images"  # as many: the one that was asked for last
    assert kept(few, overwrite=True) == f"{path}, in place of one of 12 images"
    assert load_kl_stats(path).images == 6
    assert kept(dataclasses.replace(few, model_hash="another")) == str(
        path
    )  # one of another model ranks nothing of this one
    path.write_bytes(b"damaged")
    assert kept(few) == str(path)
    assert load_kl_stats(path).images == 6


def test_a_ranking_without_maxima_is_replaced(run, photo_patches, tmp_path):
    path, stats = tmp_path / "kl_stats.npz", kl_stats(load_model(run), photo_patches)
    save_kl_stats(path, dataclasses.replace(stats, largest_mean=None))  # as older versions wrote it
    assert keep_ranking(path, stats, overwrite=False).stays is None
    assert load_kl_stats(path).largest_mean is not None


def test_a_variate_larger_than_the_share_is_said(tiny_model, stats):
    cutoff = CutoffSpec(keep=0.0001).cutoff(tiny_model, stats)
    assert cutoff.mask.kept_variates == 1
    assert f"alone holds {100 * cutoff.mask.kept_share:.2g}% of the dimensions, more than 0.01%" in cutoff.note
    assert CutoffSpec(keep=1.0).cutoff(tiny_model, stats).note == ""


def test_the_cost_of_a_cutoff(tiny_model, stats, photo_patches, run):
    source = as_source(photo_patches)
    mask = LatentMask.from_keep(stats, 0.3)
    kept, all_of_it = (CutoffSpec(keep=keep).cutoff(tiny_model, stats) for keep in (0.3, 1.0))
    cost = cutoff_cost(tiny_model, source, stats, ChosenCutoff(kept), batch_size=64, seed=0)
    assert cost.images == len(source)
    everything = cutoff_cost(tiny_model, source, stats, ChosenCutoff(all_of_it), batch_size=64, seed=0)
    assert everything.kept == everything.everything == cost.everything
    text = cost_sentence(cost, mask)
    assert f"Kept {mask.kept_dims:,} of {mask.dims:,}" in text
    assert f"{cost.kept:.3f}" in text
    common = {"batch_size": 64, "seed": 0, "stage": silent}
    model = load_model(run)  # a copy, which gets a step
    chosen = choose_and_measure(CutoffSpec(keep=0.3), model, stats, source.split("val"), AutoStep(), **common)
    assert chosen.cutoff.mask.kept_dims == mask.kept_dims
    assert chosen.codec.codec == IntCodec(chosen.codec.found.step)
    kept, step, stored = choice_sentences(chosen)
    assert f"on {len(source.split('val'))} held-out images" in kept
    assert f"Step {chosen.codec.found.step:g}" in step
    assert f"{chosen.cost.stored.bits + chosen.cost.stored.distortion:.3f} bits/dim" in stored


def best(images: int = 800, **changes: float) -> str:
    """Of three cutoffs, the second of which may be better than all latents."""
    row = {"nelbo_change_se": 1e-3, "kept_dims": 5, "dims": 9}
    rows = [row | {"rule": rule, "nelbo_change": change} for rule, change in (("a", 0.1), ("b", 0.0), ("c", 0.0))]
    found = row | {"rule": "tolerance 0%", "nelbo_change": -1.0}  # the best of many that were tried
    dense = row | {"rule": "keep 100%", "nelbo_change": 0.0, "kept_dims": 9}
    return best_sentence(pd.DataFrame([rows[0], rows[1] | changes, rows[2], found, dense]), images)


def test_whether_a_cutoff_improves_the_bound():
    assert best() == "No cutoff improves the bound."
    sure, unsure = best(nelbo_change=-0.003), best(images=3, nelbo_change=-0.003)
    for sentence in (sure, unsure):
        assert "b improves the bound by 0.00300 bits/dim: 3.0 standard" in sentence
    assert "best of 3 cutoffs" in sure
    assert "chance" in unsure  # Student's t: 5.3 are needed
    assert re.search("2.0 standard .* chance", best(nelbo_change=-0.002))  # of three, 2.13 are needed
    assert "one image says nothing" in best(nelbo_change=-0.002, nelbo_change_se=math.nan)
    assert best_sentence(pd.DataFrame([{"rule": "keep 100%", "nelbo_change": 0.0, "kept_dims": 9, "dims": 9}]), 5) == ""


def test_a_table_that_lacks_figures(analysis, run):
    save_table(run / FOLDER, analysis.table.assign(nelbo=math.nan), ABOUT)
    with pytest.raises(ModelError, match=r"cutoffs.json lacks figures; make"):
        describe(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a$\\frac$b.json", "[red].json", "写真.json"])
def test_names_of_masks_are_shown_as_they_are(analysis, tmp_path, name):
    table = analysis.table.assign(rule=[name, *analysis.table["rule"][1:]])
    console = Console(file=io.StringIO(), width=200, markup=False)
    console.print(cutoff_table(table, ABOUT))
    assert name in console.file.getvalue()
    save_reconstruction_sheet(tmp_path, analysis.originals, analysis.decoded, table["rule"].tolist())


def test_folders_that_are_not_of_an_analysis(tmp_path):
    check_folder(tmp_path / "new", tmp_path / "data")
    check_folder(tmp_path, tmp_path / "data")
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(DataError, match=r"holds report.html, .*; give another --out"):
        check_folder(tmp_path, tmp_path / "data")
    (tmp_path / "cutoffs.json").write_text("{}")
    check_folder(tmp_path, tmp_path / "data")
    with pytest.raises(DataError, match="no folder; give another --out"):
        check_folder(tmp_path / "report.html", tmp_path / "data")


def test_no_analysis_goes_among_the_images(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.JPG").touch()
    for folder in (tmp_path, tmp_path / "cats"):
        with pytest.raises(DataError, match=r"folder of the images .*; give a new folder as --out"):
            check_folder(folder, tmp_path)
    (tmp_path / "run" / "analysis").mkdir(parents=True)
    (tmp_path / "run" / "analysis" / "kl_stats.npz").touch()
    for folder in ("new", "run/analysis"):
        check_folder(tmp_path / folder, tmp_path)
