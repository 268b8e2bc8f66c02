"""Where `hvae-codec` begins: Ctrl-C while the command line is imported ends it as later on."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, see `app.main`."""
    try:
        from .app import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()
