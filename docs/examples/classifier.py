"""Which photograph is a patch from? A linear classifier on the latents of a store, next to the same one on pixels.

Reading takes xarray and zarr alone: neither torch nor hvae-codec.

    python classifier.py out.zarr --images data
"""

import argparse
from pathlib import Path

import numpy as np
import xarray
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def latents(store: xarray.Dataset) -> np.ndarray:
    """All latents of each image in a row, float32 [images, latents]: a code times its step is a latent."""
    names = [name for name in store if name[0] == "z"]  # z1, z4, ...: an array for each latent resolution
    arrays = [store[name] * store[name.replace("z", "step")] for name in names]  # xarray matches dimensions by name
    return np.hstack([z.values.reshape(store.sizes["image"], -1) for z in arrays])


def pixels(folder: Path, store: xarray.Dataset) -> np.ndarray:
    """The images as they were before they were encoded, float32 [images, pixels]."""
    opened = (Image.open(folder / name) for name in store["name"].values)
    return np.stack([np.asarray(image, np.float32).ravel() for image in opened])


def report(what: str, x: np.ndarray, labels: np.ndarray, training: np.ndarray) -> None:
    """Fit on the training images, and count the others that are told right."""
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1000))
    classifier.fit(x[training], labels[training])
    right = classifier.predict(x[~training]) == labels[~training]
    print(f"{what:12}{x.shape[1]:5,} numbers per image: {right.mean():5.1%} of the held-out images")


def main() -> None:
    """Read, fit and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", nargs="?", default="out.zarr")
    parser.add_argument("--images", type=Path, default="data", help="what the store was made of")
    chosen = parser.parse_args()

    store = xarray.open_zarr(chosen.store, consolidated=False)
    labels, training = np.array(store["label"].values.tolist()), store["split"].values == "train"
    classes, counts = np.unique(labels[~training], return_counts=True)
    print(f"{training.sum():,} training images, {counts.sum():,} held-out ones, of {len(classes)} photographs")
    print(f"always {classes[counts.argmax()]}: {counts.max() / counts.sum():.1%} of the held-out images")
    report("latents", latents(store), labels, training)
    report("pixels", pixels(chosen.images, store), labels, training)


if __name__ == "__main__":
    main()
