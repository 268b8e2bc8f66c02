"""The hyper-parameters of a published VDVAE (Child 2021, arXiv 2011.10650), by the names that its logs give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VdvaeDataset = Literal["cifar10", "imagenet32", "imagenet64", "ffhq_256", "ffhq_1024"]


@dataclass(frozen=True, kw_only=True)
class VdvaeHparams:
    """What decides the network and its training; defaults are those of the published program."""

    dataset: VdvaeDataset = "cifar10"  # scaling of images and, only for ffhq_256, the 5-bit likelihood
    enc_blocks: str  # bottom-up blocks, such as `32x11,32d2,16x6`; the first one's resolution is the image's
    dec_blocks: str  # top-down blocks, such as `1x1,4m1,4x2`
    width: int = 512  # channels at every resolution that custom_width_str does not name
    custom_width_str: str = ""  # widths of single resolutions, such as `512:32,256:64`
    zdim: int = 16  # variates of every latent group
    bottleneck_multiple: float = 0.25  # channels in the middle of a block, as a share of its width
    no_bias_above: int = 64  # largest resolution that has a learned start
    num_mixtures: int = 10  # components of the logistic mixture
    lr: float = 0.00015
    wd: float = 0.0  # decoupled weight decay
    adam_beta1: float = 0.9
    adam_beta2: float = 0.9
    warmup_iters: float = 0.0  # updates in which the rate rises from 0
    grad_clip: float = 200.0
    skip_threshold: float = 400.0  # gradient norm from which an update is left out; -1: never
    ema_rate: float = 0.999
    n_batch: int = 32  # images on each GPU
