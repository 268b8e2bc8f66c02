"""Trains a rectified flow on the latents of a store, and decodes what it draws.

The flow carries noise to latents along straight lines: a small network learns the velocity (latent - noise) at any
point between the two, given the class; drawing follows that velocity from noise in small steps.

    python flow.py out.zarr --out flow.png
"""

import argparse

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler

from hvae_codec import LatentDataset, sample_images


class Velocity(nn.Module):
    """The velocity at x [n, latents] and time t [n, 1], from 0 (noise) to 1, of classes [n]."""

    def __init__(self, spread: Tensor, classes: int, width: int = 384) -> None:
        super().__init__()
        self.spread = spread  # standard deviation of each latent, [latents]
        self.x, self.t, self.label = nn.Linear(len(spread), width), nn.Linear(16, width), nn.Embedding(classes, width)
        layers = [(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(3)]
        self.blocks = nn.ModuleList(nn.Sequential(*layer) for layer in layers)
        self.out = nn.Linear(width, len(spread))
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """What would be right if latents were independent Gaussians, and what the network adds to it."""
        s2 = self.spread.square()
        gaussian = (t * s2 - (1 - t)) / (t**2 * s2 + (1 - t) ** 2) * x
        waves = t * torch.arange(1, 9) * torch.pi
        h = self.x(x) + self.t(torch.cat([waves.sin(), waves.cos()], 1)) + self.label(label)
        for block in self.blocks:
            h = h + block(h)
        return gaussian + self.out(h)


def loss(net: Velocity, x: Tensor, label: Tensor) -> Tensor:
    """Mean squared error of the velocity, at a random time for each image."""
    noise, t = torch.randn_like(x), torch.rand(len(x), 1)
    return (net(t * x + (1 - t) * noise, t, label) - (x - noise)).square().mean()


@torch.no_grad()
def draw(net: Velocity, label: Tensor, steps: int = 50) -> Tensor:
    """Follow the velocity from noise to latents, [n, latents]."""
    x = torch.randn(len(label), len(net.spread))
    for k in range(steps):
        x = x + net(x, torch.full((len(x), 1), (k + 0.5) / steps), label) / steps
    return x


def sheet(images: np.ndarray) -> np.ndarray:
    """Images uint8 [8 n, 3, H, W] as n rows of eight, [n H, 8 W + 8, 3]; the last 8 columns are white."""
    rows = images.transpose(0, 2, 3, 1).reshape(-1, 8, *images.shape[2:], 3)
    pixels = np.concatenate(list(np.concatenate(list(rows.transpose(1, 0, 2, 3, 4)), axis=2)))
    return np.pad(pixels, [(0, 0), (0, 8), (0, 0)], constant_values=255)


def main() -> None:
    """Train, draw, decode."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", nargs="?", default="out.zarr")
    parser.add_argument("--out", default="flow.png")
    parser.add_argument("--epochs", type=int, default=40)
    chosen = parser.parse_args()

    torch.manual_seed(0)
    data = LatentDataset(chosen.store, flat=True)  # items: float32 [latents], and the number of the class
    store, splits = data.store, np.array([*data.store.splits])
    training, held_out = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "val")
    latents, labels = data[training]
    mean, std = latents.mean(0), latents.std(0)
    scale = std.clamp(min=std.square().mean().sqrt())  # latents that vary little stay small, and count little
    net = Velocity(std / scale, len(data.classes))
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    batches = BatchSampler(SubsetRandomSampler(training), 64, drop_last=False)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=chosen.epochs * len(batches))

    for epoch in range(chosen.epochs):
        for z, label in DataLoader(data, sampler=batches, batch_size=None):
            optimizer.zero_grad()
            loss(net, (z - mean) / scale, label).backward()
            optimizer.step()
            schedule.step()
        if epoch in (0, chosen.epochs // 2, chosen.epochs - 1):
            z, label = data[held_out]
            with torch.no_grad():
                print(f"epoch {epoch + 1}: loss of held-out images {loss(net, (z - mean) / scale, label):.3f}")

    eight = torch.arange(len(data.classes)).repeat_interleave(8)  # a row for each class
    drawn = store.decode_latents(draw(net, eight) * scale + mean)
    rows = [training[labels == label] for label in range(len(data.classes))]
    known = np.concatenate([each[np.linspace(0, len(each) - 1, 8).astype(int)] for each in rows])
    prior = np.concatenate(list(sample_images(store.load_model(), len(eight))))
    picture = [sheet(images) for images in (store.decode(known), drawn, prior)]
    Image.fromarray(np.hstack(picture)).save(chosen.out)
    print(f"{chosen.out}: decoded latents of the store, of the flow, and of the model's own prior")


if __name__ == "__main__":
    main()
