from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.errors import HvaeCodecError, ModelError
from hvae_codec.model.checkpoint import fill_model
from hvae_codec.model.choices import gaussian_noise
from hvae_codec.model.hvae import HVAE
from hvae_codec.published.efficient_vdvae import import_published, published_names
from hvae_codec.published.efficient_vdvae_config import evaluate, read_published_config

GOLDEN = Path(__file__).parent / "golden"
SYMMETRIC = GOLDEN / "symmetric" / "checkpoints-symmetric"
CFG = GOLDEN / "symmetric" / "hparams-symmetric.cfg"
CFG_TEXT = CFG.read_text()


def with_lines(**values: str) -> str:
    """The symmetric model's cfg with the lines of some keys replaced."""
    lines = CFG_TEXT.splitlines()
    for key, value in values.items():
        places = [i for i, line in enumerate(lines) if line.split(" = ")[0] == key]
        assert places, key
        for i in places:
            lines[i] = f"{key} = {value}"
    return "\n".join(lines) + "\n"


def refused(call: Callable, *args: object) -> str:
    with pytest.raises(HvaeCodecError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def cfg(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str | None = None, **values: str) -> Path:
        path = tmp_path / "model.cfg"
        path.write_text(with_lines(**values) if text is None else text)
        return path

    return write


def save_published(path: Path, model: HVAE) -> Path:
    """A checkpoint in the published layout with the weights of `model`."""
    names = published_names(model.config)
    state = {names[name]: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({"global_step": 7, "model_state_dict": state, "ema_model_state_dict": state}, path)
    return path


# --- names


@pytest.mark.parametrize("name", ["symmetric", "asymmetric"])
def test_every_published_tensor_has_one_place(name: str):
    checkpoint, config_file = (GOLDEN / name / f"{kind}-{name}" for kind in ("checkpoints", "hparams"))
    config_file = config_file.with_suffix(".cfg")
    published = torch.load(checkpoint, weights_only=True)
    for weights, key in (("ema", "ema_model_state_dict"), ("raw", "model_state_dict")):
        config, own = import_published(checkpoint, config_file, weights)
        names = published_names(config.model)
        assert sorted(names.values()) == sorted(published[key])
        for own_name, tensor in own.items():
            assert torch.equal(tensor, published[key][names[own_name]])


def test_names_of_parallel_training_lose_their_prefix(tmp_path: Path):
    checkpoint = torch.load(SYMMETRIC, weights_only=True)
    state = {f"module.{name}": tensor for name, tensor in checkpoint["ema_model_state_dict"].items()}
    torch.save({"ema_model_state_dict": state}, tmp_path / "c")
    expected, own = import_published(SYMMETRIC, CFG)[1], import_published(tmp_path / "c", CFG)[1]
    assert all(torch.equal(own[name], expected[name]) for name in expected)


def test_what_is_read_from_the_configuration():
    config = read_published_config(GOLDEN / "asymmetric" / "hparams-asymmetric.cfg")
    assert config.model.bins == "published"
    assert (config.model.resolution, config.model.channels, config.model.bits) == (32, 3, 5)
    assert (config.model.output_scale, config.model.min_output_logscale) == ("logstd", -7.0)
    assert config.model.stages == (
        StageConfig(32, 16, 5, bottleneck=1.0, extra_bottom_up=1, extra_top_down=1),
        StageConfig(16, 16, 5, bottleneck=0.5, linked_blocks=2, extra_top_down=2, extra_top_down_after=0),
        StageConfig(8, 24, 5, bottleneck=0.5),
        StageConfig(4, 32, 5, bottleneck=0.25, extra_bottom_up=2, extra_top_down=1),
        StageConfig(1, 32, 5, bottleneck=0.25, kernel=1),
    )
    assert (config.optimizer.name, config.optimizer.decay_start, config.optimizer.clip_norm) == ("adamax", 50000, None)
    assert (config.optimizer.skip_threshold, config.train.batch_size) == (800.0, 4)
    assert (config.loss.kl_schedule, config.loss.balance_groups, config.loss.balance_by_size) == ("linear", True, True)


# --- other designs


DESIGNS = {
    "residual": ({"use_residual_distribution": "True"}, {"residual_distribution": True}),
    "logstd": ({"distribution_base": "'logstd'"}, {"posterior_scale": "logstd"}),
    "two cells": ({"up_n_blocks": "[2] * 6", "down_n_blocks": "[2] * 6"}, {"cells_per_block": 2}),
    "k x k ends": ({"use_1x1_conv": "False"}, {"pointwise_ends": False}),
    "layers": ({"up_n_layers": "[1] * 6", "down_n_layers": "[1] * 6"}, {"middle_layers": 1}),
    "zero prior": ({"initialize_prior_weights_as_zero": "True"}, {"zero_prior_weights": True}),
    "input kernel": ({"input_kernel_size": "(3, 3)"}, {"input_kernel": 3}),
    "output beta": ({"output_gradient_smoothing_beta": "1."}, {"output_beta": 1.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_other_designs_are_imported(name: str, cfg, tmp_path: Path, cut_patches):
    values, options = DESIGNS[name]
    path = cfg(**values)
    base = read_published_config(CFG).model
    expected = dataclasses.replace(base, **options)
    model = HVAE(expected)
    config, weights = import_published(save_published(tmp_path / "c", model), path)
    assert config.model == expected
    imported = HVAE(config.model)
    fill_model(imported, weights, path)
    images = torch.from_numpy(cut_patches(2))
    noise = [gaussian_noise(torch.Generator().manual_seed(0)) for _ in range(2)]
    a, b = model(images, noise[0]), imported(images, noise[1])
    assert torch.equal(a.nll, b.nll)
    assert torch.equal(a.kl, b.kl)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("bottom_up.blocks.0.cells.0.convs.0.weight", "levels_up_downsample.0.residual_block.0.convs.1.weight"),
        ("bottom_up.blocks.1.cells.1.convs.3.bias", "levels_up_downsample.1.residual_block.1.convs.7.bias"),
        ("bottom_up.blocks.1.pool.conv.weight", "levels_up_downsample.1.pool.ops.0.weight"),
        ("top_down.blocks.2.unpool.bias", "levels_down_upsample.2.unpool.scale_bias"),
        ("top_down.blocks.2.z_conv.weight", "levels_down_upsample.2.z_projection.weight"),
    ],
)
def test_published_names_of_two_cells(name: str, published: str):
    config = dataclasses.replace(read_published_config(CFG).model, cells_per_block=2)
    path = name.split(".")[0]
    assert published_names(config)[name] == f"{path}.{published}"


def test_binarised_images(cfg, cut_patches):
    source = cfg(
        dataset_source="'binarized_mnist'",
        target_res="32",
        channels="1",
        up_strides="[1] + [2] * 3 + [4] + [1]",
        down_strides="[1] + [4] + [2] * 3 + [1]",
    )
    config = read_published_config(source).model
    assert (config.output, config.image_size) == ("bernoulli", 28)
    assert HVAE(config).elbo(torch.from_numpy(cut_patches(1, 28, 1))).nelbo.isfinite().all()


# --- stage lists


def cfg_of(stages: tuple[StageConfig, ...]) -> str:
    """The published cfg of these stages: one list entry a linked block, in execution order of each path."""
    blocks = [stage for stage in stages for _ in range(stage.linked_blocks)]
    first = [i == 0 for stage in stages for i in range(stage.linked_blocks)]
    lowest = [*(b.resolution for b in blocks[1:]), blocks[-1].resolution]
    strides = [above.resolution // below for above, below in zip(blocks, lowest, strict=True)]
    # Counted from the top-down side, so from the last linked block of a stage.
    down_extra = [
        stage.extra_top_down if stage.linked_blocks - 1 - i == stage.extra_top_down_after else 0
        for stage in stages
        for i in range(stage.linked_blocks)
    ]
    widths = [b.width for b in blocks]
    lists = {
        "up_strides": strides,
        "up_n_blocks_per_res": [b.extra_bottom_up if f else 0 for b, f in zip(blocks, first, strict=True)],
        "up_filters": [*widths[1:], widths[-1]],
        "up_skip_filters": widths,
        "up_mid_filters_ratio": [b.bottleneck for b in blocks],
        "up_kernel_size": [b.kernel for b in blocks],
        "up_n_blocks": [1] * len(blocks),
        "up_n_layers": [2] * len(blocks),
        "down_strides": strides[::-1],
        "down_n_blocks_per_res": down_extra[::-1],
        "down_filters": widths[::-1],
        "down_mid_filters_ratio": [b.bottleneck for b in blocks][::-1],
        "down_kernel_size": [b.kernel for b in blocks][::-1],
        "down_latent_variates": [b.variates for b in blocks][::-1],
        "down_n_blocks": [1] * len(blocks),
        "down_n_layers": [2] * len(blocks),
    }
    values = {key: repr(value) for key, value in lists.items()}
    return with_lines(target_res=str(stages[0].resolution), input_conv_filters=str(widths[0]), **values)


def blocks_of(stages: tuple[StageConfig, ...]) -> list[tuple[StageConfig, int, int]]:
    """Each linked block in bottom-up order: its shape, the extra blocks before it, those after it on the way down."""
    found = []
    for stage in stages:
        shape = dataclasses.replace(stage, linked_blocks=1, extra_bottom_up=0, extra_top_down=0, extra_top_down_after=0)
        for i in range(stage.linked_blocks):
            after = stage.extra_top_down if stage.linked_blocks - 1 - i == stage.extra_top_down_after else 0
            found.append((shape, stage.extra_bottom_up if i == 0 else 0, after))
    return found


CANONICAL = {
    "one block": (StageConfig(8, 8, 2),),
    "several linked blocks": (StageConfig(32, 8, 2, linked_blocks=3), StageConfig(8, 12, 2, linked_blocks=2)),
    "extras below": (StageConfig(32, 8, 2, extra_bottom_up=2), StageConfig(16, 8, 2, extra_bottom_up=1)),
    "extras after the first": (StageConfig(32, 8, 2, linked_blocks=3, extra_top_down=2), StageConfig(8, 8, 3)),
    "extras after the last": (
        StageConfig(32, 8, 2, linked_blocks=3, extra_top_down=2, extra_top_down_after=2),
        StageConfig(1, 8, 3, kernel=1, linked_blocks=2, extra_top_down=1, extra_top_down_after=1),
    ),
    "two stages of a resolution": (
        StageConfig(16, 8, 2),
        StageConfig(8, 8, 2, kernel=5, linked_blocks=2),
        StageConfig(8, 8, 4, linked_blocks=2, extra_bottom_up=1),
    ),
}


@pytest.mark.parametrize("name", CANONICAL)
def test_stages_come_back(name: str, cfg):
    assert read_published_config(cfg(cfg_of(CANONICAL[name]))).model.stages == CANONICAL[name]


def test_extras_at_several_linked_blocks_of_a_resolution(cfg):
    """The published lists allow it; stages of the same resolution stand for it."""
    path = cfg(down_n_blocks_per_res="[0, 1, 2, 0, 1, 2]", up_n_blocks_per_res="[0, 3, 0, 0, 1, 0]")
    config = read_published_config(path).model
    before_and_after = [(before, after) for _, before, after in blocks_of(config.stages)]
    assert before_and_after == [(0, 2), (3, 1), (0, 0), (0, 2), (1, 1), (0, 0)]


@st.composite
def stage_lists(draw: st.DrawFn) -> tuple[StageConfig, ...]:
    stages: list[StageConfig] = []
    resolution = draw(st.sampled_from([8, 16, 32]))
    width = 8
    for _ in range(draw(st.integers(1, 4))):
        linked = draw(st.integers(1, 3))
        stage = StageConfig(
            resolution,
            width,
            variates=draw(st.integers(1, 3)),
            kernel=draw(st.sampled_from([1, 3])),
            bottleneck=draw(st.sampled_from([0.25, 0.5])),
            linked_blocks=linked,
            extra_bottom_up=draw(st.integers(0, 2)),
            extra_top_down=draw(st.integers(0, 2)),
            extra_top_down_after=draw(st.integers(0, linked - 1)),
        )
        stages.append(stage)
        stride = draw(st.sampled_from([s for s in (1, 2, 4) if resolution % s == 0]))
        if stride > 1:
            width = draw(st.sampled_from([8, 12]))
        resolution //= stride
    return tuple(stages)


@given(stage_lists())
def test_any_stages_give_the_same_blocks_again(tmp_path_factory: pytest.TempPathFactory, stages):
    path = tmp_path_factory.getbasetemp() / "any.cfg"
    path.write_text(cfg_of(stages))
    read = read_published_config(path).model.stages
    assert blocks_of(read) == blocks_of(stages)
    assert ModelConfig(stages[0].resolution, read).groups == ModelConfig(stages[0].resolution, stages).groups


# --- configurations that are refused


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[16] * 2 + [24]", [16, 16, 24]),
        ("2 * [16]", [16, 16]),
        ("(1, 1)", [1, 1]),
        ("-250.", -250.0),
        ("1e-4", 1e-4),
        ("8 / 2", 4.0),
        ("7 // 2 - 1", 2),
        ("True", True),
        ("None", None),
        ("'a b'", "a b"),
        ("symmetric", "symmetric"),
    ],
)
def test_values_that_are_read(text: str, value: object):
    assert evaluate(text) == value


FORBIDDEN = [
    "__import__('os').system('true')",
    "open('x')",
    "(1).__class__",
    "a.b",
    "a + 1",
    "[a] * 2",
    "[1][0]",
    "[x for x in (1, 2)]",
    "lambda: 1",
    "{1: 2}",
    "2 ** 9",
    "10 ** 10 ** 10",
    "1 if 1 else 2",
    "f'{1}'",
    "not 1",
    "1 / 0",
    "'a' * 99999",
    "[0] * 10 * 99999",
    "[0] * 1000000000000",
    "99999 * [[0] * 9999]",
    "[[0] * 9999] * 9999",
    "[[[0] * 9999] * 9999] * 9999",
    "['a' * 9999] * 9999",
    "[[0] * 9999, [0] * 9999]",
    "[0] * 9999 + [0] * 9999",
    "[0] * True * 99999",
    "9" * 4000,
    "99999999999 * 99999999999",
    "1 + " * 9999 + "1",
    "[" * 2000 + "]" * 2000,
    "1j",
    "...",
    "b'x' * 9",
    "*[1]",
    "(x := 1)",
    "1 < 2",
    "1\n+ 2",
    "1\0",
    "9" * 5000,
    "(" * 500 + "1" + ")" * 500,
    "-" * 50_000 + "1",
    "",
    "two words",
]


@pytest.mark.parametrize("text", FORBIDDEN, ids=[text[:24] or "empty" for text in FORBIDDEN])
def test_values_that_are_not(text: str):
    message = refused(evaluate, text)
    assert len(message) < 250


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"up_filters": "[12] + [16] * 2"}, "up_filters has 3 entries, up_strides 6"),
        ({"up_filters": "[12] + [16] * 2 + [25] * 3"}, "both paths must agree"),
        ({"up_n_layers": "[2] * 5 + [1]"}, "must all be equal"),
        ({"up_strides": "[2] * 4 + [1] * 2"}, "up_strides must be down_strides reversed"),
        ({"input_kernel_size": "(1, 3)"}, "input_kernel_size must all be equal"),
        ({"target_res": "12"}, "does not divide the resolution"),
        ({"variation_schedule": "'Cyclic'"}, "known: Linear, Logistic, None"),
        ({"type": "'SGD'"}, "known: Adamax, Adam"),
        ({"up_filters": "[f(12)] * 6"}, r"[model] up_filters: 'f(12)' is not a literal"),
        ({"distribution_base": "'softplus'"}, "softplus"),
        ({"output_distribution_base": "'softplus'"}, "softplus"),
        ({"target_res": "[16]"}, "target_res"),
        ({"up_filters": "12"}, "up_filters"),
        ({"up_n_layers": "2"}, "up_n_layers"),
        ({"up_strides": "3"}, "up_strides"),
        ({"ema_decay": "'x'"}, "ema_decay"),
        ({"warmup_steps": "None"}, "warmup_steps"),
        ({"num_bits": "8.5"}, "num_bits"),
        ({"num_bits": "1e999"}, "[data] num_bits: inf is not"),
        ({"learning_rate": "1e999 - 1e999"}, "[optimizer] learning_rate: nan is not"),
        ({"up_filters": "[[12] * 6]"}, "[12, 12, 12, 12, 12, 12] is not"),
        ({"channels": ""}, "[data] channels: '' is not a literal"),
        ({"up_n_blocks_per_res": "[99999] * 6"}, "up_n_blocks_per_res asks for 2400000 layers"),
        ({"up_strides": "[]"}, "up_strides is empty"),
        ({"up_strides": "[1] + [-2] * 4 + [1]", "down_strides": "[1] + [-2] * 4 + [1]"}, "-2 does not divide"),
        ({"up_n_blocks": "[0] * 6", "down_n_blocks": "[0] * 6"}, "cells_per_block is 0"),
    ],
)
def test_configurations_that_cannot_be_imported(cfg, values, message):
    path = cfg(**values)
    found = refused(read_published_config, path)
    assert message in found
    assert str(path) in found


