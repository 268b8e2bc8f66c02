"""Steps that a run stores: found once, for each model, mask and tolerance, and the same for all who look for one."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from hvae_codec.analysis import step_choice
from hvae_codec.analysis.cutoff_cost import StoredCost
from hvae_codec.analysis.step_choice import AutoStep, ChosenCodec, choose_codecs
from hvae_codec.analysis.step_file import keep_step, step_key, steps_path, stored_step
from hvae_codec.analysis.step_search import FoundStep
from hvae_codec.data.sources import as_source
from hvae_codec.errors import ModelError, UsageError
from hvae_codec.model.checkpoint import load_model, load_weights, save_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.report.step_sentences import step_sentence, steps_sentences, stored_sentence
from hvae_codec.store.quantiser import FloatCodec, IntCodec

FOUND = FoundStep(1.57, 0.0, 3.291, 3.277, 0.005, 0.98, 512, True, True)
EXACT = AutoStep()


@pytest.fixture
def model(tiny_run, tiny_config, tmp_path) -> HVAE:
    """The tiny model, from a run that a test may add to."""
    save_model(tmp_path / "run", tiny_config, load_weights(tiny_run / "model.safetensors"))
    return load_model(tmp_path / "run")


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


@pytest.fixture(scope="module")
def masks(stats) -> list[LatentMask]:
    return [LatentMask.from_keep(stats, keep) for keep in (0.1, 0.3, 1.0)]


@pytest.fixture
def choose(model, stats, photo_patches):
    """`choose(masks, wanted)`: codecs, from 12 images."""

    def call(masks, wanted=EXACT, **how) -> list[ChosenCodec]:
        images = as_source(photo_patches[:12])
        return choose_codecs(wanted, model, masks, stats, images, stage=lambda name: lambda done, total: None, **how)

    return call


def never(*_, **__):
    raise AssertionError("nothing is to be measured")


def test_what_was_found_is_found_again(choose, model, masks, monkeypatch):
    (middle,) = choose([masks[1]])
    assert (middle.is_new, middle.path) == (True, steps_path(model.run))
    all_of_them = choose(masks)  # those that are missing
    assert [each.is_new for each in all_of_them] == [True, False, True]
    assert all_of_them[1].codec == middle.codec == IntCodec(middle.found.step)
    looser = choose([masks[1]], AutoStep(0.05))[0]
    assert looser.codec.step > middle.codec.step
    monkeypatch.setattr(step_choice, "find_steps", never)
    again = choose(masks)
    assert [each.codec for each in again] == [each.codec for each in all_of_them]
    assert [each.found for each in again] == [each.found for each in all_of_them]
    assert choose([masks[1]], AutoStep(0.05))[0].found == looser.found


def test_a_step_that_was_found_on_other_images_says_so(choose, model, masks, stats, photo_patches):
    choose([masks[1]])
    (same,) = choose([masks[1]])
    assert same.is_of_these_images
    assert "other images" not in step_sentence(same)
    quiet = {"stage": lambda name: lambda done, total: None}
    (other,) = choose_codecs(EXACT, model, [masks[1]], stats, as_source(photo_patches[12:]), **quiet)
    assert (other.codec, other.is_new, other.is_of_these_images) == (same.codec, False, False)
    assert "other images" in step_sentence(other)
    document = json.loads(steps_path(model.run).read_text())
    del document["steps"][0]["source"]
    steps_path(model.run).write_text(json.dumps(document))
    (unknown,) = choose([masks[1]])
    assert (unknown.codec, unknown.is_of_these_images) == (same.codec, True)


def test_a_mask_of_a_file_is_the_same_mask(stats, masks):
    of_file = LatentMask.from_dict({**masks[1].to_dict(), "model_hash": ""})
    assert step_key(of_file, stats, 0.0) == step_key(masks[1], stats, 0.0)
    by_position = LatentMask.from_keep(stats, 0.3, granularity="position")
    other_ranking = dataclasses.replace(stats, posterior_std=tuple(1.1 * std for std in stats.posterior_std))
    keys = [step_key(masks[0], stats, 0.0), step_key(by_position, stats, 0.0), step_key(masks[1], other_ranking, 0.0)]
    assert all(key != step_key(masks[1], stats, 0.0) for key in keys)


def test_of_two_searches_at_once_the_first_one_counts(choose, model, stats, masks, monkeypatch):
    """The other process stores its step while this one looks."""
    search, key = step_choice.find_steps, step_key(masks[1], stats, 0.0)

    def overtaken(*arguments, **options):
        found = search(*arguments, **options)
        keep_step(steps_path(model.run), key, FOUND)
        return found

    monkeypatch.setattr(step_choice, "find_steps", overtaken)
    (chosen,) = choose([masks[1]])
    assert (chosen.codec, chosen.found) == (IntCodec(1.57), FOUND)
    assert keep_step(steps_path(model.run), key, dataclasses.replace(FOUND, step=3.0)) == FOUND
    assert len(json.loads(steps_path(model.run).read_text())["steps"]) == 1


def test_a_step_of_one_image_is_kept_too(tmp_path, stats, masks):
    key = step_key(masks[1], stats, 0.0)
    keep_step(tmp_path / "steps.json", key, dataclasses.replace(FOUND, change_se=math.nan, confidence=math.nan))
    assert "NaN" not in (tmp_path / "steps.json").read_text()
    found = stored_step(tmp_path / "steps.json", key)
    assert np.isnan([found.change_se, found.confidence]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["steps.json"]


def test_a_run_that_cannot_be_written_to(choose, model, masks):
    """One process goes on; of several, each is told what to give to all."""
    (model.run / "analysis").write_text("in the way")
    (chosen,) = choose([masks[1]])
    assert chosen.write_error
    assert f"could not be kept in {steps_path(model.run)} ({chosen.write_error})" in step_sentence(chosen)
    with pytest.raises(UsageError, match=f"give each of them --step {chosen.codec.step:g}"):
        choose([masks[1]], is_shared=True)


def test_nothing_is_kept_if_that_is_not_wanted(choose, model, masks):
    (chosen,) = choose([masks[1]], keep=False)
    assert (chosen.is_new, chosen.path) == (True, None)
    assert not steps_path(model.run).exists()
    assert "kept" not in step_sentence(chosen)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"steps": [3]}', '{"steps": 3}', "ENTRY", "STEP"], ids=lambda content: content[:8]
)
def test_a_damaged_file(choose, model, stats, masks, content):
    key = step_key(masks[1], stats, 0.0)
    whole = key | dataclasses.asdict(FOUND)
    content = {"ENTRY": json.dumps({"steps": [key]}), "STEP": json.dumps({"steps": [whole | {"step": -1}]})}.get(
        content, content
    )
    steps_path(model.run).parent.mkdir()
    steps_path(model.run).write_text(content)
    with pytest.raises(ModelError, match=r"steps\.json.*remove the file"):
        choose([masks[1]])


def test_codecs_that_need_no_search(choose, masks, monkeypatch):
    monkeypatch.setattr(step_choice, "find_steps", never)
    for codec in (IntCodec(2.0), FloatCodec("float16")):
        assert choose(masks, codec) == [ChosenCodec(codec)] * 3
    assert step_sentence(ChosenCodec(IntCodec(2.0))) == ""


def test_a_run_with_codes_brings_its_steps(tiny_config, photo_patches, monkeypatch):
    monkeypatch.setattr(step_choice, "find_steps", never)
    model = HVAE(dataclasses.replace(tiny_config.model, learned_steps=True)).eval().requires_grad_(False)
    stats = kl_stats(model, photo_patches[:4])
    masks = [LatentMask.everything(stats)] * 2
    codecs = choose_codecs(AutoStep(), model, masks, stats, as_source(photo_patches), stage=lambda name: never)
    assert codecs == [ChosenCodec(IntCodec(1.0), is_learned=True)] * 2
    with pytest.raises(UsageError, match=r"0\.5%.*leave --step-tolerance out"):
        choose_codecs(AutoStep(0.005), model, masks, stats, as_source(photo_patches), stage=lambda name: never)
    assert "learned" in steps_sentences(codecs, ["a", "b"])[0]
    coarse, plain = (
        choose_codecs(codec, model, masks, stats, as_source(photo_patches), stage=lambda name: never)[0]
        for codec in (IntCodec(1.4), FloatCodec("float16"))
    )
    assert step_sentence(codecs[0]) == "Steps: those that the run has learned."
    assert step_sentence(coarse) == "Steps: those that the run has learned, times 1.4."
    assert step_sentence(plain) == ""


def test_what_is_said_of_what_is_stored():
    """Codes at the steps that were learned are what the run was trained for: there is no change to tell of."""
    stored = StoredCost(0.318, 3.834, 0.012, 0.003, 29.05, 256)
    found, learned = ChosenCodec(IntCodec(1.7), FOUND), ChosenCodec(IntCodec(), is_learned=True)
    assert "(+0.01200 ± 0.00300 from posterior samples)" in stored_sentence(stored, 800, found)
    assert "3.834 of distortion; PSNR 29.05 dB" in stored_sentence(stored, 800, learned)
    coarse = ChosenCodec(IntCodec(1.4), is_learned=True)
    assert "(+0.01200 ± 0.00300 from the steps as learned)" in stored_sentence(stored, 800, coarse)


def test_what_is_said_of_a_step():
    text = step_sentence(ChosenCodec(IntCodec(1.57), FOUND))
    for part in ("Step 1.57", "3.277", "3.291 (-0.43% ± 0.15%)", "98% confidence", "512 held-out images"):
        assert part in text
    looser = dataclasses.replace(FOUND, tolerance=0.005, held_out=False, confidence=0.995)
    text = step_sentence(ChosenCodec(IntCodec(1.57), looser))
    for part in ("within 0.5% above", "more than 99% confidence", "512 training images"):
        assert part in text
    assert "the largest that is tried" in step_sentence(
        ChosenCodec(IntCodec(16.0), dataclasses.replace(FOUND, step=16.0))
    )
    none = dataclasses.replace(FOUND, step=1.0, distortion=3.3, is_tolerable=False)
    assert "none from 0.1 on" in step_sentence(ChosenCodec(IntCodec(1.0), none))
    said = steps_sentences([ChosenCodec(IntCodec(), none), ChosenCodec(IntCodec(1.57), FOUND)], ["keep 1%", "keep 3%"])
    assert len(said) == 2
    assert "keep 1%" in said[1]
    assert "keep 3%" not in said[1]
    alone = dataclasses.replace(FOUND, images=1, change_se=math.nan, confidence=math.nan)
    assert "one image gives no confidence" in step_sentence(ChosenCodec(IntCodec(1.57), alone))
