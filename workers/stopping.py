"""What a process does when it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


def on_stop(act: Callable[[], None], *, signals: Sequence[signal.Signals] = STOP_SIGNALS) -> None:
    """Do it at each of these signals, in a thread.

    A handler runs between two steps of the main thread, which may hold the very lock that the act needs.
    """

    def told(*_: object) -> None:
        threading.Thread(target=act, name="stop", daemon=True).start()

    for number in signals:
        signal.signal(number, told)


def end_within(seconds: float) -> None:
    """End this process with status 0 after so long, whatever it waits for; for those that a kill does no harm."""
    time.sleep(seconds)
    logger.warning("still busy after %g s; ending all the same", seconds)
    os._exit(0)
