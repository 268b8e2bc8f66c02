"""How fast a store in a bucket is written and read, and in how many requests, where each takes a known time.

    python benchmarks/remote_speed.py --images 10000 --delay 30

The bucket is on an S3 server in a process on this machine, which waits `delay` milliseconds before it answers. The
store has random codes in arrays like the quickstart's; no model is needed. Needs the extra dev.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from conditions import conditions
from read_speed import CHANNELS, write
from rich.console import Console
from rich.table import Table

from hvae_codec import open_store
from hvae_codec.storage.bucket import BucketLocation
from hvae_codec.storage.location import location_of
from hvae_codec.store.reader import Store

URL = "s3://images/out.zarr"
Rows = Iterator[tuple[str, str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--delay", type=float, default=30, help="milliseconds before an answer")
    parser.add_argument("--reads", type=int, default=20, help="random images")
    arguments = parser.parse_args()
    print(f"{conditions()}\npython benchmarks/remote_speed.py --images {arguments.images} --delay {arguments.delay:g}")
    requests = multiprocessing.get_context("spawn").Value("q", 0)
    receive, send = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(arguments.delay, requests, send))
    server.start()
    try:
        use_server(receive.recv())
        rows = measure(arguments.images, arguments.reads, requests)
        table = Table("what", "time", "requests")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    finally:
        server.terminate()
        server.join()


def serve(delay: float, requests: Any, port: Connection) -> None:
    """An S3 server that counts requests and waits before each answer."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    answer = DomainDispatcherApplication(create_backend_app)

    def application(environment: Any, start: Any) -> Any:
        with requests.get_lock():
            requests.value += 1
        time.sleep(delay / 1000)
        return answer(environment, start)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    port.send(server.server_port)
    server.serve_forever()


def use_server(port: int) -> None:
    """Lead s3:// to the server on this port, and make a bucket there."""
    endpoint = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    os.environ.update(keys, AWS_ENDPOINT_URL=endpoint)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/images", method="PUT")).close()


def measure(images: int, reads: int, requests: Any) -> Rows:
    """What is measured of a store of so many images, with times and requests."""
    row_groups = -(-images // 256)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "out.zarr"
        write(local, images, CHANNELS)
        yield timed("writing a row group", lambda: write_to_bucket(open_store(local)), requests, row_groups)
    yield timed("opening", lambda: open_store(URL), requests)
    at = np.random.default_rng(1).integers(images, size=reads).tolist()
    fresh = open_store(URL)
    yield timed("a random image", lambda: [fresh.latents(i) for i in at], requests, len(at))
    index_known = open_store(URL)
    for row_group in range(row_groups):
        index_known.latents(256 * row_group)
    yield timed("a random image, shards known", lambda: [index_known.latents(i) for i in at], requests, len(at))
    yield timed("a random image, chunks kept", lambda: [fresh.latents(i) for i in at], requests, len(at))
    yield timed("a random image through zarr alone", lambda: through_zarr(at), requests, len(at))
    many = np.random.default_rng(2).integers(images, size=64).tolist()
    yield timed("64 random images together", lambda: open_store(URL).gather_latents(many), requests)
    yield timed("1,024 images in a row", lambda: open_store(URL).latents(slice(1024)), requests)
    yield timed("names", lambda: open_store(URL).names, requests)


def write_to_bucket(local: Store) -> None:
    """The same store, row group by row group, as encode does."""
    from hvae_codec.store.open_writer import create_or_resume
    from hvae_codec.store.workers import Worker

    writer, _ = create_or_resume(location_of(URL), local.spec(), False, Worker())
    for row_group in writer.own_pending():
        rows = writer.rows(row_group)
        writer.write(row_group, local.stored(slice(rows.start, rows.stop)))
    writer.publish()


def through_zarr(at: list[int]) -> None:
    group = zarr.open_group(BucketLocation.of(URL).zarr_location(), mode="r")
    arrays = [group[f"z{resolution}"] for resolution in CHANNELS]
    for i in at:
        for array in arrays:
            array[i]


def timed(what: str, call: Callable[[], Any], requests: Any, times: int = 1) -> tuple[str, str, str]:
    """What was measured, milliseconds and requests, each of `times` things that `call` does."""
    before, started = requests.value, time.perf_counter()
    call()
    taken = 1000 * (time.perf_counter() - started) / times
    return what, f"{taken:.1f} ms", f"{(requests.value - before) / times:.1f}"


if __name__ == "__main__":
    main()
