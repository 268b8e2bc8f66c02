"""Tells which errors mean that there was too little memory, and what helps the command that was typed."""

from __future__ import annotations

from collections.abc import Container

from hvae_codec.errors import is_gpu_out_of_memory

_CPU = (
    "DefaultCPUAllocator",
    "bad_alloc",
    "could not create a primitive",  # oneDNN
    "Cannot allocate memory",  # the system
    "can't start new thread",
    "size calculation overflowed",  # more bytes than can be counted
    "integer multiplication overflow",
)


def memory_message(error: Exception, command: str, options: Container[str]) -> str | None:
    """Return a sentence on what helps `command`, which has `options`; None if `error` means something else."""
    on_gpu = is_gpu_out_of_memory(error)
    if not (on_gpu or isinstance(error, MemoryError) or any(words in str(error) for words in _CPU)):
        return None
    helps = "give --device cpu" if on_gpu else "close other programs, or take a machine with more"
    if command == "train":
        helps = "compute a step in parts, such as --set train.accumulate=4, or give --checkpoint-activations"
    elif "batch_size" in options:
        helps = f"give a smaller --batch-size, or {helps.removeprefix('give ')}"
    return f"{'the GPU' if on_gpu else 'this machine'} has too little memory; {helps}"
