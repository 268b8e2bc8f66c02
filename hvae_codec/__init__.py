"""hvae-codec: image data sets to small latent data sets with a hierarchical VAE.

    model = load_model("runs/latest")
    stats = kl_stats(model, images)
    encode_images(model, images, "out.zarr", mask=LatentMask.from_keep(stats, 0.03))
    open_store("out.zarr").decode([17, 42])

Names are imported when they are first used, so that reading a store needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis.evaluation import Evaluation, evaluate
    from .config import Config, ModelConfig, StageConfig, load_config
    from .data.sources import ImageSource, open_images
    from .encode.append import append, append_worker
    from .encode.dataset import LatentDataset, RowGroupSampler
    from .encode.deep_verify import verify_deep
    from .encode.encoded_store import open_store
    from .encode.pipeline import encode_images, encode_worker
    from .encode.repair import repair
    from .errors import HvaeCodecError
    from .model.checkpoint import load_model
    from .model.hvae import HVAE, Elbo
    from .model.importance import importance_bound
    from .model.sampling import sample_images
    from .presets import load_preset, preset_names
    from .prune.kl_stats import KLStats, kl_stats
    from .prune.mask import LatentMask, load_mask, save_mask
    from .prune.sweep import sweep
    from .prune.tolerance import find_tolerated
    from .store.quantiser import make_codec
    from .store.reader import Store
    from .store.verify import VerifyReport, verify
    from .store.workers import Worker

_LAZY_IMPORTS = {
    "Config": "config",
    "ModelConfig": "config",
    "StageConfig": "config",
    "load_config": "config",
    "LatentDataset": "encode.dataset",
    "RowGroupSampler": "encode.dataset",
    "make_codec": "store.quantiser",
    "Store": "store.reader",
    "open_store": "encode.encoded_store",
    "VerifyReport": "store.verify",
    "repair": "encode.repair",
    "verify": "store.verify",
    "verify_deep": "encode.deep_verify",
    "append": "encode.append",
    "append_worker": "encode.append",
    "encode_images": "encode.pipeline",
    "encode_worker": "encode.pipeline",
    "Worker": "store.workers",
    "HvaeCodecError": "errors",
    "ImageSource": "data.sources",
    "open_images": "data.sources",
    "load_model": "model.checkpoint",
    "HVAE": "model.hvae",
    "Elbo": "model.hvae",
    "importance_bound": "model.importance",
    "sample_images": "model.sampling",
    "load_preset": "presets",
    "preset_names": "presets",
    "KLStats": "prune.kl_stats",
    "kl_stats": "prune.kl_stats",
    "LatentMask": "prune.mask",
    "load_mask": "prune.mask",
    "save_mask": "prune.mask",
    "sweep": "prune.sweep",
    "find_tolerated": "prune.tolerance",
    "Evaluation": "analysis.evaluation",
    "evaluate": "analysis.evaluation",
}

__all__ = [
    "HVAE",
    "Config",
    "Elbo",
    "Evaluation",
    "HvaeCodecError",
    "ImageSource",
    "KLStats",
    "LatentDataset",
    "LatentMask",
    "ModelConfig",
    "RowGroupSampler",
    "StageConfig",
    "Store",
    "VerifyReport",
    "Worker",
    "append",
    "append_worker",
    "encode_images",
    "encode_worker",
    "evaluate",
    "find_tolerated",
    "importance_bound",
    "kl_stats",
    "load_config",
    "load_mask",
    "load_model",
    "load_preset",
    "make_codec",
    "open_images",
    "open_store",
    "preset_names",
    "repair",
    "sample_images",
    "save_mask",
    "sweep",
    "verify",
    "verify_deep",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
