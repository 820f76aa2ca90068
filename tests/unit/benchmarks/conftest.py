"""The benchmarks are scripts beside each other: their folder is where they import from."""

from __future__ import annotations

import sys
from pathlib import Path

# last, so that no script stands before a library of its name
sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))
