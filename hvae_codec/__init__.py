"""hvae-codec: image data sets to small latent data sets with a hierarchical VAE.

    model = load_model("runs/latest")
    stats = kl_stats(model, images)
    encode_images(model, images, "out.zarr", mask=LatentMask.from_keep(stats, 0.03))
    open_store("out.zarr").decode([17, 42])

Names are imported when they are first used, so that reading a store needs no torch.
"""

# ruff: noqa: I001 - it would give every `as` a line of its own

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as` marks a name as public for type checkers
    from .analysis.bench import Bench as Bench, ModelCurve as ModelCurve, OpenedStore as OpenedStore, bench as bench
    from .analysis.evaluation import Evaluation as Evaluation, evaluate as evaluate
    from .analysis.step_search import FoundStep as FoundStep, find_step as find_step
    from .config import Config as Config, load_config as load_config
    from .config import ModelConfig as ModelConfig, StageConfig as StageConfig
    from .data.sources import ImageSource as ImageSource, open_images as open_images
    from .encode.append import append as append, append_worker as append_worker
    from .encode.comparison import Comparison as Comparison, compare as compare
    from .encode.dataset import LatentDataset as LatentDataset, RowGroupSampler as RowGroupSampler
    from .encode.deep_verify import verify_deep as verify_deep
    from .encode.encoded_store import open_store as open_store
    from .encode.pipeline import encode_images as encode_images, encode_worker as encode_worker
    from .encode.repair import repair as repair
    from .encode.sync import sync as sync
    from .errors import HvaeCodecError as HvaeCodecError
    from .model.checkpoint import load_model as load_model
    from .model.hvae import HVAE as HVAE, Elbo as Elbo
    from .model.importance import importance_bound as importance_bound
    from .model.sampling import sample_images as sample_images
    from .presets import load_preset as load_preset, preset_names as preset_names
    from .prune.kl_stats import KLStats as KLStats, kl_stats as kl_stats
    from .prune.mask import LatentMask as LatentMask, load_mask as load_mask, save_mask as save_mask
    from .prune.sweep import sweep as sweep
    from .prune.tolerance import find_tolerated as find_tolerated
    from .report.look import Look as Look, look as look
    from .store.quantiser import make_codec as make_codec
    from .store.reader import Store as Store
    from .verification.verify import VerifyReport as VerifyReport, verify as verify
    from .store.workers import Worker as Worker
    from .writing.recode import recode as recode

_PUBLIC = {
    "analysis.bench": "bench Bench ModelCurve OpenedStore",
    "analysis.evaluation": "evaluate Evaluation",
    "analysis.step_search": "FoundStep find_step",
    "config": "Config load_config ModelConfig StageConfig",
    "data.sources": "ImageSource open_images",
    "encode.append": "append append_worker",
    "encode.comparison": "Comparison compare",
    "encode.dataset": "LatentDataset RowGroupSampler",
    "encode.deep_verify": "verify_deep",
    "encode.encoded_store": "open_store",
    "encode.pipeline": "encode_images encode_worker",
    "encode.repair": "repair",
    "encode.sync": "sync",
    "errors": "HvaeCodecError",
    "model.checkpoint": "load_model",
    "model.hvae": "Elbo HVAE",
    "model.importance": "importance_bound",
    "model.sampling": "sample_images",
    "presets": "load_preset preset_names",
    "prune.kl_stats": "kl_stats KLStats",
    "prune.mask": "LatentMask load_mask save_mask",
    "prune.sweep": "sweep",
    "prune.tolerance": "find_tolerated",
    "report.look": "look Look",
    "store.quantiser": "make_codec",
    "store.reader": "Store",
    "verification.verify": "verify VerifyReport",
    "store.workers": "Worker",
    "writing.recode": "recode",
}
"""Public names by the module that defines them."""

_LAZY_IMPORTS = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = sorted(_LAZY_IMPORTS)


def __getattr__(name: str) -> Any:
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
