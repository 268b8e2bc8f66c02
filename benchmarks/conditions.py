"""Under what conditions a benchmark ran: machine and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def conditions() -> str:
    """System, cores, Python and the checked-out commit, with a mark where files differ from it."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"{machine}, commit {_commit()}"


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"
