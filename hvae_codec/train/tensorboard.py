"""TensorBoard events of a run: scalars, KL per latent group, reconstructions beside originals, prior samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.sources import ImageSource
from ..model.hvae import HVAE, Elbo
from .metrics import SCALARS, StepMetrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
IMAGES = 8
"""Images per row, and in all."""


class TensorBoardLogger:
    """Logs the events of a run that continues from `step`; TensorBoard drops what an earlier try wrote after it."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, because its import takes as long as torch's

        self._writer: SummaryWriter = SummaryWriter(str(run / FOLDER), purge_step=step + 1)
        self.close = self._writer.close

    def add_step(self, m: StepMetrics) -> None:
        """Log the scalars of a step, and the KL of each group."""
        for name in (*SCALARS, "active_groups"):
            self._writer.add_scalar(f"train/{name}", getattr(m, name), m.step)
        self._writer.add_scalar("train/skipped", m.skipped_so_far, m.step)
        for group, rate in enumerate(m.group_rates):
            self._writer.add_scalar(f"kl/group_{group:02d}", rate, m.step)

    def add_validation(self, step: int, elbo: Elbo, model: HVAE, held_out: ImageSource, seed: int) -> None:
        """Log held-out bits/dim, a row of originals above their reconstructions, and samples from the prior."""
        for name in ("nelbo", "rate", "distortion"):
            self._writer.add_scalar(f"validation/{name}", getattr(elbo, name).item(), step)
        chosen = held_out.evenly(IMAGES)
        originals = torch.from_numpy(chosen.read(range(len(chosen))))
        pairs = torch.cat([originals, model.reconstruct(originals).cpu()])
        self._writer.add_images("originals_and_reconstructions", pairs, step)
        generator = torch.Generator(model.device).manual_seed(seed)
        self._writer.add_images("samples", model.sample(IMAGES, generator=generator).cpu(), step)
        self._writer.flush()