def test_unknown_and_missing_keys(cfg, tmp_path: Path):
    message = refused(read_published_config, cfg(CFG_TEXT.replace("up_filters", "up_filtres")))
    assert "[model]; did you mean up_filters?" in message
    message = refused(read_published_config, cfg(CFG_TEXT.replace("[synthesis]", "[synthesys]")))
    assert "[synthesys]; did you mean synthesis?" in message
    message = refused(read_published_config, cfg(CFG_TEXT.replace("target_res = 16\n", "")))
    assert "the key target_res is missing" in message
    assert "hparams.cfg" in refused(read_published_config, tmp_path / "hparams.cfg")
    assert "cannot read" in refused(read_published_config, cfg("no sections"))
    assert "the section [data] is missing" in refused(read_published_config, cfg(""))
    assert "the section [loss] is missing" in refused(read_published_config, cfg(CFG_TEXT.split("[loss]")[0]))


def test_keys_and_sections_that_stand_twice(cfg):
    twice = CFG_TEXT.replace("channels = 3", "channels = 3\nchannels = 1")
    assert "option 'channels' in section 'data' already exists" in refused(read_published_config, cfg(twice))
    twice = CFG_TEXT + "\n[data]\nchannels = 1\n"
    assert "section 'data' already exists" in refused(read_published_config, cfg(twice))
    assert "unknown key evil" in refused(read_published_config, cfg("[DEFAULT]\nevil = 1\n" + CFG_TEXT))


