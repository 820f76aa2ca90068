"""The memory of this process, and when it is too much."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Final

OVERSHOOT: Final = 1.5
"""A job may take so much more than what a process may keep: then it is ended."""

STATM: Final = Path("/proc/self/statm")


def resident_megabytes() -> float:
    """What this process holds now; where the system does not tell, the most it ever held."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def too_much(limit_megabytes: float) -> str | None:
    """Why the job under way must end, for people; None while it need not."""
    held = resident_megabytes()
    if held <= OVERSHOOT * limit_megabytes:
        return None
    allowed = f"{OVERSHOOT:g} times BO_COMPUTE_MAX_MEGABYTES={limit_megabytes:g}"
    return f"memory: the process held {held:.0f} MB, more than {allowed}"
