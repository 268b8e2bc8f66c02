"""Importing this lets a study import what it shares with the other benchmarks, which lie in the folder above."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
