"""A server of files as objects of a bucket: answers as S3 does to HEAD and to ranges, after a known time."""

from __future__ import annotations

import multiprocessing
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class served:  # noqa: N801 - a context manager
    """A server of the files in a folder as objects of the bucket `images`; gives a counter of its requests."""

    def __init__(self, folder: Path, delay: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._requests = context.Value("q", 0)
        self._port, send = context.Pipe(duplex=False)
        self._process = context.Process(target=serve, args=(folder, delay, self._requests, send))

    def __enter__(self) -> Any:
        self._process.start()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        os.environ.update(keys, AWS_ENDPOINT_URL=f"http://127.0.0.1:{self._port.recv()}")
        return self._requests

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def serve(folder: Path, delay: float, requests: Any, port: Connection) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            with requests.get_lock():
                requests.value += 1
            time.sleep(delay / 1000)
            path = folder / self.path.removeprefix("/images/").partition("?")[0]
            if not path.is_file():
                return self.answer(404, b"", 0)
            size = path.stat().st_size
            if self.command == "HEAD":
                return self.answer(200, b"", size)
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            with path.open("rb") as file:
                file.seek(first)
                content = file.read(last + 1 - first)
            return self.answer(206, content, len(content), f"bytes {first}-{first + len(content) - 1}/{size}")

        do_HEAD = do_GET  # noqa: N815

        def answer(self, status: int, content: bytes, length: int, content_range: str = "") -> None:
            self.send_response(status)
            headers = {"Content-Length": str(length), "ETag": '"0"', "Last-Modified": "Tue, 24 Nov 2026 13:00:00 GMT"}
            for name, value in {**headers, **({"Content-Range": content_range} if content_range else {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port.send(server.server_port)
    server.serve_forever()