def test_files_that_are_no_configuration(tmp_path: Path):
    assert "is it the checkpoint?" in refused(read_published_config, SYMMETRIC)
    for content in (
        CFG_TEXT.replace("symmetric", "symétrique").encode("latin-1"),
        CFG_TEXT.encode("utf-16"),
        b"\0" * 999,
    ):
        (tmp_path / "c.cfg").write_bytes(content)
        message = refused(read_published_config, tmp_path / "c.cfg")
        assert f"cannot read the configuration {tmp_path / 'c.cfg'}" in message
        assert len(message) < 400
    assert str(tmp_path) in refused(read_published_config, tmp_path)


def test_what_editors_leave_in_a_configuration(cfg, tmp_path: Path):
    expected = read_published_config(CFG)
    text = CFG_TEXT.replace("channels = 3", "channels = 3  # colours").replace("'train/'", r"'C:\data\train'")
    assert read_published_config(cfg(text)) == expected
    (tmp_path / "c.cfg").write_bytes(b"\xef\xbb\xbf" + CFG_TEXT.replace("\n", "\r\n").encode())
    assert read_published_config(tmp_path / "c.cfg") == expected


# --- checkpoints that are refused


def changed(tmp_path: Path, change: Callable[[dict], object]) -> Path:
    checkpoint = torch.load(SYMMETRIC, weights_only=True)
    change(checkpoint["ema_model_state_dict"])
    torch.save(checkpoint, tmp_path / "c")
    return tmp_path / "c"


