"""Where `hvae-codec` begins and ends.

No traceback if Ctrl-C comes while the command line is imported or Python stops, or if a package it needs is missing.
"""

from __future__ import annotations

import signal
import sys

from .missing import sentence_of_start


def main() -> None:
    """Run the command line, see `app.main`, as the last that this process does."""
    try:
        from .app import main
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as error:
        sentence = sentence_of_start(error)
        if sentence is None:
            raise
        sys.exit(f"hvae-codec: {sentence}")
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
