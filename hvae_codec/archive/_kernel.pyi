"""The compiled context-mixing coder, of `kernel/module.c`."""

from typing_extensions import Buffer

def encode(numbers: Buffer, shape: tuple[int, ...], bits: int) -> bytes:
    """The bytes of int32 [planes, images, height, width], writable, each number in `bits` bits: 8, 16 or 32."""

def decode(data: Buffer, numbers: Buffer, shape: tuple[int, ...], bits: int) -> bool:
    """Fill int32 [planes, images, height, width]; returns whether `data` are as long as their bytes."""
