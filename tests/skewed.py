"""A machine whose clock is wrong: processes that find another time whenever they ask for it.

Pandas does not load there, and so no model: studies of such a test are model-free.
"""

from __future__ import annotations

import os
from pathlib import Path

SITE = """
import datetime, os, time

SHIFT = float(os.environ["TEST_CLOCK_SHIFT"])
really, right = datetime.datetime, time.time


class Kind(type(really)):
    def __instancecheck__(cls, value):
        return isinstance(value, really)


class Shifted(really, metaclass=Kind):
    def __new__(cls, *given, **named):
        return really(*given, **named)

    @classmethod
    def now(cls, tz=None):
        return really.now(tz) + datetime.timedelta(seconds=SHIFT)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls):
        return cls.now()


datetime.datetime = Shifted
time.time = lambda: right() + SHIFT
"""


def wrong_clock(folder: Path, *, seconds: float) -> dict[str, str]:
    """Environment in which a Python process runs so many seconds ahead."""
    site = folder / f"clock{seconds:g}"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "TEST_CLOCK_SHIFT": str(seconds)}
