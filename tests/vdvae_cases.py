"""Two small VDVAEs in the published file format, with the numbers that the published program computes with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from hvae_codec.config import Config
from hvae_codec.model.hvae import HVAE
from hvae_codec.published.vdvae_config import config_of
from hvae_codec.published.vdvae_hparams import VdvaeHparams
from hvae_codec.published.vdvae_weights import convert

FOLDER = Path(__file__).parent / "golden" / "vdvae"
CASES = ("small_rgb", "lowbit_small")


@dataclass(frozen=True)
class Case:
    """One of the two, as its folder has it."""

    name: str

    @cached_property
    def hparams(self) -> VdvaeHparams:
        logged = json.loads((FOLDER / self.name / "hparams.json").read_text(encoding="utf-8"))
        return VdvaeHparams(**{f.name: logged[f.name] for f in dataclasses.fields(VdvaeHparams)})

    @cached_property
    def golden(self) -> Mapping[str, np.ndarray]:
        with np.load(FOLDER / self.name / "golden.npz") as golden:
            return dict(golden)

    @cached_property
    def images(self) -> torch.Tensor:
        """uint8 [4, 3, S, S]."""
        return torch.from_numpy(self.golden["images"]).permute(0, 3, 1, 2).contiguous()

    def config(self, *, exact_bins: bool = False, **changes: object) -> Config:
        """Its configuration, or that with some hyper-parameters changed."""
        return config_of(dataclasses.replace(self.hparams, **changes), exact_bins=exact_bins)

    def published(self, kind: str = "-ema") -> dict[str, torch.Tensor]:
        """The averaged weights or, for "", those of the last step, by published names."""
        state = torch.load(FOLDER / self.name / f"iter-1000-model{kind}.th", map_location="cpu", weights_only=True)
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}

    def model(self, kind: str = "-ema", config: Config | None = None) -> HVAE:
        config = config or self.config()
        model = HVAE(config.model)
        model.load_state_dict(convert(self.published(kind), config))
        return model.eval()
