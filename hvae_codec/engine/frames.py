"""Messages over a pipe between processes: 8 bytes of length, then that many bytes."""

from __future__ import annotations

import struct
from typing import IO

_LENGTH = struct.Struct("!Q")


def send_frame(pipe: IO[bytes], message: bytes) -> None:
    """Send a message; raises `OSError` if nobody is at the other end."""
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def receive_frame(pipe: IO[bytes]) -> bytes:
    """Wait for a message; raises `EOFError` if the other end closed, also in the middle of one."""
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return _exactly(pipe, length)


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    received = pipe.read(length)
    if len(received) < length:
        raise EOFError
    return received
