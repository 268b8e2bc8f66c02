"""The errors this package raises for input it cannot work with.

Each message is one sentence: what was wrong, the value, what to do. The command line prints that sentence alone and
exits with the error's `exit_code`; programs catch `HvaeCodecError`.
"""


class HvaeCodecError(Exception):
    """Base of all errors that a user, not this package, can put right."""

    exit_code = 1


class UsageError(HvaeCodecError):
    """An argument that can never be right: a keep fraction of 0, an unknown preset, a misspelt key."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration that names an unknown key, has a value of the wrong type, or describes no model."""


class DataError(HvaeCodecError):
    """Images that cannot be read, or that are not what the model was made for."""


class ModelError(HvaeCodecError):
    """A run or checkpoint that is missing, damaged or of another model."""


class StoreError(HvaeCodecError):
    """A latent store that is missing, unfinished, damaged or of another format or model."""


class UnreachableError(HvaeCodecError):
    """A bucket that could not be reached: no network, no credentials, no such bucket. A store in it may be whole."""


class EngineError(HvaeCodecError):
    """Processes or a cluster that cannot be started or reached, that were lost, or that a task ends again and again."""


class TrainingError(HvaeCodecError):
    """Training that cannot continue: it diverged, a step does not fit into a GPU, or a process lost the others."""


def is_gpu_out_of_memory(error: Exception) -> bool:
    """Whether `error` means that a GPU has too little memory: torch, cuBLAS and cuDNN each have their own for it."""
    return any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))
