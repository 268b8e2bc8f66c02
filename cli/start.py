"""Where `hvae-codec` begins and ends: Ctrl-C while the command line is imported, or Python stops, is no traceback."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line, see `app.main`, as the last that this process does."""
    try:
        from .app import main
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
