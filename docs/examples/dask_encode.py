"""Encodes a folder of images with a Dask cluster on this machine; any other Client does the same.

python dask_encode.py data dask.zarr --model runs/photos
"""

import argparse

from distributed import Client, LocalCluster

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, open_images


def main() -> None:
    """Rank latents, and encode on the cluster what 3% of them hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", default="data")
    parser.add_argument("out", nargs="?", default="dask.zarr")
    parser.add_argument("--model", default="runs/photos")
    parser.add_argument("--keep", type=float, default=0.03, help="share of the latent dimensions, 0 to 1")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()

    model = load_model(chosen.model)
    images = open_images(chosen.data, size=model.config.resolution, channels=model.config.channels)

    # One thread each, and no limit of memory, at which Dask would end workers: a row group is small.
    cluster = LocalCluster(n_workers=chosen.workers, threads_per_worker=1, memory_limit=0, dashboard_address=":0")
    with cluster, Client(cluster) as client:
        executor = client.get_executor(pure=False)
        stats = kl_stats(model, images.split("train").evenly(1000), executor=executor)
        mask = LatentMask.from_keep(stats, chosen.keep)
        store = encode_images(model, images, chosen.out, mask=mask, stats=stats, executor=executor)

    print(f"{chosen.out}: {len(store):,} images, {store.kept_dims:,} latents each, {store.nbytes_on_disk():,} bytes")
    print(f"{len(store.row_groups)} row groups, written by {chosen.workers} workers")


if __name__ == "__main__":  # workers import this file
    main()
