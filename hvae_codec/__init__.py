"""hvae-codec: image data sets to small latent data sets with a hierarchical VAE.

    model = load_model("runs/latest")
    stats = kl_stats(model, images)
    encode(model, images, "out.zarr", mask=LatentMask.from_keep(stats, 0.03))
    open_store("out.zarr").decode([17, 42])

Names are imported when they are first used, so that reading a store needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config, ModelConfig, StageConfig, load_config
    from .encode.append import append, append_share
    from .encode.dataset import LatentDataset, RowGroupSampler
    from .encode.latents import make_codec
    from .encode.pipeline import encode, encode_share
    from .encode.repair import repair
    from .encode.store import Store, open_store
    from .encode.verify import VerifyReport, verify
    from .encode.workers import Worker
    from .errors import HvaeCodecError
    from .images import ImageSource, open_images
    from .model.checkpoint import load_model
    from .model.hvae import HVAE, Elbo
    from .model.importance import importance_bound
    from .model.sampling import sample_images
    from .presets import load_preset, preset_names
    from .prune.kl_stats import KLStats, kl_stats
    from .prune.mask import LatentMask, load_mask, save_mask
    from .prune.sweep import sweep
    from .prune.tolerance import find_tolerated
    from .report.evaluation import Evaluation, evaluate

_HOMES = {
    "Config": "config",
    "ModelConfig": "config",
    "StageConfig": "config",
    "load_config": "config",
    "LatentDataset": "encode.dataset",
    "RowGroupSampler": "encode.dataset",
    "make_codec": "encode.latents",
    "Store": "encode.store",
    "open_store": "encode.store",
    "VerifyReport": "encode.verify",
    "repair": "encode.repair",
    "verify": "encode.verify",
    "append": "encode.append",
    "append_share": "encode.append",
    "encode_share": "encode.pipeline",
    "Worker": "encode.workers",
    "HvaeCodecError": "errors",
    "ImageSource": "images",
    "open_images": "images",
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
    "Evaluation": "report.evaluation",
    "evaluate": "report.evaluation",
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
    "append_share",
    "encode",
    "encode_share",
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
]


def __getattr__(name: str) -> Any:
    if name == "encode":
        # The function shares its name with the package, which is callable.
        return importlib.import_module(f"{__name__}.encode")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