H = "top_down.trainable_h"
H_SHAPE = (1, 24, 1, 1)
EMA = "ema_model_state_dict"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(H), f"lacks the tensor {H}"),
        (
            lambda state: state.update(extra=torch.zeros(1)),
            "has a tensor extra",
        ),
        (
            lambda state: state.update({H: torch.zeros(1, 24, 2, 2)}),
            "top_down.trainable_h is [1, 24, 2, 2], its",
        ),
        (lambda state: state.update({H: 3}), H),
        (lambda state: state.update({H: torch.full(H_SHAPE, float("nan"))}), f"{H} holds numbers that are not finite"),
        (lambda state: state.update({H: torch.full(H_SHAPE, 1e300, dtype=torch.float64)}), "not finite"),
        (lambda state: state.update({H: torch.zeros(H_SHAPE).to_sparse()}), f"{EMA}: {H} is not a dense tensor"),
        (lambda state: state.update({H: torch.zeros(H_SHAPE, dtype=torch.int64)}), "not a dense tensor"),
        (lambda state: state.update({H: torch.zeros(H_SHAPE, dtype=torch.complex64)}), "not a dense tensor"),
        (lambda state: state.update({H: torch.zeros(H_SHAPE, device="meta")}), "not a dense tensor"),
        (lambda state: state.update({H: torch.zeros(1).expand(H_SHAPE)}), "share their numbers"),
        (lambda state: state.update({H: torch.zeros(1).expand(2**40)}), "share their numbers"),
        (lambda state: state.update({f"module.{H}": state[H].clone()}), "twice, with the prefix module."),
        (lambda state: state.update({3: torch.zeros(1)}), "3"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, change, message):
    path = changed(tmp_path, change)
    found = refused(import_published, path, CFG)
    assert message in found
    assert str(path) in found


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, zipped: bool):
    trapped = {"ema_model_state_dict": Trap(tmp_path / "ran")}
    if zipped:
        torch.save(trapped, tmp_path / "c")
    else:
        (tmp_path / "c").write_bytes(pickle.dumps(trapped, protocol=2))
    assert "could run code; refused" in refused(import_published, tmp_path / "c", CFG)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_checkpoint(tmp_path: Path):
    path = tmp_path / "c"
    assert str(path) in refused(import_published, path, CFG)
    raw = SYMMETRIC.read_bytes()
    # The last is a pickle that takes from an empty stack.
    for content in (b"", b"not a checkpoint", raw[: len(raw) // 2], raw[:-1000], b"\x80\x020."):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"/c"):
            import_published(path, CFG)
    for content in (b"[run]\nname = 3", pickle.dumps([1], protocol=4)):
        path.write_bytes(content)
        assert "no file of torch.save" in refused(import_published, path, CFG)
    torch.save([1, 2], path)
    assert "not a published checkpoint" in refused(import_published, path, CFG)
    torch.save({"ema_model_state_dict": 3}, path)
    assert "has no ema_model_state_dict" in refused(import_published, path, CFG)
    assert str(tmp_path) in refused(import_published, tmp_path, CFG)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype):
    path = changed(tmp_path, lambda state: state.update({name: tensor.to(dtype) for name, tensor in state.items()}))
    expected, own = import_published(SYMMETRIC, CFG)[1], import_published(path, CFG)[1]
    assert all(torch.equal(own[name], tensor.to(dtype).float()) for name, tensor in expected.items())


def test_tensors_that_are_views_of_one_buffer(tmp_path: Path):
    """As flat parameters are saved; only more numbers than are stored are refused."""

    def flatten(state: dict) -> None:
        flat = torch.cat([tensor.flatten() for tensor in state.values()])
        parts = flat.split([tensor.numel() for tensor in state.values()])
        state.update({name: part.view_as(state[name]) for name, part in zip(list(state), parts, strict=True)})

    expected, own = import_published(SYMMETRIC, CFG)[1], import_published(changed(tmp_path, flatten), CFG)[1]
    assert all(torch.equal(own[name], expected[name]) for name in expected)


def test_a_configuration_of_a_huge_model_allocates_nothing(cfg):
    huge = dict.fromkeys(("up_filters", "up_skip_filters", "down_filters"), "[65536] * 6")
    message = refused(import_published, SYMMETRIC, cfg(input_conv_filters="65536", **huge))
    assert "bottom_up.input_conv.weight is [12, 3, 1, 1]" in message


def test_another_models_configuration_does_not_fit():
    refused(import_published, SYMMETRIC, GOLDEN / "asymmetric" / "hparams-asymmetric.cfg")
