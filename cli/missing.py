"""A package that is missing or broken, in one sentence instead of a traceback; needs nothing but Python itself."""

from __future__ import annotations

OURS = ("hvae_codec", "hvae_codec_cli")


def missing_sentence(error: ImportError, *, remedy: str = "") -> str | None:
    """Say which package cannot be imported, and what to do; None if it is a module of this one, which is a bug.

    >>> missing_sentence(ModuleNotFoundError("No module named 'torch'", name="torch"))
    "torch is missing or broken (No module named 'torch'); run hvae-codec doctor, which says how to mend that"
    """
    package = (error.name or "").partition(".")[0]
    if not package or package in OURS:
        return None
    remedy = remedy or "run hvae-codec doctor, which says how to mend that"
    return f"{package} is missing or broken ({error}); {remedy}"


def sentence_of_start(error: ImportError) -> str | None:
    """Say which package the command line itself lacks: `doctor` then cannot run either."""
    return missing_sentence(error, remedy="pip install --force-reinstall hvae-codec brings all that it needs")
