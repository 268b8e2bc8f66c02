"""How much can be dropped? Keeps fewer and fewer latents, encodes held-out images with each mask, and takes the last
one whose NELBO is within a tolerance.

    python prune_in_a_loop.py data --model runs/photos --tolerance 0.005
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from hvae_codec import (
    LatentMask,
    encode_images,
    find_step,
    kl_stats,
    load_model,
    make_codec,
    open_images,
    save_mask,
    sweep,
)


def psnr(images: np.ndarray, decoded: np.ndarray) -> float:
    """Of all images together, in dB."""
    return 10 * np.log10(255**2 / np.square(images - decoded.astype(float)).mean())


def main() -> None:
    """Measure every mask on the same held-out images, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", default="data")
    parser.add_argument("--model", default="runs/photos")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.1, 0.05, 0.03, 0.01])
    parser.add_argument("--tolerance", type=float, default=0.005, help="of the NELBO with all latents")
    parser.add_argument("--images", type=int, default=256, help="to rank on, and to measure on, each")
    parser.add_argument("--out", type=Path, default="mask.json")
    chosen = parser.parse_args()

    model = load_model(chosen.model)
    images = open_images(chosen.data, size=model.config.resolution, channels=model.config.channels)
    training, held_out = (images.split(which).evenly(chosen.images) for which in ("train", "val"))
    pixels = np.concatenate(list(held_out.batches(64)))

    stats = kl_stats(model, training)  # never ranked on what is measured
    masks = [LatentMask.from_keep(stats, keep) for keep in (1.0, *chosen.keep)]
    everything, *rows = sweep(model, held_out, masks)  # the same images and noise for all masks
    print(f"all latents: NELBO {everything.nelbo.mean():.3f} bits/dim, {len(pixels)} held-out images")
    print(" keep    dims   NELBO     change ± SE     step  PSNR dB  bytes/image")

    best = None
    for keep, row in zip(chosen.keep, rows, strict=True):
        change, error = row.change_from(everything)
        step = find_step(model, held_out, row.mask, stats).step  # the coarsest that costs no more than sampling
        codec = make_codec("int", step)
        with tempfile.TemporaryDirectory() as folder:
            store = encode_images(model, held_out, f"{folder}/out.zarr", mask=row.mask, codec=codec, stats=stats)
            size = sum(file.stat().st_size for file in Path(folder).glob("out.zarr/z*/c/**/*") if file.is_file())
            quality = psnr(pixels, store.decode(range(len(store))))
        cost = f"{row.nelbo.mean():7.3f} {change:+9.4f} ± {error:.4f}"
        print(f"{keep:5.0%} {store.kept_dims:7,} {cost} {step:8.2f} {quality:8.2f} {size / len(pixels):12.0f}")
        if change <= chosen.tolerance * everything.nelbo.mean():
            best = keep, row.mask

    if best is None:
        print(f"none is within {chosen.tolerance:.1%}")
    else:
        save_mask(chosen.out, best[1])
        print(f"the last within {chosen.tolerance:.1%} keeps {best[0]:.0%}:")
        print(f"hvae-codec encode {chosen.data} out.zarr --mask {chosen.out}")


if __name__ == "__main__":
    main()
